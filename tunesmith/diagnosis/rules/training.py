"""Rules about the training loss and about what the updates were made with."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.diagnosis import advice
from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.rules.said import finding
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Change, Finding

#: Fewest steps of which a training loss is said to have gone anywhere.
_FEW_STEPS = 6


def non_finite(view: View) -> Finding | None:
    """A figure was infinite or not a number."""
    step = view.history.non_finite_step
    if step is None:
        return None
    change = advice.rate(view.history, 0.1, f"figures were not finite from step {step} on")
    return finding(
        "non_finite", "critical", 0.99, (step, max(step, view.history.last_step)), {"step": step},
        f"At step {step} a figure was infinite or not a number: the run broke down there, and nothing after it counts.",
        "Lower the learning rate; if it is low already, look for an example that is empty or extremely long.", change,
    )  # fmt: skip


def pipeline_fault(view: View) -> Finding | None:
    """The training loss rises from the start, at a learning rate that cannot be the reason."""
    train = view.train
    if len(train) < 5 or (view.rate_ratio or 0) >= LIMITS.fast_rate:
        return None
    start, end = view.train_ends
    change, surely = stats.slope(train)
    if not (change > 0 and surely > LIMITS.sure and end > 1.1 * start and _never_fell(view)):
        return None
    return finding(
        "pipeline_fault", "critical", 0.7, (int(train.steps[0]), int(train.steps[-1])), {"train_loss_start": start, "train_loss_end": end},
        f"The training loss rose from the start, from {start:.3g} to {end:.3g}, and never fell: something before the training is wrong.",
        "Check that answers belong to their prompts, the chat template, which tokens the loss is taken over, and the sign of the loss.",
        advice.rate(view.history, 1 / advice.RATE_STEP, f"the training loss rose from {start:.3g} to {end:.3g} and never fell"),
    )  # fmt: skip


def divergence(view: View) -> Finding | None:
    """The training loss went up for good, or what was learnt is worse than the base model."""
    train = view.train
    if len(train) < 8:
        return None
    # Means of eighths: the least of hundreds of windows is always far below the last one.
    means, errors, starts = stats.blocks(train.values)
    at = int(np.argmin(means))
    least, end, start = float(means[at]), float(means[-1]), float(means[0])
    rose_by = (end - least) / max(math.hypot(errors[at], errors[-1]), 1e-12)
    is_fast = (view.rate_ratio or 0) >= LIMITS.fast_rate
    worse_than_base = view.base is not None and len(view.loss) > 1 and view.loss.values[-1] > 1.05 * view.base
    went_up = end > LIMITS.diverged * least and rose_by > LIMITS.sure_of_many and end > 0.3 * start
    rose = end > 1.05 * start and rose_by > LIMITS.sure_of_many
    if not is_fast and (_never_fell(view) or _is_at_its_best(view)):
        return None  # it never fell: `pipeline_fault`; or validation says that nothing is wrong
    if not (went_up or rose or (worse_than_base and is_fast)):
        return None
    step = int(train.steps[starts[at]])
    numbers = {"train_loss_start": start, "train_loss_least": least, "train_loss_end": end, "learning_rate_ratio": view.rate_ratio}
    if went_up or rose:
        seen = f"the training loss rose from about {least:.3g} (from step {step}) to {end:.3g}"
    else:
        seen = f"the validation loss ended at {view.loss.values[-1]:.3g}, above the base model's {view.base:.3g}"
    change = advice.rate(view.history, 0.1 if is_fast else 1 / advice.RATE_STEP, seen)
    return finding(
        "divergence", "critical", 0.9, (step, int(train.steps[-1])), numbers,
        f"Divergence: {seen}: the updates throw the model out of what it had learnt.",
        "Lower the learning rate, then warm up longer or use a larger batch.", change,
    )  # fmt: skip


def too_fast(view: View) -> Finding | None:
    """The learning rate is far above what suits the model, and at first it did harm."""
    ratio, train = view.rate_ratio, view.train
    if ratio is None or ratio < LIMITS.fast_rate or len(train) < _FEW_STEPS:
        return None
    norms = view.history["grad_norm"].values
    early = stats.smoothed(train.values, 3)[: max(4, len(train) // 3)]
    is_rise = early[0] > 0 and early.max() - early[0] > LIMITS.sure * view.train_noise
    jump = float(early.max() / early[0] - 1) if is_rise else 0.0
    spike = float(norms.max() / norms[0]) if len(norms) and norms[0] > 0 else 0.0
    if jump < LIMITS.early_rise and spike < LIMITS.gradient_spike:
        return None
    seen = [f"the training loss first rose by {jump:.0%}"] if jump >= LIMITS.early_rise else []
    seen += [f"a gradient was {spike:.0f} times the first"] if spike >= LIMITS.gradient_spike else []
    worst = int(train.steps[int(np.argmax(early))])
    return finding(
        "divergence", "warning", 0.85, (int(train.steps[0]), max(worst, int(train.steps[1]))),
        {"learning_rate_ratio": ratio, "early_rise": jump, "gradient_spike": spike or None},
        f"The learning rate is {ratio:.0f} times the one that suits this model, and it shows: {' and '.join(seen)}.",
        "Lower the learning rate: what the model knew is overwritten faster than the task is learnt.",
        advice.rate(view.history, 1 / ratio, f"the learning rate is {ratio:.0f} times what suits the model"),
    )  # fmt: skip


def slow_learning(view: View) -> Finding | None:
    """The loss falls, but hardly: the learning rate is too low."""
    ratio = view.rate_ratio
    start, end = view.train_ends
    if len(view.train) < 8 or not start > 0:
        return None
    fall = max(1 - end / start, view.progress)
    is_slow_rate = ratio is not None and ratio <= LIMITS.slow_rate
    means, _, _ = stats.blocks(view.train.values)
    late = (means[len(means) // 2 - 1] - means[-1]) / max(means[0] - means[-1], 1e-12)  # a quick fall and a flat rest is not slow
    _, surely = stats.slope(view.train)
    falls_hardly = ratio is None and LIMITS.learnt < fall < LIMITS.slow and surely < -LIMITS.sure and late > LIMITS.late
    if not falls_hardly and not (is_slow_rate and (fall < 2 * LIMITS.slow or (fall < 0.5 and _still_falls(view)))):
        return None
    seen = f"in {view.history.last_step} updates the loss fell by {'only ' if fall < 0.5 else ''}{fall:.0%}"
    return finding(
        "slow_learning", "warning", 0.85 if is_slow_rate else 0.6, (0, view.history.last_step),
        {"train_loss_start": start, "train_loss_end": end, "fall": fall, "learning_rate_ratio": ratio},
        f"The run learns slowly: {seen}"
        + (f", at {ratio:.2g} times the learning rate that suits the model." if is_slow_rate else "."), "Raise the learning rate.",
        advice.rate(view.history, advice.RATE_STEP**2, seen),
    )  # fmt: skip


def strong_dropout(view: View) -> Finding | None:
    """Most of what the adapter could learn from is dropped."""
    dropout = view.history.hyperparameters.get("lora_dropout")
    if not isinstance(dropout, (int, float)) or dropout <= LIMITS.dropout or len(view.train) < _FEW_STEPS:
        return None
    end = view.train_ends[1]
    numbers = {"lora_dropout": dropout, "train_loss": end, "valid_loss": float(view.smooth[-1]) if len(view.smooth) else None}
    return finding(
        "slow_learning", "warning", 0.8, (0, view.history.last_step), numbers,
        f"lora_dropout {dropout:g} drops most of what the adapter could learn from: the training loss is at {end:.3g}.",
        "Lower lora_dropout.", advice.value(view.history, "lora_dropout", 0.05, f"{dropout:g} of the adapter's input is dropped"),
    )  # fmt: skip


def too_few_updates(view: View) -> Finding | None:
    """Large batches leave so few updates that the run ends before it has learnt."""
    batch, steps = advice.rows_per_update(view.history), advice.per_epoch(view.history)
    if steps is None or steps >= 8 or batch < 32 or len(view.train) < 4 or not view.history.finished or not _still_falls(view):
        return None
    seen = f"{batch} rows an update leave {steps:.0f} updates an epoch"
    return finding(
        "still_improving", "warning", 0.85, (int(view.train.steps[0]), int(view.train.steps[-1])),
        {"batch_size": batch, "updates_per_epoch": steps, "updates": view.history.last_step},
        f"The run ended while it still improved, after {view.history.last_step} updates: {seen}.",
        "Make smaller batches, so that the same rows give more updates.", *advice.smaller_batch(view.history, seen),
    )  # fmt: skip


def still_improving(view: View) -> Finding | None:
    """The run ended while it still got better."""
    train = view.train
    if (len(train) < _FEW_STEPS and len(view.loss) < LIMITS.few_points) or view.rise > 0.01 or view.is_noise or not view.history.finished:
        return None
    # Steps are updates where an epoch is known to have several; in a table with a line an epoch they are not.
    few = view.history.last_step < advice.FEW_UPDATES and (advice.per_epoch(view.history) or 0) > 1
    share, valid_share = view.train_share, view.valid_share
    by_train = view.train_falls and few
    by_valid = valid_share is not None and valid_share > LIMITS.still
    if not (by_train or by_valid):
        return None
    since = (train if len(train) >= _FEW_STEPS else view.loss).steps
    quarter = max(2, len(since) // 4)
    numbers = {
        "share_of_fall_in_last_quarter": share,
        "share_of_validation_fall_in_last_quarter": valid_share,
        "updates": view.history.last_step,
    }
    if by_train:
        seen = f"of the training loss's whole fall, {share:.0%} came in the last quarter of {view.history.last_step} updates"
    else:
        seen = f"of the validation loss's whole fall, {valid_share:.0%} came in the last quarter of the run"
    return finding(
        "still_improving", "warning" if few else "info", 0.8, (int(since[-quarter]), int(since[-1])), numbers,
        f"The run ended while it still improved: {seen}."
        + (" The learning rate was near 0 by then, so the loss flattens by itself." if _is_decayed(view) else ""),
        "Train longer, on the same rows or on more.",
        advice.later_stop(view.history, float(view.smooth[-1]) if len(view.smooth) else None) or advice.more_epochs(view.history, seen),
    )  # fmt: skip


def noisy_training(view: View) -> Finding | None:
    """Each update sees so few rows that the training loss says little, and the updates wander."""
    level = float(np.median(view.train.values)) if len(view.train) >= 20 else 0.0
    if not level > 0:
        return None
    batch = advice.rows_per_update(view.history) if view.history.hyperparameters.get("batch_size") else None
    relative = view.train_noise / level
    if batch is None or batch > 2 or relative < LIMITS.noisy_step:
        return None
    rows = f"{batch} row{'s' if batch > 1 else ''}"
    return finding(
        "noisy_training", "warning", 0.75, (int(view.train.steps[0]), int(view.train.steps[-1])),
        {"batch_size": batch, "relative_noise": relative},
        f"With {rows} an update the training loss jumps by {relative:.0%} from step to step.",
        "Make larger batches.", *advice.larger_batch(view.history, f"updates of {rows} are mostly noise"),
    )  # fmt: skip


def too_little_data(view: View) -> Finding | None:
    """Overfitting within two short epochs: there are too few rows, whatever else is changed."""
    steps = advice.per_epoch(view.history)
    if (
        steps is None
        or not 1 < steps < 20
        or view.history.last_step <= 2 * steps
        or not view.has_risen
        or len(view.loss) < LIMITS.few_points
    ):
        return None
    best = float(view.loss.steps[view.best])
    if best > 2 * steps:
        return None
    rows = view.history.num_training
    said = f"The {rows} rows are" if rows else f"The rows of an epoch, {steps:.0f} updates, are"
    return finding(
        "too_little_data", "info", 0.6, (int(best), view.history.last_step), {"updates_per_epoch": steps, "best_step": best, "rows": rows},
        f"{said} learnt by heart after {best / steps:.1f} epochs.", "Collect more rows before anything else is tuned.",
        Change("training_data", f"{rows} rows" if rows else None, "several times as many rows", f"the best point was at step {best:.0f}"),
    )  # fmt: skip


def _still_falls(view: View) -> bool:
    """Whether either loss still fell at the end."""
    return view.train_falls or (view.valid_share or 0.0) > LIMITS.still


def _is_at_its_best(view: View) -> bool:
    """Whether the validation loss, of several points, ends at its best."""
    return len(view.loss) >= LIMITS.few_points and view.rise < 0.01


def _never_fell(view: View) -> bool:
    """Whether the training loss, smoothed, never came below where it began by more than noise."""
    smooth = stats.smoothed(view.train.values)
    return float(smooth.min()) > float(smooth[0]) - LIMITS.differ * view.train_noise


def _is_decayed(view: View) -> bool:
    rates = view.history["learning_rate"].values
    return len(rates) > 3 and bool(rates[-1] < 0.1 * rates.max())
