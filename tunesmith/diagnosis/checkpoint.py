"""Which checkpoint to use, and what to expect of it on data that nobody chose it by."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis import words
from tunesmith.diagnosis.history import Floats, Series
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import CheckpointChoice, Finding

_Z90 = 1.645
#: Student's t for a 90 % interval, by the number of values.
_T90 = {3: 2.92, 4: 2.35, 5: 2.13, 6: 2.02, 7: 1.94, 8: 1.89, 9: 1.86, 10: 1.83, 12: 1.80, 15: 1.76, 20: 1.73, 30: 1.70}


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
        answers = ", and the answers got no better after it" if view.metric[0] else ""
        return CheckpointChoice(step, f"the validation loss was least about there{answers}", _score(view, step))
    if "metric_conflict" in codes and view.metric[0]:
        name, metric = view.metric
        step = _nearest(steps, float(metric.steps[int(np.argmax(metric.values))]))
        return CheckpointChoice(step, f"{words.called(name)} was highest there; by the loss it would be step {last}", _score(view, step))
    if found := codes.get("over_confidence"):
        reason = (
            "the answers are at least as good as earlier ones; for probabilities take step "
            f"{_nearest(steps, float(found.evidence['best_step']))} instead, where the validation loss was least"
        )
        return CheckpointChoice(last, reason, _score(view, last))
    if {"no_learning", "constant_metric", "pipeline_fault"} & codes.keys():
        worse = view.base is not None and len(view.loss) > 1 and float(view.loss.values[1:].min()) > view.base
        reason = "but the base model is better than any of them" if worse else "but none is clearly better than what training began with"
        return CheckpointChoice(last, f"it is the last, {reason}", _score(view, last))
    return CheckpointChoice(last, "nothing earlier was better beyond noise", _score(view, last))


def _steps(view: View) -> list[int]:
    """Return the steps to choose from: the checkpoints where they are known, else the evaluations."""
    known = view.history.checkpoint_steps or [int(step) for step in (view.loss if len(view.loss) else view.train).steps]
    return sorted({int(step) for step in known if step > 0})


def _nearest(steps: list[int], wanted: float) -> int:
    return min(steps, key=lambda step: (abs(step - wanted), step))


def _score(view: View, step: int) -> dict[str, object] | None:
    """Return the metric to expect on new data, with its 90 % interval.

    Not the value at the step, which may have been picked for being high, but the mean of the evaluations up to it between which no trend
    is seen. The interval is that of one more draw: their spread (Student's t), and the binomial error of the validation set where its
    size is known, each row counted once. Token accuracy is no share of rows, so for it the interval is on the wide side.
    """
    name, metric = view.metric
    known = metric.after(0).until(step)
    if not name or not len(known):
        return None
    tail = _level(known.values)
    count, several = view.history.num_validation, len(tail)
    if not count and several < 3:
        return None  # neither the set's size nor the series says how far to trust it
    value = float(tail.mean())
    error = _Z90 * math.sqrt(max(value * (1 - value), 0.0) / count) if count else 0.0
    if several >= 3:
        spread = _T90[max(size for size in _T90 if size <= several)] * float(np.std(tail, ddof=1))
        error = math.hypot(error, spread / math.sqrt(several) if count else spread * math.sqrt(1 + 1 / several))
    return {"name": name, "value": round(value, 4), "low": round(max(0.0, value - error), 4), "high": round(min(1.0, value + error), 4)}


def _level(values: Floats) -> Floats:
    """Return the longest tail, half of the series at most, that has no trend beyond noise; at least the last value."""
    for count in range(len(values) // 2, 3, -1):
        tail = values[-count:]
        _, surely = stats.slope(Series(np.arange(count, dtype=float), tail))
        if np.ptp(tail) == 0 or abs(surely) < LIMITS.differ:
            return tail
    return values[-1:] if len(values) < 8 else values[-3:]
