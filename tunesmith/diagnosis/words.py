"""The plots in words, as a colleague would say them, and how loss and accuracy are to be read together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.history import Series
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Finding

_LOSS = (("train_loss", "Training loss"), ("valid_loss", "Sampled validation loss"), ("full_valid_loss", "Full validation loss"))
_ACCURACY = (
    ("train_accuracy", "Training token accuracy"), ("valid_accuracy", "Sampled validation token accuracy"),
    ("full_valid_accuracy", "Full validation token accuracy"),
)  # fmt: skip
_SCORES = (("accuracy", "Accuracy"), ("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"))

#: Which of the two to follow, for what.
RULE = (
    "For exact answers (labels, fields, code) follow accuracy, for open text the validation loss and samples read by a person, for "
    "probabilities the loss alone."
)
_WHY_NOT_ALONE = (
    "Chasing the loss alone stops a run whose answers still get better; chasing accuracy alone keeps one whose probabilities are no longer "
    "worth anything."
)


def plots(view: View, verdict: str) -> dict[str, str]:
    """Return what the loss plot, the token-accuracy plot, a classifier's scores, where there are any, and all together show."""
    said = {"loss": _plot(view, _LOSS)}
    if any(len(view.history[name]) for name, _ in _ACCURACY):
        said["token_accuracy"] = _plot(view, _ACCURACY)
    if any(len(view.history[name]) for name, _ in _SCORES):
        said["scores"] = _plot(view, _SCORES)
    return said | {"overall": verdict}


def reading(view: View, findings: Sequence[Finding]) -> str:
    """Say what loss and accuracy mean together here, and which to follow."""
    name, metric = view.metric
    if not name or len(view.loss) < 3:
        return f"Only one of loss and accuracy was logged on validation data, so they cannot be read together. {RULE}"
    loss = view.loss.after(0)
    first = float(view.smooth[-len(loss)]) if len(loss) else 0.0
    change = (float(view.smooth[-1]) - first) / abs(first) if first else 0.0
    score = metric.after(0).values
    gain = float(np.mean(score[-2:]) - score[0]) if len(score) else 0.0
    slack = max(2 * stats.noise(score), 0.005)
    codes = {finding.code for finding in findings}
    score_name = called(name)
    then = view.at(metric, float(view.loss.steps[view.best])) or 0.0
    if "over_confidence" in codes or ("overfitting" not in codes and view.rise > LIMITS.rise and score[-1] >= then - slack):
        seen = (
            f"The validation loss rose from its least while {score_name} held or rose: over-confidence. The answers did not get worse, the "
            "probabilities did."
        )
    elif view.rise > LIMITS.rise:
        seen = f"The validation loss rose from its least and {score_name} fell: both say that the run went on too long."
    elif change >= -0.02 and gain <= slack and len(view.train) > 3 and view.train.values[-1] < 0.8 * view.train.values[0]:
        seen = (
            f"On the training rows the loss fell by {1 - view.train.values[-1] / view.train.values[0]:.0%}, on validation neither loss nor "
            f"{score_name} moved since the first evaluation: what is still learnt is the training rows themselves."
        )
    elif change < -0.02 and gain > slack:
        seen = f"Loss and {score_name} agree: the validation loss fell and {score_name} rose."
    elif change < -0.02 and gain < -slack:
        seen = (
            f"Loss and {score_name} disagree: the validation loss fell and so did {score_name}: more probability goes to the reference "
            "answers, and fewer of them come first."
        )
    elif change < -0.02:
        seen = f"The validation loss still fell while {score_name} stood: the model grows surer of what it already answered."
    elif gain > slack:
        seen = (
            f"{score_name[0].upper() + score_name[1:]} rose while the loss stalled: more answers are right by a small margin, and wrong "
            "ones are wrong with more confidence."
        )
    else:
        seen = f"Loss and {score_name} both stand still after the first evaluation."
    return f"{seen} {RULE} {_WHY_NOT_ALONE}"


def called(name: str) -> str:
    """Return a metric's name as people say it."""
    return {"f1": "F1", "accuracy": "accuracy"}.get(name, "token accuracy")


def _plot(view: View, lines: Sequence[tuple[str, str]]) -> str:
    said = [_line(view.history[name], title) for name, title in lines if len(view.history[name])]
    if not view.history.hyperparameters.get("eval_samples"):  # another's log: whether it is a sample is not known
        said = [line.replace("Sampled validation", "Validation") for line in said]
    return " ".join(said) if said else "Nothing was logged."


def _line(series: Series, title: str) -> str:
    """Say one curve: where it began, where its best was, where it ended, how much it jumps."""
    values, steps = series.values, series.steps
    if len(values) == 1:
        return f"{title} {values[0]:.3g} at step {steps[0]:.0f}, one point only."
    falls_well = "loss" in title
    if np.ptp(values) == 0:
        return f"{title} is {values[0]:.4g} at all {len(values)} points."
    smooth = stats.smoothed(values) if len(values) >= 12 else values
    best = stats.least_logged(values if falls_well else -values)
    first, last = float(values[0]), float(values[-1])
    base = " (the base model)" if steps[0] == 0 else ""
    words = f"{title} went from {first:.3g}{base} to {last:.3g} in {steps[-1]:.0f} steps"
    gap = abs(float(smooth.min() if falls_well else smooth.max()) - float(smooth[-1]))
    if 0 < best < len(values) - 1 and gap > max(LIMITS.differ * stats.smoothed_noise(values), 0.01 * abs(last)):
        words += f"; its best was {values[best]:.3g} at step {steps[best]:.0f}"
    elif len(values) >= 6 and (half := _half_way(smooth, falls_well)) is not None:
        words += f", half of the way by step {steps[half]:.0f}"
    jump = stats.noise(values)
    if len(values) >= 8 and jump > 0:
        words += f"; from point to point it jumps by about {jump:.2g}"
    return words + "."


def _half_way(values: np.ndarray, falls: bool) -> int | None:
    total = values[-1] - values[0]
    if total == 0 or (total < 0) != falls:
        return None
    return int(np.argmax((values - values[0]) / total >= 0.5))
