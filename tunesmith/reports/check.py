"""`python -m tunesmith.reports.check ORDER`: what is wrong with a training file's lines, and if nothing is, what its data shows.

Knows no tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tunesmith.domain import datasets
from tunesmith.errors import DataError
from tunesmith.reports import child


def report(order: Mapping[str, Any]) -> None:
    """Look into the files `training` and, unless it is null, `validation`."""
    training, validation = Path(order["training"]), order["validation"] and Path(order["validation"])
    if _is_good(training):
        os.nice(5)  # the first figures of tokens, which another child counts, come before the findings
        _examine(training, validation if validation and _is_comparable(validation) else None)


def _is_good(training: Path) -> bool:
    found = _inspect(training)
    errors, num_errors = child.listed(found.errors), found.num_errors
    if not errors:
        try:
            datasets.check_size(found.num_examples, "training")
        except DataError as error:
            errors, num_errors = [{"line": None, "message": error.message}], 1
    child.say(format=found.format, rows=found.num_examples, errors=errors, num_errors=num_errors)
    return not errors


def _is_comparable(validation: Path) -> bool:
    found = _inspect(validation)
    child.say(validation_rows=found.num_examples)
    if found.errors:
        child.say(note=f"The validation file has {found.num_errors} errors, and was not compared. The first: {found.errors[0][1]}")
    return not found.errors


def _inspect(path: Path) -> datasets.Inspection:
    with path.open("rb") as file:
        return datasets.inspect(file, child.MAX_LISTED)


def _examine(training: Path, validation: Path | None) -> None:
    from tunesmith.diagnosis import dataset  # noqa: PLC0415 - brings numpy; the errors are out before

    with ExitStack() as stack:
        rows = datasets.read(stack.enter_context(training.open("rb")))
        others = datasets.read(stack.enter_context(validation.open("rb"))) if validation else None
        child.say(findings=[finding.to_dict() for finding in dataset.examine(rows, others)])


if __name__ == "__main__":
    child.obey(report)
