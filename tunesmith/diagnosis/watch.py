"""What to say aloud of a run that goes on: each new finding once, when it has stood over two evaluations; and its withdrawal likewise."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.diagnosis import report
from tunesmith.diagnosis.history import History
from tunesmith.domain.findings import DATA_CODES, Finding
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import MetricPoint

#: Evaluations in a row over which a finding must stand, or be gone, before it is said.
PATIENCE = 2
#: ... and for it to be withdrawn, one more: what was said stands for something.
LONGER = PATIENCE + 1
#: Most looks at sampled evaluations, evenly over the planned steps; at the training loss alone where nothing is evaluated.
_LOOKS = 40


class Watch:
    """Looks at a run at moments that depend on its figures alone, so that the same run leads to the same events.

    One that begins in the middle, after a resume, goes through the earlier moments first; each event has its key, so nothing is said twice.
    """

    def __init__(self) -> None:
        self._heard = 0.0
        self._mark = self._due = 0
        self._validates = False
        self._seen: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._said: dict[str, int] = {}
        self._times: dict[str, int] = {}

    def is_due(self, point: MetricPoint) -> bool:
        """Say whether a point that was just made is worth to call `hear` for."""
        is_full = point.full_valid_loss is not None
        is_any = is_full or point.valid_loss is not None
        self._validates = self._validates or is_any
        mark = int(point.step // max(1.0, point.total_steps / _LOOKS))
        if point.step <= 0 or not (is_full or (mark > self._due and (is_any or not self._validates))):
            return False
        self._due = max(mark, self._due)
        return True

    def hear(self, history: History) -> list[Event]:
        """Return the events that the run calls for since it was last heard."""
        known = {finding.code for finding in history.data_findings}
        events: list[Event] = []
        for step in self._moments(history):
            self._heard = step
            found = report.diagnose(history.until(step)).findings
            events += self._look(int(step), [f for f in found if f.severity != "info" and f.code not in (*DATA_CODES, *known)])
        return events

    def _moments(self, history: History) -> Iterator[float]:
        """Yield the steps to look at that were not yet: every full evaluation, and what else was evaluated, thinned out."""
        full, sampled = history["full_valid_loss"].steps, history["valid_loss"].steps
        others = sampled if len(full) or len(sampled) else history["train_loss"].steps
        whole = {float(step) for step in full}
        per_look = max(1.0, (history.total_steps or history.last_step) / _LOOKS)
        for step in sorted(whole | {float(step) for step in others}):
            mark = int(step // per_look)
            if step <= 0 or step <= self._heard or (step not in whole and mark <= self._mark):
                continue
            self._mark = max(mark, self._mark)
            yield step

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
            if self._gone[code] >= LONGER:
                words = f"Step {step}: no longer so: {code.replace('_', ' ')}, which was found at step {self._said.pop(code)}."
                events.append(Event(words, key=f"withdrawn:{code}:{self._times[code]}"))
                del self._gone[code]
        return events
