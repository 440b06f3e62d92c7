"""Which checkpoint to use, and what to expect of it on data that nobody chose it by."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import CheckpointChoice, Finding

_Z90 = 1.645


def choose(view: View, findings: list[Finding]) -> CheckpointChoice | None:
    """Return the checkpoint to use: the last one, unless the run shows that an earlier one is better beyond noise."""
    steps = _steps(view)
    if not steps:
        return None
    last = steps[-1]
    codes = {finding.code: finding for finding in findings}
    if broken := codes.get("non_finite"):
        before = [step for step in steps if broken.steps and step < broken.steps[0]]
        return CheckpointChoice(before[-1], "the last one before the figures broke down") if before else None
    if (found := codes.get("divergence")) and found.severity == "critical" and found.steps:
        step = _nearest(steps, found.steps[0])
        return CheckpointChoice(step, "the training loss was least about there, before it rose", _score(view, step))
    if found := codes.get("overfitting"):
        step = _nearest(steps, float(found.evidence["best_step"]))
        return CheckpointChoice(step, "the validation loss was least there, and the answers got no better after it", _score(view, step))
    if found := codes.get("over_confidence"):
        reason = (
            "the answers are at least as good as earlier ones; for probabilities take step "
            f"{_nearest(steps, float(found.evidence['best_step']))} instead, where the validation loss was least"
        )
        return CheckpointChoice(last, reason, _score(view, last))
    return CheckpointChoice(last, "nothing earlier was better beyond noise", _score(view, last))


def _steps(view: View) -> list[int]:
    """Return the steps to choose from: the checkpoints where they are known, else the evaluations."""
    known = view.history.checkpoint_steps or [int(step) for step in (view.loss if len(view.loss) else view.train).steps]
    return sorted({int(step) for step in known if step > 0})


def _nearest(steps: list[int], wanted: float) -> int:
    return min(steps, key=lambda step: (abs(step - wanted), step))


def _score(view: View, step: int) -> dict[str, object] | None:
    """Return the metric to expect, with its 90 % interval.

    Not the value at the step, which may have been picked for being high, but the mean of the evaluations around it; the interval is
    the binomial one for the validation set's size, or the series' own noise where that is not known.
    """
    name, metric = view.metric
    if not name or len(metric.after(0)) < 1:
        return None
    metric = metric.after(0)
    at = int(np.argmin(np.abs(metric.steps - step)))
    width = min(2, len(metric) // 6)
    around = metric.values[max(0, at - 2 * width) : at + width + 1]
    value = float(around.mean())
    count = view.history.num_validation
    if not count and (len(metric) < 4 or np.ptp(metric.values) == 0):
        return None  # neither the set's size nor the series says how far to trust it
    error = math.sqrt(max(value * (1 - value), 0.0) / count) if count else float(np.std(metric.values[-5:]))
    low, high = max(0.0, value - _Z90 * error), min(1.0, value + _Z90 * error)
    return {"name": name, "value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
