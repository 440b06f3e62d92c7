"""From columns of figures to a history: what was not computed, which step a row is, which validation it was, and whether it is one run.

The rules, because logs differ:

- Not computed: a blank; -1 in a column with nothing else below 0 (Azure and OpenAI's first API write it); NaN, unless it can only mean
  that a loss was not a number (see `_is_nan`). An infinite loss is a figure.
- A gradient norm that is not finite belongs to a step that mixed precision skipped; it is left out, unless the training loss beside
  it is not finite either, or exactly 0: so Hugging Face logs a loss that was NaN.
- Accuracy, precision, recall and F1 are in percent where a value is over 1.
- Without steps, a row's step is its epoch where each epoch has one value of a metric, else its number. Epochs that count from 0 and
  have a training loss there are counted from 1, for step 0 is the base model.
- `valid_loss` is over the whole validation set, and becomes `full_valid_loss`, where that is evident: there is no full validation
  beside it, and an epoch column shows no more than one value for each epoch. Else it stays a sampled one, as OpenAI's result files have it.
- Steps that start over, with other values, are two runs in one log; that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.diagnosis import history as histories
from tunesmith.diagnosis.history import Floats, History
from tunesmith.errors import InvalidRequest
from tunesmith.logs import columns

Bools = npt.NDArray[np.bool_]
#: Our name -> a figure for each row of the log, None where it has a blank.
Figures = Mapping[str, Sequence[float | None]]

_MAX_STEP = 1e12
#: Validations at least this far apart, in epochs, are one per epoch; Hugging Face's last batches make 0.92, 2.0, 2.92.
_AN_EPOCH = 0.9
#: An epoch under this is none at all.
_FIRST_EPOCH = 1e-9
#: Figures that differ at the same step, from which on a log that starts over holds two runs.
_CONFLICTS = 3

_LOSSES = ("train_loss", "valid_loss", "full_valid_loss")
_WHOLE = {"valid_loss": "full_valid_loss", "valid_accuracy": "full_valid_accuracy"}


class _Log:
    """The columns of a log, R rows each: `values` are NaN where there is a blank, `computed` says where there is a figure."""

    def __init__(self, figures: Figures) -> None:
        self.values = {name: np.array([np.nan if x is None else x for x in cells], dtype=float) for name, cells in figures.items()}
        self.computed = {name: np.array([x is not None for x in cells], dtype=bool) for name, cells in figures.items()}
        self.num_rows = max((len(cells) for cells in figures.values()), default=0)

    def where(self, *names: str) -> Bools:
        """Return the rows in which any of these is computed."""
        found = np.zeros(self.num_rows, dtype=bool)
        for name in self.computed.keys() & set(names):
            found |= self.computed[name]
        return found

    def finite(self, name: str) -> Bools:
        """Return the rows in which a column is computed and finite."""
        return self.where(name) & np.isfinite(self.column(name))

    def column(self, name: str) -> Floats:
        """Return a column, one of NaN where the log has none."""
        return self.values[name] if name in self.values else np.full(self.num_rows, np.nan)


def history(figures: Figures, where: str, *, by_trainer: bool = False, **facts: Any) -> History:
    """Return the history of a log's rows, in its order.

    `by_trainer` says that Hugging Face's Trainer wrote it: each validation is over the whole set, and NaN is never a blank. What the
    figures show of the run (steps per epoch, total steps, whether it is over) is added where `facts` do not have it.
    Raises: InvalidRequest without any metric, or with those of two runs.
    """
    log = _Log(figures)
    _drop_minus_one(log)
    _drop_not_computed(log, nan_is_blank=not by_trainer)
    _from_percent(log)
    step, epoch = _on_steps(log, where)
    rows = np.isfinite(step)
    if not rows.any():
        raise InvalidRequest(f"{where} has no figures: not one row has a loss or a metric. Looked for any of: {columns.EXAMPLE}.")
    passes, per_epoch = _epochs(step[rows], epoch[rows])
    renamed = _WHOLE if not log.where(*_WHOLE.values()).any() and (by_trainer or _is_whole(log, step, epoch)) else {}
    there = [name for name in log.values if name in histories.NAMES and log.computed[name].any()]
    kept = {renamed.get(name, name): (log.values[name][rows], log.computed[name][rows]) for name in there}
    kept["epoch"] = passes, np.isfinite(passes)
    points = ({"step": at} | {name: v[i] for name, (v, computed) in kept.items() if computed[i]} for i, at in enumerate(step[rows]))
    return histories.from_points(points, **_planned(log, step[rows]) | {"steps_per_epoch": per_epoch} | facts)


def _planned(log: _Log, step: Floats) -> dict[str, Any]:
    """Return what a column with the planned number of steps tells."""
    planned = _natural(log.column("total_steps"))
    planned = planned[planned > 0]
    return {"total_steps": int(planned.max()), "finished": bool(step.max() >= planned.max())} if len(planned) else {}


# ------------------------------------------------------------------ what was not computed


def _drop_minus_one(log: _Log) -> None:
    for name in log.values.keys() & histories.NAMES.keys():
        column = log.values[name]
        if not np.any((column < 0) & (column != -1)):
            log.computed[name] &= column != -1


def _drop_not_computed(log: _Log, *, nan_is_blank: bool) -> None:
    """Leave a figure that is not finite only where it says that the run broke."""
    broken = {name: log.where(name) & np.isinf(log.column(name)) for name in _LOSSES}
    for name in _LOSSES:
        broken[name] |= _is_nan(log, name) if nan_is_blank else log.where(name) & np.isnan(log.column(name))
    broken["grad_norm"] = log.where("grad_norm") & (broken["train_loss"] | (log.finite("train_loss") & (log.column("train_loss") == 0)))
    for name in log.values:
        log.computed[name] = log.finite(name) | broken.get(name, False)


def _is_nan(log: _Log, name: str) -> Bools:
    """Return where a loss column's NaN is a loss that was not a number, and not a blank in other letters.

    It is a blank where another loss of the same row is finite, and everywhere where the column has no other blanks and many gaps between
    its numbers: so a table looks in which one row is of the training and another one of the validation.
    """
    nan = log.where(name) & np.isnan(log.column(name))
    for other in _LOSSES:
        if other != name:
            nan &= ~log.finite(other)
    numbers = np.flatnonzero(log.finite(name))
    gaps = np.count_nonzero(np.isnan(log.column(name)[: numbers[-1]])) if len(numbers) else 0
    return nan & (gaps * 3 <= len(numbers) or not log.where(name).all())


def _from_percent(log: _Log) -> None:
    for name in log.values.keys() & set(columns.SHARES):
        if 1.001 < np.max(log.values[name][log.finite(name)], initial=0) <= 100:
            log.values[name] /= 100


# ------------------------------------------------------------------ steps and epochs


def _on_steps(log: _Log, where: str) -> tuple[Floats, Floats]:
    """Return each row's step, NaN where it has none or no metric, and its epoch as the log counts it.

    Raises: InvalidRequest where the log starts over with other figures.
    """
    rows = log.where(*columns.METRICS)
    step, epoch = (np.where(rows, _natural(log.column(name)), np.nan) for name in ("step", "epoch"))
    has_steps = bool(np.isfinite(step).any())
    key = step if has_steps else epoch
    if (row := _start_over(log, key)) is not None:
        words = f"{where} holds more than one run: row {row + 1} starts over at {'step' if has_steps else 'epoch'} {key[row]:g}"
        raise InvalidRequest(f"{words} with other figures. Hint: give each run a file of its own.")
    if has_steps:
        return step, epoch
    known = np.isfinite(epoch)
    once = [_all_differ(epoch[there & known]) for name, there in log.computed.items() if name in columns.METRICS]
    if not known.any() or not all(once):
        return np.where(rows, np.cumsum(rows), np.nan), epoch
    # Epoch 0 is the base model's, before the training, or the first one.
    first = 0 if epoch[known].min() > 0 or not np.any(log.where("train_loss") & (epoch == 0)) else 1
    if np.all(epoch[known] % 1 == 0):
        return epoch + first, epoch
    ranked = np.full(log.num_rows, np.nan)
    ranked[known] = np.unique(epoch[known], return_inverse=True)[1] + (1 if first or epoch[known].min() > 0 else 0)
    return ranked, epoch


def _natural(column: Floats) -> Floats:
    """Return a column with NaN for what is no step or epoch."""
    return np.where((column >= 0) & (column < _MAX_STEP), column, np.nan)


def _all_differ(column: Floats) -> bool:
    return len(np.unique(column)) == len(column)


def _start_over(log: _Log, key: Floats) -> int | None:
    """Return the row at which the log begins again with other figures at the same steps, or None."""
    there = np.flatnonzero(np.isfinite(key))
    falls = there[1:][np.diff(key[there]) < 0]
    if not len(falls) or len(falls) * 3 > len(there):  # in no order at all
        return None
    for row in falls[key[falls] <= key[there[0]]][:1]:
        conflicts = 0
        for name in log.values.keys() & columns.METRICS:
            figures = np.flatnonzero(np.isfinite(key) & log.computed[name])
            before, after = figures[figures < row], figures[figures >= row]
            _, i, j = np.intersect1d(key[before], key[after], return_indices=True)
            conflicts += int(np.count_nonzero(log.values[name][before[i]] != log.values[name][after[j]]))
        if conflicts >= _CONFLICTS:
            return int(row)
    return None


def _epochs(step: Floats, epoch: Floats) -> tuple[Floats, float | None]:
    """Return how many passes over the data were done at each row, NaN where it cannot be told, and the steps of one.

    Whole numbers are those of the epochs that are done, where each has one step; where epochs have several, the number is that of the
    one going on, and only the borders tell something.
    """
    unknown, known = np.full(len(step), np.nan), np.isfinite(epoch)
    if not known.any():
        return unknown, None
    s, e = step[known], epoch[known]
    if np.any(e % 1):
        last = int(np.argmax(s))
        return epoch, float(s[last] / e[last]) if s[last] > 0 and e[last] > _FIRST_EPOCH else None
    order = np.lexsort((s, e))
    numbers, first = np.unique(e[order], return_index=True)
    begin, end = s[order][first], s[order][np.append(first[1:], len(e)) - 1]
    if len(numbers) == 1:
        is_end = begin[0] == end[0] and begin[0] > 0 and numbers[0] > 0
        return (epoch, float(begin[0] / numbers[0])) if is_end else (unknown, None)
    length = float(np.median(np.diff(begin) / np.diff(numbers)))
    if length <= 0:
        return unknown, None
    if np.any(begin != end):
        return unknown, length
    return epoch + (1 if numbers[0] == 0 and begin[0] >= length / 2 else 0), length


def _is_whole(log: _Log, step: Floats, epoch: Floats) -> bool:
    """Return whether the validation is evidently over the whole set: at most once an epoch."""
    validated = log.where(*_WHOLE) & np.isfinite(step)
    if not validated.any():
        return False
    at = np.unique(np.column_stack((step[validated], epoch[validated])), axis=0)[:, 1]
    return bool(np.all(np.diff(at) >= _AN_EPOCH)) and (len(at) > 1 or bool(at[0] >= _AN_EPOCH))
