"""Changes for the next run: from what a rule found to a knob, a direction and a value, with the reason in the run's own numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tunesmith.diagnosis.history import History
from tunesmith.domain.findings import Change, Finding

#: A learning rate is changed by about half a power of ten: less would hardly be seen, more may jump over what is good.
RATE_STEP = math.sqrt(10)
_SMALLEST_BATCH, _LARGEST_BATCH = 4, 32
#: Updates below which a run has hardly begun.
FEW_UPDATES = 30


def rate(history: History, factor: float, reason: str) -> Change:
    """Multiply the learning rate; where the usual one for the model lies that way, and not next to this one, go there instead."""
    now = _number(history, "learning_rate_multiplier", 1.0)
    ratio = rate_ratio(history)
    if ratio is not None and (factor < 1 < ratio or ratio < 1 < factor) and abs(math.log(ratio)) > math.log(RATE_STEP / 2):
        factor = 1 / ratio
        reason = f"{reason}; {usual(history)}"
    return Change("learning_rate_multiplier", now, short(now * factor), reason)


def rate_ratio(history: History) -> float | None:
    """Return the run's learning rate as a multiple of the one that suits the model."""
    used = learning_rate(history)
    return used / history.usual_learning_rate if used and history.usual_learning_rate else None


def usual(history: History) -> str:
    """Say what learning rate suits the model."""
    return f"about {history.usual_learning_rate:.2g} suits this model, {learning_rate(history):.2g} was used"


def learning_rate(history: History) -> float | None:
    """Return the peak learning rate."""
    known = history.hyperparameters
    if known.get("base_learning_rate") not in (None, "auto") and known.get("learning_rate_multiplier") not in (None, "auto"):
        return float(known["base_learning_rate"]) * float(known["learning_rate_multiplier"])
    if len(series := history["learning_rate"]):
        return float(series.values.max())
    return float(known["learning_rate"]) if known.get("learning_rate") else None


def epochs(history: History) -> float | None:
    """Return how many epochs were run or, while the run goes on, are planned."""
    if history.steps_per_epoch and history.total_steps:
        return history.total_steps / history.steps_per_epoch
    if len(series := history["epoch"]):
        return float(series.values.max())
    return float(known) if (known := history.hyperparameters.get("n_epochs")) not in (None, "auto") else None


def per_epoch(history: History) -> float | None:
    """Return the updates of one epoch."""
    if history.steps_per_epoch:
        return history.steps_per_epoch
    passes = epochs(history)
    return history.last_step / passes if passes else None


def fewer_epochs(history: History, best_step: float, reason: str) -> Change | None:
    """Stop about where the validation was best; None where that is the end."""
    now, steps = epochs(history), per_epoch(history)
    if now is None or not steps or best_step < steps or _by_steps(history):
        return _changed("n_steps", _planned(history), max(1, round(best_step)), reason) if _steps_are_updates(history) else None
    after = max(1, round(best_step / steps))
    return _changed("n_epochs", _whole(now), max(1, round(now) - 1) if after >= round(now) else after, reason)


def more_epochs(history: History, reason: str, factor: float = 2.0) -> Change | None:
    """Train longer: `factor` times, and for about `FEW_UPDATES` updates at least."""
    now = epochs(history)
    wanted = max(factor, 2 * FEW_UPDATES / history.last_step if history.last_step and (per_epoch(history) or 0) > 1 else 1.0)
    if now is None or _by_steps(history):
        planned = _planned(history)
        return _changed("n_steps", planned, math.ceil(planned * wanted), reason) if _steps_are_updates(history) else None
    return _changed("n_epochs", _whole(now), min(100, math.ceil(now * wanted)), reason)


def _by_steps(history: History) -> bool:
    """Whether n_steps, not n_epochs, is what ends the run."""
    limit, steps, passes = history.hyperparameters.get("n_steps"), per_epoch(history), history.hyperparameters.get("n_epochs")
    if not isinstance(limit, int):
        return False
    return not steps or not isinstance(passes, (int, float)) or limit <= passes * steps


def _steps_are_updates(history: History) -> bool:
    """Whether a step is an optimizer update, as far as is known, and not an epoch or a line of a table."""
    return history.last_step >= 1 and ((per_epoch(history) or 0) > 1 or history.last_step >= FEW_UPDATES)


def _planned(history: History) -> int:
    limit = history.hyperparameters.get("n_steps")
    return limit if isinstance(limit, int) and _by_steps(history) else history.total_steps or history.last_step


def _changed(knob: str, before: float | int | None, after: float | int, reason: str) -> Change | None:
    return None if before == after else Change(knob, before, after, reason)


def smaller_batch(history: History, reason: str) -> tuple[Change, ...]:
    """Have about eight times as many updates from the same rows, at no less than 4 rows each."""
    now = rows_per_update(history)
    return _batch(history, min(max(_SMALLEST_BATCH, 2 ** round(math.log2(max(now / 8, 1)))), now), reason)


def larger_batch(history: History, reason: str) -> tuple[Change, ...]:
    """Average over eight times as many rows in each update, at least 8 and at most 32."""
    return _batch(history, int(min(max(8 * rows_per_update(history), 8), _LARGEST_BATCH)), reason)


def _batch(history: History, after: int, reason: str) -> tuple[Change, ...]:
    """Have `after` rows an update, in one accumulation step."""
    size, parts = int(_number(history, "batch_size", 1)), int(_number(history, "accumulation_steps", 1))
    whole = Change("accumulation_steps", parts, 1, "batch_size is then all rows of an update")
    return (Change("batch_size", size, after, reason), *([whole] if parts > 1 else []))


def rows_per_update(history: History) -> int:
    """Return the rows of one optimizer update."""
    return int(_number(history, "batch_size", 1) * _number(history, "accumulation_steps", 1))


def value(history: History, knob: str, after: float | int | str | None, reason: str) -> Change:
    """Set a knob to a value."""
    return Change(knob, history.hyperparameters.get(knob), after, reason)


def more_dropout(history: History, reason: str) -> Change | None:
    """Double the dropout of a LoRA run, to 0.1 at least; None where it is high already or not known."""
    now = history.hyperparameters.get("lora_dropout")
    if not isinstance(now, (int, float)) or now >= 0.1:
        return None
    return Change("lora_dropout", now, max(0.1, short(2 * now)), reason)


def higher_rank(history: History, reason: str) -> tuple[Change, ...]:
    """Double the rank and, to keep alpha / rank, alpha; nothing where they are not known."""
    rank, alpha = (history.hyperparameters.get(name) for name in ("lora_rank", "lora_alpha"))
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank >= 128:
        return ()
    return Change("lora_rank", rank, 2 * rank, reason), Change("lora_alpha", alpha, 2 * alpha, "the scale alpha / rank stays as it is")


def later_stop(history: History, last_loss: float | None) -> Change | None:
    """Move the stop condition that ended the run before its planned steps; None if none did."""
    planned, known = history.total_steps, history.hyperparameters
    if planned is None or history.last_step >= planned or last_loss is None:
        return None
    limit, patience = known.get("stop_eval_loss"), known.get("early_stopping_patience")
    reason = f"it ended the run at step {history.last_step} of {planned}, while it still improved"
    if isinstance(limit, (int, float)) and last_loss < limit:
        return Change("stop_eval_loss", limit, short(last_loss / 2), reason)
    return Change("early_stopping_patience", patience, patience + 2, reason) if isinstance(patience, int) else None


def next_hyperparameters(history: History, findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the next run's hyperparameters, ready to be submitted: what was asked of this one with the first change of each knob.

    Both factors of the learning rate are always there.
    """
    known = {key: known for key, known in history.hyperparameters.items() if key in _CARRIED and known is not None}
    if "base_learning_rate" not in known:
        used = learning_rate(history)
        known |= {"base_learning_rate": short(used) if used else "auto", "learning_rate_multiplier": 1.0}
    known.setdefault("learning_rate_multiplier", 1.0)
    turned: set[str] = set()
    for finding in findings:
        if finding.severity == "info" and finding.code != "still_improving":
            continue  # what needs no change turns no knob
        for change in finding.changes:
            if change.knob in _CARRIED and change.knob not in turned and change.after is not None:
                turned.add(change.knob)
                known[change.knob] = change.after
    return {key: known[key] for key in _CARRIED if key in known}


_CARRIED = (
    "n_epochs", "n_steps", "batch_size", "accumulation_steps", "base_learning_rate", "learning_rate_multiplier", "lora_rank", "lora_alpha",
    "lora_dropout", "training_split", "stop_eval_loss", "early_stopping_patience", "select_by", "eval_interval", "eval_samples",
    "learning_rate_schedule", "warmup_ratio",
)  # fmt: skip


def short(number: float) -> float:
    """Return a number with two digits."""
    return float(f"{number:.2g}")


def _number(history: History, name: str, default: float) -> float:
    given = history.hyperparameters.get(name)
    return default if given in (None, "auto") else float(given)


def _whole(number: float | None) -> float | int | None:
    return None if number is None else round(number) if abs(number - round(number)) < 0.05 else round(number, 2)
