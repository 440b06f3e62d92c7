"""The rules: each looks at a run and says one thing, or nothing. Read `RULES` at the end first.

Every rule is relative to the series' own noise, the size of the validation set and the schedule, never to an absolute loss. The numbers
that decide stand in `Limits`, with the data that set them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from tunesmith.diagnosis import advice, words
from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Change, Finding, Severity


class Limits(NamedTuple):
    """The thresholds. Only `rise` is set by data (OverfitGuard's 419 labelled histories); the others are first guesses, not measured."""

    #: A validation loss that ends this far above its least has risen (OverfitGuard: 4 to 5 % separate best).
    rise: float = 0.045
    #: ... and by this many standard errors.
    sure: float = 3.0
    #: A training loss this many times its least has diverged.
    diverged: float = 1.5
    #: Share of its first value that a loss must lose to have learnt at all.
    learnt: float = 0.02
    #: A run is slow if its loss fell by less than this share, and still falls.
    slow: float = 0.25
    #: Share of all its fall that a training loss has in its last quarter while it still improves.
    still: float = 0.10
    #: ... that a validation loss has from its last but one evaluation to its last.
    still_valid: float = 0.10
    #: A learning rate this many times the model's own, or this small a share of it, is suspect.
    fast_rate: float = 4.0
    slow_rate: float = 0.2
    #: Rows whose loss is this many times the median after training and did not fall from the base model's do not fit the others.
    odd_rows: float = 0.08


LIMITS: Final = Limits()

Rule = Callable[[View], Finding | None]


def non_finite(view: View) -> Finding | None:
    """A figure was infinite or not a number."""
    step = view.history.non_finite_step
    if step is None:
        return None
    change = advice.rate(view.history, 0.1, f"figures were not finite from step {step} on")
    return _finding(
        "non_finite", "critical", 0.99, (step, max(step, view.history.last_step)), {"step": step},
        f"At step {step} a figure was infinite or not a number: the run broke down there, and nothing after it counts.",
        "Lower the learning rate; if it is low already, look for an example that is empty or extremely long.", change,
    )  # fmt: skip


def divergence(view: View) -> Finding | None:
    """The training loss went up for good, or ends above where it began."""
    train = view.train
    if len(train) < 8:
        return None
    smooth = stats.smoothed(train.values)
    skipped = smooth[len(smooth) // 10 :] if len(smooth) > 20 else smooth
    least, end, start = float(skipped.min()), float(skipped[-1]), view.train_ends[0]
    sigma = stats.smoothed_noise(train.values)
    ratio = advice.rate_ratio(view.history)
    is_fast = ratio is not None and ratio >= LIMITS.fast_rate
    worse_than_base = view.base is not None and len(view.loss) > 1 and view.loss.values[-1] > 1.05 * view.base
    went_up = end > LIMITS.diverged * least and end - least > LIMITS.sure * sigma and end > 0.3 * start
    rose = end > start + LIMITS.sure * sigma and end > 1.05 * start
    if not (went_up or rose or (worse_than_base and is_fast)):
        return None
    at = int(train.steps[int(np.argmin(smooth))])
    numbers = {"train_loss_start": start, "train_loss_least": least, "train_loss_end": end, "learning_rate_ratio": ratio}
    change = advice.rate(view.history, 0.1 if is_fast else 1 / advice.RATE_STEP, f"the training loss went from {least:.3g} to {end:.3g}")
    return _finding(
        "divergence", "critical", 0.9, (at, int(train.steps[-1])), numbers,
        f"The training loss rose from {least:.3g} (step {at}) to {end:.3g}: the updates throw the model out of what it had learnt.",
        "Lower the learning rate, then warm up longer or use a larger batch.", change,
    )  # fmt: skip


def too_fast(view: View) -> Finding | None:
    """The learning rate is far above what suits the model, and the run shows it: early damage, or a loss that stays high."""
    ratio = advice.rate_ratio(view.history)
    train = view.train
    if ratio is None or ratio < LIMITS.fast_rate or len(train) < 6:
        return None
    norms = view.history["grad_norm"].values
    early = train.values[: max(4, len(train) // 3)]
    jump = float(early.max() / early[0] - 1)
    numbers = {"learning_rate_ratio": ratio, "early_rise": jump, "grad_norm_median": float(np.median(norms)) if len(norms) else None}
    change = advice.rate(view.history, 1 / ratio, f"the learning rate is {ratio:.0f} times what suits the model")
    return _finding(
        "divergence", "warning", 0.85, (int(train.steps[0]), int(train.steps[-1])), numbers,
        f"The learning rate is {ratio:.0f} times the one that suits this model"
        + (f", and the training loss first rose by {jump:.0%}." if jump > 0.1 else "."),
        "Lower the learning rate: what the model knew is overwritten faster than the task is learnt.", change,
    )  # fmt: skip


def slow_learning(view: View) -> Finding | None:
    """The loss falls, but hardly: the learning rate is too low."""
    ratio = advice.rate_ratio(view.history)
    start, end = view.train_ends
    if len(view.train) < 8 or not start > 0:
        return None
    fall = max(1 - end / start, view.progress)
    is_slow_rate = ratio is not None and ratio <= LIMITS.slow_rate
    _, surely = stats.slope(view.train)
    if not (is_slow_rate and fall < 2 * LIMITS.slow) and not (ratio is None and LIMITS.learnt < fall < LIMITS.slow / 2 and surely < -3):
        return None
    number = f"the loss fell by only {fall:.0%} in {view.history.last_step} updates"
    change = advice.rate(view.history, advice.RATE_STEP**2, number)
    return _finding(
        "slow_learning", "warning", 0.85 if is_slow_rate else 0.6, (0, view.history.last_step),
        {"train_loss_start": start, "train_loss_end": end, "fall": fall, "learning_rate_ratio": ratio},
        f"The run learns slowly: in {view.history.last_step} updates the loss fell by {fall:.0%}.", "Raise the learning rate.", change,
    )  # fmt: skip


def overfitting(view: View) -> Finding | None:
    """The validation loss rose for good while the training loss fell: rows are learnt by heart. Or only the confidence suffers."""
    if len(view.loss) < 4 or view.is_noise or view.rise <= LIMITS.rise or view.rise_in_noise <= LIMITS.sure:
        return None
    train_now = view.train_ends[1]
    at_best = view.at(view.train, view.loss.steps[view.best])
    if at_best is not None and train_now > 1.1 * at_best:
        return None  # both rise: that is divergence
    step = int(view.loss.steps[view.best])
    name, _ = view.metric
    kept = _metric_kept(view, step)
    numbers = {"best_step": step, "best_loss": float(view.smooth[view.best]), "last_loss": float(view.smooth[-1]), "rise": view.rise}
    seen = f"the {_which(view)} loss was best at step {step} ({numbers['best_loss']:.3g}) and ended {view.rise:.0%} higher"
    if kept is not None:
        numbers |= {f"{name}_at_best": kept[0], f"{name}_last": kept[1]}
        return _finding(
            "over_confidence", "warning", 0.75, (step, view.history.last_step), numbers,
            f"Over-confidence: {seen}, while {words.called(name)} held ({kept[0]:.3g} → {kept[1]:.3g}): not the answers got worse, but the "
            "probabilities.",
            "For exact answers keep the last checkpoint; where probabilities count, train less or with more dropout.",
            advice.fewer_epochs(view.history, step, seen),
        )  # fmt: skip
    return _finding(
        "overfitting", "warning", 0.9, (step, view.history.last_step), numbers,
        f"Overfitting: {seen}, while the training loss went on falling.",
        "Train less, or on more and more varied rows.", advice.fewer_epochs(view.history, step, seen),
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


def still_improving(view: View) -> Finding | None:
    """The run ended while it still got better."""
    train = view.train
    if len(train) < 6:
        return None
    start, end = view.train_ends
    quarter = max(2, len(train) // 4)
    before = float(train.values[-2 * quarter : -quarter].mean())
    last = float(train.values[-quarter:].mean())
    fall = start - min(last, end)
    share = (before - last) / fall if fall > 0 else 0.0
    error = view.train_noise * math.sqrt(2 / quarter)
    valid_share = _last_share(view)
    few = view.history.last_step < advice.FEW_UPDATES
    by_train = share > LIMITS.still and before - last > 2 * error and few
    by_valid = valid_share is not None and valid_share > LIMITS.still_valid and view.best == len(view.loss) - 1
    if not (by_train or by_valid) or view.rise > 0.01:
        return None
    numbers = {
        "share_of_fall_in_last_quarter": share,
        "share_of_fall_since_last_evaluation": valid_share,
        "updates": view.history.last_step,
    }
    seen = f"of the training loss's whole fall, {share:.0%} came in the last quarter of {view.history.last_step} updates"
    batch, steps = advice.rows_per_update(view.history), advice.per_epoch(view.history)
    if steps is not None and steps < 8 and batch >= 32:
        change = advice.smaller_batch(view.history, f"{batch} rows an update leave {steps:.0f} updates an epoch")
        hint = "Make smaller batches, so that the same rows give more updates."
    else:
        change = advice.more_epochs(view.history, seen)
        hint = "Train longer."
    return _finding(
        "still_improving", "warning" if few or (share > 0.2) else "info", 0.8, (int(train.steps[-quarter]), int(train.steps[-1])), numbers,
        f"The run ended while it still improved: {seen}.", hint, change,
    )  # fmt: skip


def _last_share(view: View) -> float | None:
    """Return the share of the followed loss's fall that came with its last evaluation, where that is beyond noise."""
    if len(view.loss) < 3:
        return None
    values = view.smooth
    fall = float(values[0] - values.min())
    gain = float(values[-2] - values[-1])
    error = view.paired_error(-2, -1) or view.sigma * math.sqrt(2)
    return gain / fall if fall > 0 and gain > 2 * error else 0.0


def no_learning(view: View) -> Finding | None:
    """The validation never got better than the base model."""
    if view.base is None or len(view.loss) < 3 or view.is_noise:
        return None
    least = float(view.smooth[1:].min())
    error = view.paired_error(0, -1) or view.sigma * math.sqrt(2)
    if least < view.base - 2 * error and view.progress > LIMITS.learnt:
        return None
    start, end = view.train_ends
    return _finding(
        "no_learning", "critical", 0.85, (0, view.history.last_step),
        {"base_loss": view.base, "least_loss": least, "standard_error": error},
        f"The validation loss never got below the base model's {view.base:.3g} by more than noise (least {least:.3g})"
        + (f", though the training loss fell from {start:.3g} to {end:.3g}." if end < 0.9 * start else "."),
        "Check that the validation rows ask for the same thing as the training rows, and that answers are what is learnt.", None,
    )  # fmt: skip


def inconsistent_answers(view: View) -> Finding | None:
    """Some validation rows stay far worse than all others: their answers do not follow from their prompts as the others' do."""
    rows = view.history.rows
    if rows is None or len(rows.steps) < 2 or len(rows.lines) < 24:
        return None
    last_R, base_R = rows.loss_ER[-1], rows.loss_ER[0]
    median = float(np.median(last_R))
    spread = 1.4826 * float(np.median(np.abs(last_R - median)))
    odd_R = last_R > median + max(5 * spread, 0.5 * median)
    share = float(odd_R.mean())
    if share < LIMITS.odd_rows:
        return None
    worst = [rows.lines[i] for i in np.argsort(-last_R)[:20] if odd_R[i]]
    numbers = {
        "share_of_rows": share, "median_loss": median, "their_median_loss": float(np.median(last_R[odd_R])),
        "their_median_base_loss": float(np.median(base_R[odd_R])), "validation_lines": worst,
    }  # fmt: skip
    reason = f"{share:.0%} of the validation rows have answers that the others contradict"
    return _finding(
        "inconsistent_answers", "warning", 0.8, None, numbers,
        f"{share:.0%} of the validation rows end with a loss of {numbers['their_median_loss']:.3g} where the others have {median:.3g}: "
        "their answers do not follow from their prompts as the others' do.",
        "Look at these rows, and at the training rows of highest loss: correct their answers or leave them out.",
        Change("training_data", "as it is", "without rows whose answers are wrong", reason),
    )  # fmt: skip


def noisy_training(view: View) -> Finding | None:
    """Each update sees so few rows that the training loss says little, and the updates wander."""
    if len(view.train) < 20 or not view.train.values.mean() > 0:
        return None
    batch = advice.rows_per_update(view.history) if view.history.hyperparameters.get("batch_size") else None
    relative = view.train_noise / float(np.median(view.train.values))
    if batch is None or batch > 2 or relative < 0.15:
        return None
    return _finding(
        "noisy_training", "warning", 0.75, (int(view.train.steps[0]), int(view.train.steps[-1])),
        {"batch_size": batch, "relative_noise": relative},
        f"With {batch} row{'s' if batch > 1 else ''} an update the training loss jumps by {relative:.0%} from step to step.",
        "Make larger batches.", advice.larger_batch(view.history, f"{batch} row{'s' if batch > 1 else ''} an update are mostly noise"),
    )  # fmt: skip


def constant_metric(view: View) -> Finding | None:
    """A score is the same at every evaluation: the majority class, a parser that finds nothing, or a task that is done."""
    for name in ("f1", "accuracy", "full_valid_accuracy"):
        score = view.history[name].after(0)
        if len(score) >= 3 and np.ptp(score.values) == 0:
            break
    else:
        return None
    value, count = float(score.values[0]), len(score)
    rising = len(view.train) >= 3 and view.train.values[-1] > 1.1 * view.train.values[0] and stats.slope(view.train)[0] > 0
    numbers = {name: value, "evaluations": count, "train_loss_first": float(view.train.values[0]) if len(view.train) else None,
               "train_loss_last": float(view.train.values[-1]) if len(view.train) else None}  # fmt: skip
    seen = f"{words.called(name)} is exactly {value:.4g} at all {count} evaluations"
    meaning = "the model gives the same answers throughout, the most frequent class most likely"
    if rising:
        return _finding(
            "constant_metric", "critical", 0.9, (int(score.steps[0]), int(score.steps[-1])), numbers,
            f"The run is not learning: {seen} while the training loss rises from {view.train.values[0]:.3g} to "
            f"{view.train.values[-1]:.3g}; {meaning}.",
            "Lower the learning rate and make larger batches; look at precision, recall and F1 of each class.",
            advice.rate(view.history, 0.3, f"the training loss rises and {seen}"),
        )  # fmt: skip
    return _finding(
        "constant_metric", "warning", 0.7, (int(score.steps[0]), int(score.steps[-1])), numbers,
        f"{seen[0].upper() + seen[1:]}: {meaning}, or the score measures something else (an average that is only accuracy, a parser that "
        "finds nothing), or the task was done from the start.",
        "Look at precision, recall and F1 of each class, and at some answers, before this score is believed.", None,
    )  # fmt: skip


def strong_dropout(view: View) -> Finding | None:
    """Training, with dropout, is much worse than validation without: dropout holds learning back."""
    dropout = view.history.hyperparameters.get("lora_dropout")
    if not isinstance(dropout, (int, float)) or dropout < 0.3 or len(view.train) < 6 or not len(view.loss):
        return None
    end, valid = view.train_ends[1], float(view.smooth[-1])
    return _finding(
        "slow_learning", "warning", 0.8, (0, view.history.last_step), {"lora_dropout": dropout, "train_loss": end, "valid_loss": valid},
        f"lora_dropout {dropout:g} drops most of what the adapter could learn from: the training loss ended at {end:.3g}.",
        "Lower lora_dropout.", advice.value(view.history, "lora_dropout", 0.05, f"{dropout:g} of the adapter's input is dropped"),
    )  # fmt: skip


def _finding(
    code: str, severity: Severity, confidence: float, steps: tuple[int, int] | None, evidence: Mapping[str, object],
    message: str, hint: str, change: Change | None,
) -> Finding:  # fmt: skip
    numbers = {key: _rounded(value) for key, value in evidence.items() if value is not None}
    return Finding(code, severity, confidence, message, hint, numbers, steps, (change,) if change else ())


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _which(view: View) -> str:
    return "full validation" if view.is_full else "validation"


RULES: tuple[Rule, ...] = (
    non_finite, divergence, too_fast, slow_learning, overfitting, still_improving, no_learning, inconsistent_answers, noisy_training,
    constant_metric, strong_dropout,
)  # fmt: skip
