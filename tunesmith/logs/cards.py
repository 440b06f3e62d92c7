"""Model cards: the table of training results and the list of hyperparameters that Hugging Face's Trainer writes, in Markdown.

A card's validation is over the whole set. Tables that people wrote are read too, with or without a step.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.diagnosis.history import History
from tunesmith.domain.specs import BY_NAME
from tunesmith.errors import InvalidRequest
from tunesmith.logs import columns, points

#: "- learning_rate: 2e-05", also with marks of emphasis.
_ITEM = re.compile(r"[-*+]\s+[*_`]*([A-Za-z][A-Za-z _-]{2,60}?)[*_`]*\s*[:=][*_`]*\s*(\S.*)")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
#: Characters of a card; the longest have some 100,000.
_MAX_CARD = 4 * 2**20
#: Characters of a line that may be an item of the list.
_MAX_ITEM = 300
#: A training loss under this may well be the same to four digits; above it, one that repeats is the last one logged, written again.
_REPEATS = 0.01
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}

#: The line of a table's head, its names, its rows.
Table = tuple[int, list[str], list[list[str]]]


def suits(text: str) -> bool:
    """Return whether the text is Markdown: it begins with a heading or with YAML, or has a table."""
    first = text.lstrip().partition("\n")[0].strip()
    return first == "---" or bool(re.match(r"#{1,6} ", first)) or next(_tables(text[:_MAX_CARD]), None) is not None


def read(path: Path, text: str) -> History:
    """Return the history in a model card. Raises: InvalidRequest where there is no table of training results, or more than one."""
    where = repr(str(path))
    if len(text) > _MAX_CARD:
        raise InvalidRequest(f"{where} begins as a model card does, and is over {_MAX_CARD >> 20} MB. Hint: save its table as a CSV.")
    found = [table for table in _tables(text) if _is_results(table)]
    of_trainer = [table for table in found if {"step", "epoch", "train_loss"} <= _series(table)]
    found = of_trainer if len(of_trainer) == 1 else found
    if len(found) != 1:
        there = f"{len(found)} of them, at lines {', '.join(str(line) for line, _, _ in found[:8])}" if found else "none"
        hint = "save the table that counts as a CSV" if found else f"a CSV with some of the columns {columns.EXAMPLE} always works"
        words = "Looked for one table of training results, with the columns Epoch or Step, and Training Loss or Validation Loss; found"
        raise InvalidRequest(f"{where} is a model card. {words} {there}. Hint: {hint}.")
    _, names, rows = found[0]
    chosen = columns.choose(names, where)
    figures = {ours: [_cell(row, names.index(name)) for row in rows] for ours, name in chosen.items()}
    if "train_loss" in figures:
        figures["train_loss"] = _once(figures["train_loss"])
    history = points.history(figures, where, by_trainer=True)
    values = hyperparameters(text)
    planned = values.get("n_steps") or round(values.get("n_epochs", 0) * (history.steps_per_epoch or 0))
    total = max(planned, history.last_step) if planned else None
    return dataclasses.replace(history, hyperparameters=hyperparameters(text, total), total_steps=total)


def hyperparameters(text: str, total_steps: int | None = None) -> dict[str, Any]:
    """Return a card's hyperparameters in our names; a warm-up in steps becomes a ratio where the number of steps is known."""
    items: dict[str, str] = {}
    for line in text[:_MAX_CARD].split("\n"):
        if len(line) <= _MAX_ITEM and (match := _ITEM.match(line.strip())):
            items.setdefault(columns.plain(match[1]), match[2].strip("*_` "))
    said = {name: _first_number(value) for name, value in items.items()}
    values: dict[str, Any] = learning_rate(said.get("learning_rate"))
    steps, whole = said.get("gradient_accumulation_steps") or 1, said.get("total_train_batch_size")
    size = whole / steps if whole else said.get("train_batch_size") or said.get("per_device_train_batch_size")  # of all devices
    epochs = said.get("num_epochs") or said.get("num_train_epochs")
    values |= _whole_numbers({"batch_size": size, "accumulation_steps": steps if size else None, "n_epochs": epochs})
    values |= _whole_numbers({"n_steps": said.get("training_steps"), "seed": said.get("seed")})
    schedule = (items.get("lr_scheduler_type") or items.get("learning_rate_scheduler_type") or "").rpartition(".")[2].lower()
    if schedule in _SCHEDULES:
        values["learning_rate_schedule"] = _SCHEDULES[schedule]
    ratio = said.get("lr_scheduler_warmup_ratio") or said.get("warmup_ratio")
    warmup = said.get("lr_scheduler_warmup_steps") or said.get("warmup_steps")
    if not ratio and warmup:  # newer versions write a ratio here too
        ratio = warmup if warmup < 1 else warmup / total_steps if total_steps else None
    if ratio and 0 < ratio < 1:
        values["warmup_ratio"] = ratio
    return in_our_ranges(values)


def adapter(text: str, total_steps: int | None = None) -> dict[str, Any]:
    """Return the hyperparameters in PEFT's adapter_config.json, with the arguments of `hyperparameters`."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return {}
    there = {"lora_rank": config.get("r"), "lora_alpha": config.get("lora_alpha"), "lora_dropout": config.get("lora_dropout")}
    return in_our_ranges({"tuning": "lora"} | {name: value for name, value in there.items() if value is not None})


def in_our_ranges(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that our hyperparameters may have; a batch over the limit becomes several accumulation steps of the same update."""
    size, steps = values.get("batch_size", 1), values.get("accumulation_steps", 1)
    most = int(BY_NAME["batch_size"].maximum or size)
    if parts := next((k for k in range(2, most + 1) if size > most and size % k == 0 and size // k <= most), 0):
        values = {**values, "batch_size": size // parts, "accumulation_steps": steps * parts}
    fitting = {}
    for name, value in values.items():
        try:
            fitting[name] = BY_NAME[name].check(value, name)
        except InvalidRequest:
            continue
    return fitting


def learning_rate(rate: float | None) -> dict[str, float]:
    """Return a learning rate as the product of our two names."""
    return {"base_learning_rate": 1.0, "learning_rate_multiplier": rate} if rate and 0 < rate < 1e6 else {}


def _tables(text: str) -> Iterator[Table]:
    """Yield the tables that have a rule of dashes under their head."""
    lines = text.split("\n")
    at = 1
    while at < len(lines):
        if not _is_rule(lines[at]) or "|" not in lines[at - 1]:
            at += 1
            continue
        head, rows = at, []
        at += 1
        while at < len(lines) and "|" in lines[at]:
            rows.append(_split(lines[at]))
            at += 1
        yield head, _split(lines[head - 1]), rows


def _is_rule(line: str) -> bool:
    return "-" in line and "|" in line and not line.strip().strip("|-: \t")


def _split(line: str) -> list[str]:
    line = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]


def _series(table: Table) -> set[str]:
    plain = {columns.plain(name) for name in table[1]}
    return {ours for ours, spellings in columns.SPELLINGS.items() if not plain.isdisjoint(spellings)}


def _is_results(table: Table) -> bool:
    series = _series(table)
    return not series.isdisjoint({"step", "epoch"}) and not series.isdisjoint({"train_loss", "valid_loss", "full_valid_loss"})


def _cell(row: Sequence[str], at: int) -> float | None:
    """Return a cell's number; words and pictures beside figures are no figures."""
    try:
        return columns.number(row[at]) if at < len(row) else None
    except ValueError:
        return None


def _once(losses: Sequence[float | None]) -> list[float | None]:
    """Leave a repeated training loss out: each evaluation's row repeats the last one that was logged."""
    before = [None, *losses][:-1]
    return [None if loss is not None and loss == last and loss >= _REPEATS else loss for loss, last in zip(losses, before, strict=True)]


def _first_number(value: str) -> float | None:
    match = _NUMBER.match(value)
    return float(match[0]) if match and len(match[0]) < 40 else None


def _whole_numbers(values: Mapping[str, float | None]) -> dict[str, int]:
    return {name: int(value) for name, value in values.items() if value is not None and 0 <= value < 1e12 and value == int(value)}
