"""What to say aloud of a run that goes on: each new finding once, when it has stood over two evaluations; and its withdrawal likewise."""

from __future__ import annotations

import math

from tunesmith.diagnosis import report
from tunesmith.diagnosis.history import History
from tunesmith.domain.findings import DATA_CODES, Finding
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import MetricPoint

#: Evaluations in a row over which a finding must stand, or be gone, before it is said.
PATIENCE = 2
#: Looks at a run besides its full evaluations, evenly over the planned steps: a run without validation is watched too.
_LOOKS = 40


class Watch:
    """Looks at a run at moments that depend on its steps alone, so that the same run leads to the same events.

    One that begins in the middle, after a resume, goes through the earlier moments first; each event has its key, so nothing is said twice.
    """

    def __init__(self) -> None:
        self._heard = 0.0
        self._seen: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._said: dict[str, int] = {}
        self._times: dict[str, int] = {}

    @staticmethod
    def is_due(point: MetricPoint) -> bool:
        """Say whether the point is a moment to look at the run."""
        return point.step > 0 and (point.full_valid_loss is not None or point.step % _interval(point.total_steps) == 0)

    def hear(self, history: History) -> list[Event]:
        """Return the events that the run calls for since it was last heard."""
        steps = {float(step) for step in history["full_valid_loss"].steps}
        steps |= {float(step) for step in history["train_loss"].steps if step % _interval(history.total_steps) == 0}
        known = {finding.code for finding in history.data_findings}
        events: list[Event] = []
        for step in sorted(step for step in steps if step > self._heard):
            self._heard = step
            found = report.diagnose(history.until(step)).findings
            events += self._look(int(step), [f for f in found if f.severity != "info" and f.code not in (*DATA_CODES, *known)])
        return events

    def _look(self, step: int, findings: list[Finding]) -> list[Event]:
        now = {finding.code: finding for finding in findings}
        events = []
        for code, finding in now.items():
            self._gone.pop(code, None)
            self._seen[code] = self._seen.get(code, 0) + 1
            if code not in self._said and self._seen[code] >= PATIENCE:
                self._said[code] = step
                self._times[code] = self._times.get(code, 0) + 1
                words = f"Step {step}: {finding.message} {finding.advice}"
                events.append(Event(words, key=f"finding:{code}:{self._times[code]}", level="warn"))
        for code in [code for code in self._seen if code not in now]:
            del self._seen[code]
        for code in [code for code in self._said if code not in now]:
            self._gone[code] = self._gone.get(code, 0) + 1
            if self._gone[code] >= PATIENCE:
                words = f"Step {step}: no longer so: {code.replace('_', ' ')}, which was found at step {self._said.pop(code)}."
                events.append(Event(words, key=f"withdrawn:{code}:{self._times[code]}"))
                del self._gone[code]
        return events


def _interval(total_steps: int | None) -> int:
    return max(1, math.ceil((total_steps or 1) / _LOOKS))
