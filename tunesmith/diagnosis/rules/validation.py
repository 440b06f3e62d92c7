"""Rules about the validation loss, and about what the training loss says beside it."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.diagnosis import advice, words
from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.rules.said import finding, which
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Change, Finding

#: Validation points from which a flat stretch can be told from a short one.
_FOR_PLATEAU = 8


def no_validation(view: View) -> Finding | None:
    """Nothing was evaluated on data that was not trained on."""
    if len(view.loss) or len(view.metric[1]) or not len(view.train):
        return None
    return finding(
        "no_validation", "warning", 1.0, None, {"training_points": len(view.train)},
        f"Of {len(view.train)} points none is of validation data: nobody can tell whether the model got better at anything but "
        "its training rows.",
        "Give a validation file, or have a share of the training rows set aside.",
        advice.value(view.history, "training_split", 0.8, "without validation data overfitting cannot be seen"),
    )  # fmt: skip


def cannot_tell(view: View) -> Finding | None:
    """There are too few validation points for a trend."""
    points, steps = len(view.loss), max(view.history.total_steps or 0, view.history.last_step)
    if not 0 < points < LIMITS.few_points:
        return None
    change, wanted, known = None, max(1, steps // 8), view.history.hyperparameters.get("eval_interval")
    if steps >= 2 * LIMITS.few_points and not (isinstance(known, int) and known <= wanted):
        change = advice.value(view.history, "eval_interval", wanted, f"{points} points in {steps} steps show no trend")
    return finding(
        "cannot_tell", "info", 1.0, (int(view.loss.steps[0]), int(view.loss.steps[-1])), {"validation_points": points},
        f"With {points} validation point{'s' if points > 1 else ''} nobody can tell whether the run overfits or has converged.",
        "Evaluate more often: eval_interval for the sampled validation; the full one comes with each epoch."
        if change or view.history.finished else "Wait: more evaluations come as it goes on.",
        change,
    )  # fmt: skip


def noisy_validation(view: View) -> Finding | None:
    """The validation loss is hardly more than chance: too few rows, or other ones each time."""
    if not view.is_noise or (view.is_full and view.progress > 0.1 and view.base is not None):
        return None
    loss, noise = view.loss.values, stats.noise(view.loss.values)
    rows = None if view.is_full else view.history.hyperparameters.get("eval_samples")
    of = f", each of {rows} rows" if isinstance(rows, int) else ""
    return finding(
        "noisy_validation", "warning", 0.8, (int(view.loss.steps[0]), int(view.loss.steps[-1])),
        {"noise": noise, "spread": float(np.std(loss)), "autocorrelation": stats.autocorrelation(loss), "points": len(loss)},
        f"Cannot tell: from point to point the {which(view)} loss jumps by about {noise:.2g}{of}; over the whole run it spreads by "
        f"{np.std(loss):.2g}, and no trend stands out of that.",
        "Log the full validation loss every N steps, on 200 rows or more, and read a mean over several points until then.",
        Change("validation_data", f"{view.history.num_validation} rows" if view.history.num_validation else None,
               "200 rows or more, all evaluated each time", "its noise is as large as its movement"),
    )  # fmt: skip


def no_learning(view: View) -> Finding | None:
    """The validation never got better than the base model, or than at its first evaluation."""
    start, end = view.train_ends
    if not len(view.loss) and len(view.train) >= 20 and abs(start - end) < LIMITS.learnt * abs(start):
        return finding(
            "no_learning", "critical", 0.8, (0, view.history.last_step), {"train_loss_start": start, "train_loss_end": end},
            f"No learning: the training loss began at {start:.3g} and ended at {end:.3g}.",
            "Check the learning rate, and that there are target tokens and trainable weights.",
        )  # fmt: skip
    if len(view.loss) < 3 or view.is_noise:
        return None
    first, least = float(view.smooth[0]), float(view.smooth[1:].min())
    error = view.paired_error(0, -1) or view.sigma * math.sqrt(2)
    is_below = least < first - LIMITS.differ * error and view.progress > LIMITS.learnt
    # Without the base model's figure, the first evaluation may come when all is learnt: training must stand still too.
    if is_below or (view.base is None and (len(view.loss) < 5 or not abs(start - end) < 2 * LIMITS.learnt * abs(start))):
        return None
    than = f"the base model's {first:.3g}" if view.base is not None else f"its first value, {first:.3g},"
    return finding(
        "no_learning", "critical" if view.base is not None else "warning", 0.85 if view.base is not None else 0.6,
        (0, view.history.last_step), {"first_loss": first, "least_loss": least, "standard_error": error},
        f"No learning: the {which(view)} loss never got below {than} by more than noise (least {least:.3g})"
        + (f", though the training loss fell from {start:.3g} to {end:.3g}." if end < 0.9 * start else "."),
        "Check that the validation rows ask for the same thing as the training rows, and that answers are what is learnt.",
    )  # fmt: skip


def overfitting(view: View) -> Finding | None:
    """The validation loss rose for good while the training loss fell: rows are learnt by heart. Or only the confidence suffers."""
    if len(view.loss) < LIMITS.few_points or not view.has_risen:
        return None
    step, least = view.best_point
    at_best = view.at(view.train, step)
    if at_best is not None and view.train_ends[1] > 1.1 * at_best:
        return None  # both rise: that is divergence
    name, _ = view.metric
    kept = _metric_kept(view, step)
    sure = 0.95 if view.rise > LIMITS.surely_risen else 0.8
    last = float(view.loss.values[-1])
    numbers = {"best_step": step, "best_loss": least, "last_loss": last, "rise": view.rise}
    seen = f"the {which(view)} loss was best at step {step} ({least:.3g}) and ended about {view.rise:.0%} higher"
    if kept is not None:
        numbers |= {f"{name}_at_best": kept[0], f"{name}_last": kept[1]}
        return finding(
            "over_confidence", "warning", sure - 0.1, (step, view.history.last_step), numbers,
            f"Over-confidence: {seen}, while {words.called(name)} held ({kept[0]:.3g} → {kept[1]:.3g}): not the answers got worse, but the "
            "probabilities.",
            "For exact answers keep the last checkpoint; where probabilities count, train less or with more dropout.",
            advice.fewer_epochs(view.history, step, seen),
        )  # fmt: skip
    return finding(
        "overfitting", "warning", sure, (step, view.history.last_step), numbers,
        f"Overfitting: {seen}" + (", while the training loss went on falling." if len(view.train) else "."),
        "Train less, or on more and more varied rows.",
        advice.fewer_epochs(view.history, step, seen), advice.more_dropout(view.history, "it holds memorizing back"),
    )  # fmt: skip


def _metric_kept(view: View, step: float) -> tuple[float, float] | None:
    """Return the metric at the loss's best step and at the end, if it did not fall by more than its own error."""
    _, metric = view.metric
    then = view.at(metric, step)
    if then is None or not len(metric):
        return None
    now = float(metric.values[-3:].mean()) if len(metric) > 12 else float(metric.values[-1])
    error = max(stats.noise(metric.after(0).values), _binomial_error(view, now) / 3)
    return (then, now) if now >= then - error else None


def _binomial_error(view: View, share: float) -> float:
    rows = view.history.rows
    count = rows.num_targets_R.sum() if rows is not None else view.history.num_validation
    return math.sqrt(max(share * (1 - share), 1e-4) / count) if count else 0.0


def memorization(view: View) -> Finding | None:
    """The training rows are known by heart while validation is far from it."""
    train_accuracy = view.history["train_accuracy"].values
    if not len(view.loss.after(0)) or len(view.train) < 4:
        return None
    end, valid = view.train_ends[1], float(view.smooth[-1])
    knows = float(train_accuracy[-max(3, len(train_accuracy) // 10) :].mean()) if len(train_accuracy) else None
    if end >= LIMITS.memory_loss * valid or (knows is not None and knows < LIMITS.memory_accuracy):
        return None
    return finding(
        "memorization", "info", 0.7, (0, view.history.last_step), {"train_loss": end, "valid_loss": valid, "train_accuracy": knows},
        f"The training rows are learnt by heart: their loss ended at {end:.3g}, validation at {valid:.3g}.",
        "Fewer epochs or more rows; if validation does not suffer, it may stay.",
        advice.fewer_epochs(view.history, view.best_point[0], f"the training loss is {end:.3g}, validation {valid:.3g}"),
    )  # fmt: skip


def suspiciously_perfect(view: View) -> Finding | None:
    """Everything is right from the first evaluation on: copies, the answer in the prompt, or a task that needs no model."""
    loss, (name, metric) = view.loss.after(0), view.metric
    scores = metric.after(0)
    by_loss = len(loss) > 0 and 0 <= float(loss.values[0]) < LIMITS.perfect_loss
    by_score = len(scores) > 0 and float(scores.values.min()) >= LIMITS.perfect_accuracy
    if not (by_loss or by_score):
        return None
    at = int((loss if by_loss else scores).steps[0])
    seen = f"the validation loss is {loss.values[0]:.2g}" if by_loss else f"{words.called(name)} is {scores.values[0]:.4g}"
    return finding(
        "suspiciously_perfect", "warning", 0.7, (at, view.history.last_step),
        {"first_loss": float(loss.values[0]) if len(loss) else None, "first_score": float(scores.values[0]) if len(scores) else None},
        f"Too good to be true: at the first evaluation, step {at}, {seen}.",
        "Look for validation rows that are also in the training data, and for answers that stand in their prompts.",
        Change("validation_data", "as it is", "rows that share nothing with the training rows", seen),
    )  # fmt: skip


def late_improvement(view: View) -> Finding | None:
    """The loss got worse beyond noise and then better than ever: the first rise was not the end."""
    smooth, steps = stats.smoothed(view.loss.values, 3), view.loss.steps
    if len(smooth) < _FOR_PLATEAU or view.is_noise:
        return None
    before = np.minimum.accumulate(smooth)
    bump = int(np.argmax(smooth / np.maximum(before, 1e-12)))
    low = float(before[bump])
    beyond = LIMITS.sure * view.sigma * math.sqrt(2)
    if smooth[bump] < (1 + LIMITS.rise) * low + beyond or not float(smooth[bump:].min()) < low - beyond:
        return None
    first, best = int(steps[int(np.argmin(smooth[: bump + 1]))]), int(steps[bump + int(np.argmin(smooth[bump:]))])
    return finding(
        "late_improvement", "info", 0.7, (first, best), {"first_best_step": first, "first_best": low, "worst": float(smooth[bump]),
                                                         "best_step": best, "best": float(smooth[bump:].min())},
        f"The {which(view)} loss rose after step {first} ({low:.3g} to {smooth[bump]:.3g}) and then fell below it, to "
        f"{smooth[bump:].min():.3g} at step {best}.",
        "Do not stop at the first rise: let early stopping wait for several evaluations, and keep the best checkpoints.",
    )  # fmt: skip


def plateau(view: View) -> Finding | None:
    """The loss stood still long before the end, though it was still being trained at a good rate."""
    loss = view.loss.after(0)
    if len(loss) < _FOR_PLATEAU or view.is_noise or view.has_risen:
        return None
    at = loss.steps[int(0.4 * len(loss))]
    tail = loss.after(at)
    change, surely = stats.slope(tail)
    drift = abs(change) * float(np.ptp(tail.steps)) / max(abs(float(tail.values.mean())), 1e-12)
    if (drift > LIMITS.plateau and abs(surely) > LIMITS.differ) or drift > 2 * LIMITS.plateau:
        return None
    return finding(
        "plateau", "info", 0.7, (int(at), int(loss.steps[-1])), {"since_step": int(at), "drift": drift, "level": float(tail.values.mean())},
        f"Since step {at:.0f} the {which(view)} loss has stood at about {tail.values.mean():.3g} ({drift:.1%} of drift).",
        "More epochs will not help; more varied rows, a higher lora_rank or another learning rate may. Fewer epochs give the same sooner.",
        *advice.higher_rank(view.history, f"the loss has stood still since step {at:.0f}"),
    )  # fmt: skip


def converged(view: View) -> Finding | None:
    """The loss fell and then came to rest at its best."""
    if len(view.loss) < LIMITS.few_points or view.is_noise or view.progress < LIMITS.learnt or view.rise > LIMITS.rise:
        return None
    smooth, steps = view.smooth, view.loss.steps
    quarter = steps[-1] - 0.25 * (steps[-1] - steps[0])
    before = float(smooth[np.searchsorted(steps, quarter, side="right") - 1])
    fall = float(smooth[0] - smooth.min())
    error = view.paired_error(-2, -1) or view.sigma * math.sqrt(2)
    if abs(before - float(smooth[-1])) > max(LIMITS.converged * fall, LIMITS.differ * error):
        return None
    return finding(
        "converged", "info", 0.8, (int(quarter), int(steps[-1])), {"loss": float(smooth[-1]), "change": before - float(smooth[-1])},
        f"The {which(view)} loss came to rest at {smooth[-1]:.3g}: over the last quarter it moved by {abs(before - smooth[-1]):.2g}.",
        "Nothing has to change.",
    )  # fmt: skip
