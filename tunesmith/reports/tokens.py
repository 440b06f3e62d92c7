"""`python -m tunesmith.reports.tokens ORDER`: how long a training file's rows are in a model's tokens; some rows first, then all.

Templates and target tokens are training's own, so that what is counted is what is trained on.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith import hardware, processes
from tunesmith.diagnosis import dataset
from tunesmith.domain import datasets
from tunesmith.domain.datasets import Example
from tunesmith.errors import InvalidRequest
from tunesmith.reports import child
from tunesmith.training.data import Dataset, Renderer

#: Rows that are looked at first, evenly spread over the file; fewer where so many have more bytes than this.
SAMPLE, _SAMPLE_BYTES = 1000, 2**20
_PART_BYTES = 2**19
_MOST_PROCESSES = 8
#: Bars of the histogram for all but the longest hundredth of the rows, which has one more.
_BARS = 24


@dataclass(frozen=True)
class Part:
    """Whole lines of a file: `size` bytes from `start` on, the first of them line `first`."""

    start: int
    size: int
    first: int


@dataclass
class Measured:
    """What tokenizing rows showed. `lengths` are those before anything is cut."""

    lengths: list[int] = field(default_factory=list)
    total: int = 0
    target: int = 0
    truncated: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Take in what other rows showed."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Job:
    """A file, and how to tokenize it."""

    def __init__(self, path: Path, renderer: Renderer, max_length: int) -> None:
        self.path, self.renderer, self.max_length = path, renderer, max_length

    def measure(self, examples: Iterable[Example]) -> Measured:
        """Tokenize some rows."""
        found, kept = Measured(), Dataset([])
        for example in examples:
            try:
                tokenized = self.renderer.tokenize(example)
            except InvalidRequest as error:
                found.errors.append((example.line, error.message))
            else:
                found.lengths.append(len(tokenized))
                kept.add(tokenized, self.max_length)
        found.total, found.target = kept.num_tokens, sum(example.num_targets for example in kept.examples)
        found.truncated, found.dropped = kept.truncated_lines, kept.dropped_lines
        return found

    def examples(self, part: Part, stride: int) -> Iterator[Example]:
        """Yield every so many-th row of a part."""
        with self.path.open("rb") as file:
            file.seek(part.start)
            for number, line in enumerate(file.read(part.size).split(b"\n"), part.first):
                if number % stride == 0:
                    yield from datasets.read([line], number)


#: Set before the processes that share the work are forked.
_job: Job


def report(order: Mapping[str, Any]) -> None:
    """Look into the file `training` with the tokenizer in the directory `base`; rows longer than `max_length` are cut."""
    global _job
    path = Path(order["training"])
    parts, rows = _parts(path)
    _job = Job(path, Renderer(child.tokenizer(Path(order["base"]))), order["max_length"])
    workers = min(len(parts), hardware.physical_cores(), _MOST_PROCESSES)
    with multiprocessing.get_context("fork").Pool(workers, processes.die_with_parent) as pool:
        for stride in sorted({1, max(1, rows // SAMPLE, path.stat().st_size // _SAMPLE_BYTES)}, reverse=True):
            found = Measured()
            for part in pool.imap(_measure, [(part, stride) for part in parts]):
                found.add(part)
            _tell(found, rows, _job.max_length)


def _measure(task: tuple[Part, int]) -> Measured:
    return _job.measure(_job.examples(*task))


def _parts(path: Path) -> tuple[list[Part], int]:
    """Cut a file into parts; return them and the number of its last line that is not blank."""
    parts, start, first, rows = [], 0, 1, 0
    with path.open("rb") as file:
        while block := file.read(_PART_BYTES) + file.readline():
            if text := block.rstrip():
                rows = first + text.count(b"\n")
            parts.append(Part(start, len(block), first))
            start, first = start + len(block), first + block.count(b"\n")
    return parts, rows


def _tell(found: Measured, rows: int, max_length: int) -> None:
    of_rows = len(found.lengths) + len(found.errors)
    cut = []
    if of_rows == rows:
        of = len(found.lengths)
        told = ((found.truncated, dataset.truncated_rows), (found.dropped, dataset.no_target_rows))
        cut = [said("training", len(lines), of, lines, max_length).to_dict() for lines, said in told if lines]
    child.say(
        tokens=_figures(found, of_rows, rows, max_length) if found.lengths else None,
        errors=child.listed(found.errors), num_errors=len(found.errors), findings=cut,
    )  # fmt: skip


def _figures(found: Measured, of_rows: int, rows: int, max_length: int) -> dict[str, Any]:
    lengths = np.array(found.lengths)
    edges = _edges(lengths)
    median, p95 = np.percentile(lengths, (50, 95))
    return {
        "of_rows": of_rows, "rows": rows, "total": round(found.total * rows / of_rows), "target": round(found.target * rows / of_rows),
        "mean": float(lengths.mean()), "median": round(median), "p95": round(p95), "max": int(lengths.max()),
        "edges": edges.tolist(), "counts": np.histogram(lengths, edges)[0].tolist(),
        "max_length": max_length, "truncated": len(found.truncated), "dropped": len(found.dropped),
    }  # fmt: skip


def _edges(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    usual, longest = np.percentile(lengths, 99), lengths.max()
    step = max(1, -(-int(usual) // _BARS))
    edges = np.arange(0, usual + step, step, dtype=np.int64)
    return edges if longest < edges[-1] else np.append(edges, longest + 1)


if __name__ == "__main__":
    child.obey(report)
