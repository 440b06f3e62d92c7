"""What the measurements of the diagnosis share: scores, intervals, the table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def macro_f1(truth: Sequence[str], said: Sequence[str]) -> float:
    """Return the mean F1 over the classes that are in the truth."""
    scores = []
    for label in sorted(set(truth)):
        hits = sum(a == b == label for a, b in zip(truth, said, strict=True))
        scores.append(2 * hits / (truth.count(label) + said.count(label)) if hits else 0.0)
    return sum(scores) / len(scores)


def wilson(hits: int, count: int, z: float = 1.645) -> list[float]:
    """Return the 90 % interval of a share (Wilson 1927)."""
    if not count:
        return [0.0, 1.0]
    share, square = hits / count, z * z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return [round(middle - half, 3), round(middle + half, 3)]


def report_on(parts: Mapping[str, Mapping[str, Any]], output: Path | None) -> None:
    """Print each part's figures and, where asked, write them as JSON."""
    for name, figures in parts.items():
        print(f"\n{name}")
        for key, value in figures.items():
            print(f"  {key.replace('_', ' '):42} {f'{value:.3f}' if isinstance(value, float) else value}")
    if output:
        output.write_text(json.dumps(parts, indent=2) + "\n")
