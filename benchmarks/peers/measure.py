"""What every runner shares: its arguments, the clock of its steps, and the one JSON line it ends with. Knows no peer.

A runner is executed by its own environment's Python with this folder on its path, and prints the line as its last.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROWS_PER_STEP = 16
LEARNING_RATE = 2e-4
RANK, ALPHA = 16, 32
MAX_LENGTH = 1024
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def parser() -> argparse.ArgumentParser:
    """Return a parser with the arguments that all runners take."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument("--data", type=Path, required=True, help="Chat rows, JSONL, in the order of the steps.")
    arguments.add_argument("--steps", type=int, required=True)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--seed", type=int, default=42)
    arguments.add_argument("--adapter", type=Path, help="Where to keep the trained adapter.")
    arguments.add_argument("--batch", type=int, default=4, help="Rows per forward pass; 16 make a step.")
    arguments.add_argument("--dropout", type=float, default=0.0)
    return arguments


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def messages_and_answer(row: dict[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return what is read and what is learned: the last message."""
    return row["messages"][:-1], row["messages"][-1:]


@dataclass
class Clock:
    """Wall time of each step, from the end of the one before; the first from `start`."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _last: float = 0.0

    def start(self) -> None:
        """Begin the first step."""
        self._last = time.perf_counter()

    def step(self) -> None:
        """End a step."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def report(
    clock: Clock, arguments: argparse.Namespace, settings: dict[str, Any], packages: tuple[str, ...], who: int = resource.RUSAGE_SELF
) -> None:
    """Print the one line and leave; libraries' threads and reports at exit are not waited for. `who`: as getrusage's."""
    words = {
        "seconds": clock.seconds,
        "losses": clock.losses,
        "peak_rss_mb": resource.getrusage(who).ru_maxrss / 1024,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *packages)},
        "settings": {"threads": arguments.threads, "lora_dropout": arguments.dropout, "batch": arguments.batch, **settings},
    }
    print(f"\n{json.dumps(words)}", flush=True)
    sys.stderr.flush()
    os._exit(0)
