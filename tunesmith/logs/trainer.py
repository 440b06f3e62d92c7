"""Hugging Face's trainer_state.json, and what lies beside it: the model card's hyperparameters, the adapter's, the checkpoints.

Its evaluations are over the whole validation set. Knows no pickle: training_args.bin is never opened.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.diagnosis.history import History
from tunesmith.errors import InvalidRequest
from tunesmith.logs import cards, files, tables

#: The names of the evaluation set that counts, the preferred first, where a run has several.
_VALIDATION = ("validation", "valid", "val", "dev", "eval")


def suits(text: str) -> bool:
    """Return whether the text is an object with a `log_history`."""
    return text.lstrip().startswith("{") and '"log_history"' in text


def read(path: Path, text: str) -> History:
    """Return the history of a trainer state. Raises: InvalidRequest, also where several evaluation sets leave it open which counts."""
    where = repr(str(path))
    state = files.document(path, text)
    logged = state.get("log_history") if isinstance(state, dict) else None
    entries = [entry for entry in logged if isinstance(entry, dict)] if isinstance(logged, list) else []
    if not entries:
        hint = "Hint: a newer checkpoint may have more; logging_steps says how often the Trainer logs."
        raise InvalidRequest(f"{where} has an empty log_history. Looked for entries with loss or eval_loss. {hint}")
    entries = _one_evaluation(entries, where)
    planned = _positive(state.get("max_steps"))
    found = tables.history(
        entries,
        where,
        by_trainer=True,
        finished=_is_over(state, entries),
        total_steps=int(planned) if planned else None,
        num_validation=_count(entries, "eval_"),
        checkpoint_steps=files.numbers(_folders(path)[0], "checkpoint-"),
    )
    num_training = _num_training(state, entries, found.steps_per_epoch)
    return dataclasses.replace(found, num_training=num_training, hyperparameters=_hyperparameters(path, state, found, num_training))


def _is_over(state: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the run ended: its summary was logged, it was told to stop, or it took its last step."""
    if any("train_runtime" in entry for entry in entries):
        return True
    control: Any = state.get("stateful_callbacks")
    for name in ("TrainerControl", "args", "should_training_stop"):
        control = control.get(name) if isinstance(control, dict) else None
    planned = _positive(state.get("max_steps"))
    return control is True or bool(planned and (_positive(state.get("global_step")) or 0) >= planned)


def _one_evaluation(entries: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return the entries with one evaluation set's figures under `eval_`; the Trainer writes `eval_<name>_loss` where there are several."""
    keys = {key for entry in entries for key in entry}
    names = sorted({match[1] for key in keys if (match := re.fullmatch(r"eval_(.+)_loss", key))})
    if "eval_loss" in keys or not names:
        return entries
    name = next((name for name in _VALIDATION if name in names), names[0])
    if len(names) > 1 and name not in _VALIDATION:
        words = ", ".join(repr(name[:40]) for name in names[:8])
        raise InvalidRequest(f"{where} has {len(names)} evaluation sets: {words}. Hint: the one that counts must be named 'validation'.")
    before = f"eval_{name}_"
    return [{f"eval_{key.removeprefix(before)}" if key.startswith(before) else key: entry[key] for key in entry} for entry in entries]


def _count(entries: Sequence[Mapping[str, Any]], before: str) -> int | None:
    """Return the number of examples behind a speed and a duration: their product, where rounding leaves it certain to 1 %."""
    counted = []
    for entry in entries:
        speed, seconds = _positive(entry.get(f"{before}samples_per_second")), _positive(entry.get(f"{before}runtime"))
        if speed and seconds:
            counted.append((5e-4 / speed + 5e-5 / seconds, speed * seconds))
    error, count = min(counted, default=(1.0, 0.0))
    return round(count) if error < 0.01 and 1 <= count < 1e12 else None


def _num_training(state: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], per_epoch: float | None) -> int | None:
    """Return the number of training examples, from the summary at the end: it counts those of all the planned epochs."""
    seen = _count(entries, "train_")
    planned, epochs = _positive(state.get("max_steps")), _positive(state.get("num_train_epochs"))
    if not (seen and planned and epochs):
        return None
    if planned % epochs:  # max_steps was asked for, and the epochs are rounded up
        epochs = planned / per_epoch if per_epoch else None
    return max(1, round(seen / epochs)) if epochs else None


def _hyperparameters(path: Path, state: Mapping[str, Any], found: History, num_training: int | None) -> dict[str, Any]:
    """Return what is known of them; the model card and the adapter's configuration beside the file know more than it does.

    The learning rate is the highest that was logged, which is a little under the peak where the log begins later.
    """
    rates = found["learning_rate"].values
    values: dict[str, Any] = dict(cards.learning_rate(float(rates.max()) if len(rates) else None))
    if (size := _positive(state.get("train_batch_size"))) and size >= 1:
        values["batch_size"] = int(size)
        steps = num_training / found.steps_per_epoch / size if num_training and found.steps_per_epoch else math.nan
        if steps >= 0.95 and abs(steps - round(steps)) < 0.05 * steps:
            values["accumulation_steps"] = round(steps)
    epochs = _positive(state.get("num_train_epochs"))
    if epochs and epochs == int(epochs):
        values["n_epochs"] = int(epochs)
    values = cards.in_our_ranges(values)
    for folder in _folders(path):
        for name, settings in (("README.md", cards.hyperparameters), ("adapter_config.json", cards.adapter)):
            if (folder / name).is_file():
                try:
                    values |= settings(files.text(folder / name), found.total_steps)
                except InvalidRequest:  # it was not asked for
                    continue
    return values


def _folders(path: Path) -> list[Path]:
    """Return the folder of the run and, where the file is a checkpoint's, that of the checkpoint."""
    parent = path.parent
    return [parent.parent, parent] if files.number(parent.name, "checkpoint-") is not None else [parent]


def _positive(value: Any) -> float | None:
    """Return a positive, finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < 1e15 else None
