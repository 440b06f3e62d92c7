"""Rules about scores: F1, accuracy, token accuracy."""

from __future__ import annotations

import numpy as np

from tunesmith.diagnosis import advice, words
from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.rules.said import finding
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Finding


def constant_metric(view: View) -> Finding | None:
    """A score is the same at every evaluation: the majority class, a parser that finds nothing, or a task that is done."""
    for name in ("f1", "accuracy", "full_valid_accuracy"):
        score, base = view.history[name].after(0), view.history[name].until(0)
        if len(score) >= 3 and np.ptp(score.values) == 0 and (not len(base) or base.values[-1] == score.values[0]):
            break
    else:
        return None
    value, count = float(score.values[0]), len(score)
    rising = len(view.train) >= 3 and view.train.values[-1] > 1.1 * view.train.values[0] and stats.slope(view.train)[0] > 0
    numbers = {name: value, "evaluations": count, "train_loss_first": float(view.train.values[0]) if len(view.train) else None,
               "train_loss_last": float(view.train.values[-1]) if len(view.train) else None}  # fmt: skip
    seen = f"{words.called(name)} is exactly {value:.4g} at all {count} evaluations"
    meaning = "the model gives the same answers throughout" + (", the most frequent class most likely" if "valid" not in name else "")
    if rising:
        return finding(
            "constant_metric", "critical", 0.9, (int(score.steps[0]), int(score.steps[-1])), numbers,
            f"The run is not learning: {seen} while the training loss rises from {view.train.values[0]:.3g} to "
            f"{view.train.values[-1]:.3g}; {meaning}.",
            "Lower the learning rate and make larger batches; look at precision, recall and F1 of each class.",
            advice.rate(view.history, 0.3, f"the training loss rises and {seen}"),
        )  # fmt: skip
    return finding(
        "constant_metric", "warning", 0.7, (int(score.steps[0]), int(score.steps[-1])), numbers,
        f"{seen[0].upper() + seen[1:]}: {meaning}, or the score measures something else (an average that is only accuracy, a parser that "
        "finds nothing), or the task was done from the start.",
        "Look at precision, recall and F1 of each class, and at some answers, before this score is believed.",
    )  # fmt: skip


def metric_conflict(view: View) -> Finding | None:
    """Two figures that should agree move against each other: loss and score, or F1 and accuracy."""
    f1, accuracy = view.history["f1"].after(0), view.history["accuracy"].after(0)
    pairs = []
    if len(f1) >= 5 and len(accuracy) >= 5:
        pairs.append(("F1", f1.values, "accuracy", accuracy.values))
    name, metric = view.metric
    if name and view.rise <= LIMITS.rise and min(len(metric.after(0)), len(view.loss.after(0))) >= 5:
        pairs.append((words.called(name), metric.after(0).values, "the loss (turned over)", -view.loss.after(0).values))
    for one, values, other, others in pairs:
        fell, rose = _moved(values), _moved(others)
        if fell < -LIMITS.sure and rose > LIMITS.sure:
            break
        if rose < -LIMITS.sure and fell > LIMITS.sure and other == "accuracy":
            one, other = other, one
            break
    else:
        return None
    return finding(
        "metric_conflict", "warning", 0.65, (int(view.loss.steps[0]) if len(view.loss) else 0, view.history.last_step),
        {"falls": one, "rises": other, "first": float(values[0]), "last": float(values[-1])},
        f"Two figures disagree: {one} gets worse while {other.removesuffix(' (turned over)')} gets better.",
        "Decide by the one that the model will be used for; for classes of unequal size F1, for exact answers never the loss alone.",
    )  # fmt: skip


def _moved(values: np.ndarray) -> float:
    """Return how far a score went from its first third to its last, in its noise."""
    third = max(1, len(values) // 3)
    gap = float(values[-third:].mean() - values[:third].mean())
    error = max(stats.noise(values), 0.003) * (2 / third) ** 0.5
    return float(gap / error)
