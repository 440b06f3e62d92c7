"""What the files of a job or a run show before training. Knows who examines rows, not what they look for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tunesmith.diagnosis import dataset
from tunesmith.domain import datasets
from tunesmith.domain.findings import Finding


def examine(
    training: Path, validation: Path | None, *, split: float | None = None, beat: Callable[[], None] = lambda: None
) -> list[Finding]:
    """Return the findings about two files that `datasets.check` accepted; `split` and `beat` as in `diagnosis.dataset.examine`."""
    with ExitStack() as stack:
        rows = datasets.read(stack.enter_context(training.open("rb")))
        others = datasets.read(stack.enter_context(validation.open("rb"))) if validation else None
        return dataset.examine(rows, others, split=split, beat=beat)
