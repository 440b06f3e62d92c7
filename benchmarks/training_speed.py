"""How fast the plain engine trains SmolLM2-135M on the bundled example: tokens per second, with dropout and without.

    python benchmarks/training_speed.py [--steps 12] [--rounds 3]

The variants run in turn, each round in a process of its own, so that a slow minute of the machine hits all of them. The figure is the
median step without the first. Prints a table and writes JSON to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "support-triage" / "train.jsonl"
VARIANTS = {"dropout 0.05": "0.05", "dropout 0": "0"}


def main() -> None:
    """Run the rounds and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    plan = {}
    for _ in range(arguments.rounds):
        for name, dropout in VARIANTS.items():
            median, plan = _run(dropout, arguments.steps)
            speeds[name].append(median)
            print(f"{name}: {median:.0f} tokens/s", file=sys.stderr)
    rows = {name: {"median": statistics.median(values), "range": [min(values), max(values)]} for name, values in speeds.items()}
    print(f"{'variant':<14} {'tokens/s':>9}  range")
    for name, row in rows.items():
        print(f"{name:<14} {row['median']:>9.0f}  {row['range'][0]:.0f}-{row['range'][1]:.0f}")
    result = {"benchmark": "training_speed", "date": time.strftime("%Y-%m-%d"), "machine": plan, "tokens_per_second": rows}
    (ROOT / "benchmarks" / "results" / "training_speed.json").write_text(json.dumps(result, indent=2) + "\n")


def _run(dropout: str, steps: int) -> tuple[float, dict[str, object]]:
    """Train for a few steps in a process of its own; return the median step's tokens per second and the execution plan."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "tunesmith.cli", "train", str(EXAMPLE), "--output", folder, "--n-steps", str(steps),
            "--lora-dropout", dropout,
            "--training-split", "none", "--base-learning-rate", "auto", "--learning-rate-multiplier", "1",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        points = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        plan: dict[str, object] = json.loads((Path(folder) / "spec.json").read_text())["resolved"]["plan"]
    return statistics.median(point["tokens_per_second"] for point in points if point["step"] > 1), plan


if __name__ == "__main__":
    main()
