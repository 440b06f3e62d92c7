"""Train with `tunesmith train` in a process of its own, as a user does, and read its metrics.jsonl.

`--variant kernels=torch` and `--variant path=modules` take another of its ways to compute than it would choose itself. Arguments that
are not the runners' go to `tunesmith train` as they are.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

from tunesmith.training import batching


def main() -> None:
    """Train and report."""
    parser = measure.parser()
    parser.add_argument("--variant", action="append", default=[], help="NAME=VALUE, see tunesmith_variant.py.")
    arguments, flags = parser.parse_known_args()
    clock = measure.Clock()
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "rows.jsonl", Path(folder) / "run"
        data.write_text("".join(json.dumps(row) + "\n" for row in _for_our_order(measure.rows(arguments.data), arguments.seed)))
        done = subprocess.run([*_command(arguments, data, output), *flags], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        before = 0
        for point in measure.rows(output / "metrics.jsonl"):
            clock.losses.append(point["train_loss"])
            clock.seconds.append((point["tokens_seen"] - before) / point["tokens_per_second"])
            before = point["tokens_seen"]
        plan = json.loads((output / "spec.json").read_text())["resolved"]["plan"]
        if arguments.adapter:
            shutil.copytree(output / "adapter", arguments.adapter)
    measure.report(clock, arguments, {"plan": plan, "flags": flags}, ("tunesmith", "transformers"), resource.RUSAGE_CHILDREN)


def _for_our_order(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return the rows in a file order that the first epoch's shuffle turns into the given one."""
    shuffled = rows.copy()
    for row, place in zip(rows, batching.epoch_order(len(rows), seed, 0), strict=True):
        shuffled[place] = row
    return shuffled


def _command(arguments: Any, data: Path, output: Path) -> list[str]:
    options = {
        "n-steps": arguments.steps, "batch-size": measure.ROWS_PER_STEP, "accumulation-steps": 1, "seed": arguments.seed,
        "lora-rank": measure.RANK, "lora-alpha": measure.ALPHA, "lora-dropout": arguments.dropout, "max-length": measure.MAX_LENGTH,
        "base-learning-rate": measure.LEARNING_RATE, "learning-rate-multiplier": 1, "warmup-ratio": 0, "training-split": "none",
    }  # fmt: skip
    named = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    variant = [str(Path(__file__).parent / "tunesmith_variant.py"), *arguments.variant]
    program = variant if arguments.variant else ["-m", "tunesmith.cli"]
    return [sys.executable, *program, "train", str(data), "--output", str(output), *named]


if __name__ == "__main__":
    main()
