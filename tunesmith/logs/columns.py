"""What others call our series: Hugging Face, OpenAI, Azure, Keras, Lightning, W&B, spreadsheets. Knows names and numbers, no files.

A name counts without its case and punctuation: "Training Loss", `train/loss` and `training_loss` differ only in their words.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunesmith.diagnosis.history import NAMES
from tunesmith.errors import InvalidRequest

EXAMPLE = "step,epoch,train_loss,valid_loss,full_valid_loss,train_accuracy,valid_accuracy,accuracy,precision,recall,f1,learning_rate"

#: Series that say something of the run on their own.
METRICS = frozenset(NAMES) - {"learning_rate", "grad_norm", "epoch"}
#: Those that lie between 0 and 1, and are in percent in some logs.
SHARES = ("train_accuracy", "valid_accuracy", "full_valid_accuracy", "accuracy", "precision", "recall", "f1")


def _of(parts: Sequence[str], *forms: str) -> tuple[str, ...]:
    return tuple(part + form for form, part in itertools.product(forms, parts))


def _scores(name: str, *others: str) -> tuple[str, ...]:
    """Return the spellings of a classifier's score: the plain one, then macro and weighted averages. Micro is only accuracy."""
    forms = (name, f"{name}_macro", f"macro_{name}", *others, f"overall_{name}", f"{name}_weighted", f"weighted_{name}")
    return _of(("", "eval_", "valid_", "val_", "validation_", "classification_"), *forms)


_TOKENS = ("accuracy", "mean_token_accuracy", "token_accuracy", "acc")
_VALID = ("valid_", "validation_", "val_", "dev_", "test_")
#: Our name -> its spellings, the preferred first.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "step": (*_of(("", "train_", "trainer_"), "step", "global_step"), "current_steps", "step_number", "steps", "iteration", "iter"),
    "epoch": ("epoch", "train_epoch", "epochs"),
    "total_steps": ("total_steps", "max_steps"),
    "train_loss": ("train_loss", "training_loss", "loss", "train_loss_step", "train_loss_epoch", "tr_loss"),
    "train_accuracy": (*_of(("train_", "training_"), *_TOKENS), "mean_token_accuracy"),
    "valid_loss": _of(_VALID, "loss"),
    "valid_accuracy": _of(_VALID, *_TOKENS),
    "full_valid_loss": ("full_valid_loss", "full_validation_loss", "eval_loss", "evaluation_loss"),
    "full_valid_accuracy": (*_of(("full_valid_", "full_validation_"), *_TOKENS), "eval_mean_token_accuracy", "eval_token_accuracy"),
    "accuracy": ("accuracy", "eval_accuracy", "classification_accuracy", "acc", "eval_acc", "overall_accuracy", "eval_overall_accuracy"),
    "precision": _scores("precision"),
    "recall": _scores("recall"),
    "f1": (*_scores("f1", "f1_score", "f1_score_macro", "macro_f1_score", "f1_score_weighted", "weighted_f1_score"), "classification_f1_0"),
    "learning_rate": ("learning_rate", "lr", "train_learning_rate", "train_lr"),
    "grad_norm": ("grad_norm", "gradient_norm", "train_grad_norm"),
}
_KNOWN = frozenset(spelling for spellings in SPELLINGS.values() for spelling in spellings)
#: Words for "not computed".
_BLANK = frozenset(("", "-", "--", "–", "—", "n/a", "na", "#n/a", "none", "null", "nil", "no log", "?", "..."))


def plain(name: str) -> str:
    """Return a name without case and punctuation; W&B's `run - metric` without the run."""
    return re.sub(r"[^0-9a-z]+", "_", name.rpartition(" - ")[2].lower()).strip("_")


def is_known(name: str) -> bool:
    """Return whether a column's name is that of a series, a step or an epoch."""
    return plain(name) in _KNOWN


def choose(names: Iterable[str], where: str) -> dict[str, str]:
    """Return our name -> the log's own name, for each series that is there; of several spellings the preferred one.

    A bare `accuracy` beside one of the validation is the training's, as Keras writes it. Raises: InvalidRequest for a
    name that is there twice.
    """
    there: dict[str, list[str]] = {}
    for name in names:
        there.setdefault(plain(name), []).append(name)
    chosen = {}
    for ours, spellings in SPELLINGS.items():
        found = next((there[spelling] for spelling in spellings if spelling in there), [])
        if len(found) > 1:
            words = ", ".join(repr(name[:60]) for name in found[:4])
            raise InvalidRequest(f"{where} has {len(found)} columns for {ours}: {words}. Hint: leave one; a log is of one run.")
        if found:
            chosen[ours] = found[0]
    if "train_accuracy" not in chosen and "valid_accuracy" in chosen and plain(chosen.get("accuracy", "")) in ("accuracy", "acc"):
        chosen["train_accuracy"] = chosen.pop("accuracy")
    return chosen


def require(chosen: Mapping[str, str], names: Iterable[str], where: str) -> None:
    """Raise InvalidRequest, naming what is there, where no column says how good the model was."""
    if METRICS & chosen.keys():
        return
    there = [repr(name[:40]) for name in names]
    words = ", ".join(there[:12]) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
    raise InvalidRequest(f"{where} has no column with a loss or a metric, only {words or 'none'}. Looked for any of: {EXAMPLE}.")


def number(value: Any, *, decimal_comma: bool = False) -> float | None:
    """Return a cell's number, None where nothing was computed; "nan" is a number, "87.5%" is 0.875.

    Raises: ValueError for other words.
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return _float(value)
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} is no number")
    word = value[:100].strip().strip("*`_").strip().lower()
    if word in _BLANK:
        return None
    if decimal_comma and re.fullmatch(r"[+-]?\d+,\d+(e[+-]?\d+)?%?", word):
        word = word.replace(",", ".")
    return _float(word.removesuffix("%")) / 100 if word.endswith("%") else _float(word)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
