"""The file that the runs with known causes are kept in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl.gz"

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """Return the records of a file, or none."""
    if not path.exists():
        return []
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def append(path: Path, record: Record) -> None:
    """Add a record in one write, so that several processes may: a gzip file may have several members."""
    with path.open("ab", buffering=0) as file:
        file.write(gzip.compress((json.dumps(record, separators=(",", ":")) + "\n").encode()))
