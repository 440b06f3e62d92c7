"""Whether the fast way learns as well: held-out loss after the same training by Tunesmith and by TRL in float32.

    python benchmarks/quality.py [--steps 60] [--seeds 1,2] [--data FILE]

Both train on the same short rows in the same order at the same learning rates; one neutral evaluator (transformers and PEFT, float32)
computes the loss of every adapter on rows that none has seen. What two seeds differ by is the noise that a difference between engines
is to be read against. Writes benchmarks/results/quality.json and the table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contenders
import machine
import numpy as np
import page
import rows
from contenders import OURS, Contender
from transformers import AutoTokenizer

from tunesmith.training import data

RESULTS = contenders.ROOT / "benchmarks" / "results" / "quality.json"
ROWS_PER_STEP, HELD_OUT, LONGEST = 16, 64, 128
REFERENCE = "trl-fp32"
CONTENDERS = (
    Contender(REFERENCE, "TRL, float32", "trl"),
    Contender("ours-cpu", "Tunesmith, C++ kernels", OURS, contenders.CPU_KERNELS),
    Contender("ours-torch", "Tunesmith, kernels in plain torch", OURS, contenders.TORCH_KERNELS),
)


def main() -> None:
    """Train all, evaluate all, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2])
    parser.add_argument("--data", type=Path, help="Chat rows to use instead of made ones.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="Only write the table again.")
    arguments = parser.parse_args()
    if not arguments.render:
        _measure(arguments)
    result = json.loads(arguments.output.read_text())
    if arguments.output == RESULTS:
        page.write("quality", _table(result))
    print(_table(result))


def _measure(arguments: argparse.Namespace) -> None:
    count = arguments.steps * ROWS_PER_STEP
    short = _short_rows(arguments.data, count + HELD_OUT)
    entries: dict[str, dict[str, Any]] = {c.name: {"title": c.title, "losses": {}, "held_out": {}} for c in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        adapters = _train(Path(folder), short[HELD_OUT:], arguments, entries)
        held_out = Path(folder) / "held-out.jsonl"
        held_out.write_text(rows.lines(short[:HELD_OUT]))
        losses = _evaluate(held_out, list(adapters.values()))
    for (name, seed), loss in zip(adapters, losses["adapters"], strict=True):
        entries[name]["held_out"][seed] = loss
    settings = {"steps": arguments.steps, "rows_per_step": ROWS_PER_STEP, "held_out_rows": HELD_OUT, "longest": LONGEST}
    result = {"machine": machine.describe(), "settings": settings, "base": losses["base"], "contenders": entries}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _train(folder: Path, training: list[Any], arguments: argparse.Namespace, entries: dict[str, Any]) -> dict[tuple[str, int], Path]:
    """Train every contender with every seed, which also orders the rows; return the adapters of those that ran."""
    adapters = {}
    for seed in arguments.seeds:
        path = folder / f"train-{seed}.jsonl"
        path.write_text(rows.lines([training[row] for row in np.random.default_rng(seed).permutation(len(training))]))
        for contender in CONTENDERS:
            print(f"==> {contender.title}, seed {seed}", file=sys.stderr)
            adapter = folder / f"{contender.name}-{seed}"
            try:
                entries[contender.name]["losses"][seed] = contenders.train(contender, path, arguments.steps, seed, adapter)["losses"]
            except contenders.Failed as failed:
                entries[contender.name]["failed"] = str(failed)
                print(f"{contender.name}: did not run: {failed}", file=sys.stderr)
                continue
            adapters[contender.name, seed] = adapter
    return adapters


def _short_rows(path: Path | None, count: int) -> list[Any]:
    """Return the first `count` rows of at most LONGEST tokens."""
    candidates = [json.loads(line) for line in path.read_text().splitlines()] if path else rows.chat(4 * count)
    renderer = data.Renderer(AutoTokenizer.from_pretrained(contenders.base()))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(rows.lines(candidates))
        file.flush()
        lengths = [len(example) for example in data.load(Path(file.name), renderer.tokenizer, 10**6).examples]
    short = [row for row, length in zip(candidates, lengths, strict=True) if length <= LONGEST]
    if len(short) < count:
        sys.exit(f"{len(short)} rows have at most {LONGEST} tokens; {count} are needed.")
    return short[:count]


def _evaluate(held_out: Path, adapters: Sequence[Path]) -> dict[str, Any]:
    """Return the loss of the base and of every adapter, computed by the reference's environment."""
    command = [contenders.python("trl"), contenders.PEERS / "judge.py", "--model", contenders.base(), "--data", held_out]
    return contenders.report([*command, "--adapters", *adapters])


def _table(result: dict[str, Any]) -> str:
    """Return held-out loss by contender and seed, its difference to the reference, and the noise between seeds."""
    entries, settings = result["contenders"], result["settings"]
    reference = entries[REFERENCE]["held_out"]
    lines = []
    for entry in entries.values():
        losses = entry["held_out"]
        each = [f"{losses[seed]:.4f}" if seed in losses else "–" for seed in reference]
        gaps = [losses[seed] - reference[seed] for seed in losses if seed in reference]
        whole = len(gaps) == len(reference)
        lines.append([entry["title"], *each, *((f"{statistics.mean(gaps):+.4f}", f"{_spread(losses):.4f}") if whole else ("–", "–"))])
    head = ("", *(f"seed {seed}" for seed in reference), "minus TRL float32, mean", "between seeds")
    told = (
        f"{settings['steps']} steps of {settings['rows_per_step']} rows; loss on {settings['held_out_rows']} held-out rows, "
        f"{result['base']:.4f} before training."
    )
    return f"{told}\n\n{page.table(head, lines)}"


def _spread(losses: dict[str, float]) -> float:
    return max(losses.values()) - min(losses.values())


if __name__ == "__main__":
    main()
