"""How a rule says what it found."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Change, Finding, Severity


def finding(
    code: str, severity: Severity, confidence: float, steps: tuple[int, int] | None, evidence: Mapping[str, object],
    message: str, hint: str, *changes: Change | None,
) -> Finding:  # fmt: skip
    """Return the finding, its numbers rounded to four digits; what is None is left out. The first change counts most."""
    numbers = {key: _rounded(value) for key, value in evidence.items() if value is not None}
    return Finding(code, severity, confidence, message, hint, numbers, steps, tuple(change for change in changes if change))


def which(view: View) -> str:
    """Say what the followed loss is of."""
    return "full validation" if view.is_full else "validation"


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
