"""Tunesmith's own run folder, the one that `tunesmith train` leaves or is still writing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.diagnosis import dataset
from tunesmith.diagnosis import history as histories
from tunesmith.diagnosis.history import History, Rows
from tunesmith.domain.findings import Finding
from tunesmith.domain.specs import BY_NAME
from tunesmith.errors import InvalidRequest
from tunesmith.logs import files, tables


def suits(text: str) -> bool:
    """Return whether the text is a spec.json."""
    return text.lstrip().startswith("{") and all(f'"{key}"' in text for key in ("model", "asked", "source"))


def read(path: Path, text: str) -> History:
    """Return the history of the run whose spec.json `path` is. Raises: InvalidRequest where it has no figures yet."""
    folder, spec = path.parent, files.document(path, text)
    where = repr(str(folder))
    points = _lines(folder / "metrics.jsonl")
    if not points:
        hint = "Hint: look again after its first steps."
        raise InvalidRequest(f"The run {where} has no figures yet: metrics.jsonl is missing or empty. {hint}")
    said = _lines(folder / "events.jsonl")
    events: dict[str, dict[str, Any]] = {str(event.get("key")): event["data"] for event in said if isinstance(event.get("data"), dict)}
    failed = events.get("failed")
    return history(
        points,
        where,
        resolved=spec.get("resolved") if isinstance(spec, dict) else None,
        row_losses=[*_lines(folder / "row_losses.jsonl"), *_documents(folder / "training_row_losses.json")],
        data_findings=_documents(folder / "data_findings.json"),
        events=events,
        checkpoint_steps=files.numbers(folder / "checkpoints", "step-"),
        finished="failed" in events or (folder / "result.json").is_file(),
        broke_down=failed is not None and failed.get("code") == "non_finite",
    )


def history(
    points: Sequence[Mapping[str, Any]], where: str, *, resolved: Mapping[str, Any] | None, row_losses: Sequence[Mapping[str, Any]],
    data_findings: Sequence[Mapping[str, Any]], events: Mapping[str, Mapping[str, Any]], checkpoint_steps: Sequence[int],
    finished: bool, broke_down: bool = False,
) -> History:  # fmt: skip
    """Return the history of a run of Tunesmith from its records.

    `events` are their data by key, for what was found when rows were tokenized; `broke_down` says that the run failed over a figure that
    is not finite.
    """
    resolved = resolved if isinstance(resolved, Mapping) else {}
    try:
        found_in_data = [*(Finding.from_dict(finding) for finding in data_findings), *_cut_rows(events)]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"What {where} says of its data is not what Tunesmith writes: {error!r}.") from None
    rows = _rows([row for row in row_losses if row.get("of") != "training"])
    found = tables.history(
        points,
        where,
        rows=rows,
        training_rows=_rows([row for row in row_losses if row.get("of") == "training"]),
        data_findings=found_in_data,
        num_validation=len(rows.lines) if rows else None,
        hyperparameters={name: rule.check(resolved[name], name) for name, rule in BY_NAME.items() if name in resolved},
        usual_learning_rate=_usual_learning_rate(resolved),
        checkpoint_steps=checkpoint_steps,
    )
    num_training, per_epoch = _an_epoch(found)
    broken = found.last_step + 1 if broke_down else found.non_finite_step
    return dataclasses.replace(
        found,
        finished=finished,
        non_finite_step=broken,
        num_training=num_training,
        steps_per_epoch=per_epoch or found.steps_per_epoch,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of one of the run's files, however long its lines are; a last line that is cut off is left out."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.endswith(b"\n"):
            begins = line.decode(errors="replace").strip()[:80]
            raise InvalidRequest(f"{str(path)!r}, line {number}, is no JSON object: {begins!r}.")
    return rows


def _spoilt(path: Path) -> InvalidRequest:
    return InvalidRequest(f"{str(path)!r} is not what Tunesmith writes there.")


def _cut_rows(events: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Return the findings about rows that were cut off or left out when they were tokenized."""
    kinds = (("truncated", dataset.truncated_rows), ("dropped", dataset.no_target_rows))
    known = [(find, events.get(f"{kind}:{role}")) for kind, find in kinds for role in ("training", "validation")]
    return [find(**data) for find, data in known if data]


def _documents(path: Path) -> list[dict[str, Any]]:
    """Return the object, or the list of objects, that one of the run's files holds; none where it is not there."""
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        raise _spoilt(path) from None
    content = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in content):
        raise _spoilt(path)
    return content


def _usual_learning_rate(resolved: Mapping[str, Any]) -> float | None:
    """Return the rate that suits the model; a run from before it was noted has it where "auto" chose the base learning rate."""
    reasons = resolved.get("reasons")
    reason = reasons.get("base_learning_rate") if isinstance(reasons, dict) else None
    is_auto = isinstance(reason, str) and reason not in ("asked", "default")
    rate = resolved.get("usual_learning_rate") or (resolved.get("base_learning_rate") if is_auto else None)
    return rate if isinstance(rate, float) and 0 < rate < 1 else None


def _an_epoch(found: History) -> tuple[int | None, float | None]:
    """Return the number of training examples and the steps of an epoch, from the last step within the first one.

    There the epoch is steps x examples of a step / examples.
    """
    size, steps = (found.hyperparameters.get(name) for name in ("batch_size", "accumulation_steps"))
    epochs = found["epoch"]
    within = (epochs.steps > 0) & (epochs.values > 0) & (epochs.values < 1)
    if not within.any() or not isinstance(size, int) or not isinstance(steps, int) or size * steps < 1:
        return None, None
    num_training = round(epochs.steps[within][-1] * size * steps / epochs.values[within][-1])
    return num_training, float(math.ceil(num_training / (size * steps)))


def _rows(evaluations: Sequence[Mapping[str, Any]]) -> Rows | None:
    """Return the rows' losses; evaluations that do not fit the first one, which names the lines, are left out."""
    head = evaluations[0] if evaluations else {}
    if not _are_numbers(head.get("lines")) or not _are_numbers(head.get("num_targets")) or len(head["num_targets"]) != len(head["lines"]):
        return None
    fit = [e for e in evaluations if _are_numbers(e.get("loss")) and len(e["loss"]) == len(head["lines"]) and _is_number(e.get("step"))]
    return histories.rows(fit) if fit and fit[0] is head else None


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_number(cell) for cell in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15
