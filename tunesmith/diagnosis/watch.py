"""What to say aloud of a run that goes on: each new finding once, when it has stood over two evaluations; and its withdrawal likewise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tunesmith.domain.findings import Finding
from tunesmith.domain.jobs import Event

#: Evaluations in a row over which a finding must stand, or be gone, before it is said.
PATIENCE = 2


@dataclass
class Watch:
    """Hears the findings of each evaluation in turn. The same findings lead to the same events, so a resumed run says nothing twice."""

    _seen: dict[str, int] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    _said: dict[str, int] = field(default_factory=dict)
    _times: dict[str, int] = field(default_factory=dict)

    def hear(self, step: int, findings: Sequence[Finding]) -> list[Event]:
        """Return the events that the findings at an evaluation call for."""
        now = {finding.code: finding for finding in findings if finding.severity != "info"}
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
