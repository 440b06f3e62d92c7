"""How fast Tunesmith trains beside its peers, and how near both come to what the machine's matrix products allow.

    python benchmarks/training.py [--only ours,trl-fp32] [--rounds 3] [--steps 5] [--rows chat] [--data FILE] [--render]

All train the same model on the same rows in the same order, 16 rows a step. They run in turn, each run in a process of its own, so
that a slow minute of the machine hits all of them. Raw figures go to benchmarks/results/training.json, the table to
docs/performance.md; `--render` makes the table again from the file. What is measured in part goes to .bench/ and to the screen only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import contenders
import machine
import page
import rows
from transformers import AutoTokenizer

from tunesmith import hardware
from tunesmith.training import data

RESULTS = contenders.ROOT / "benchmarks" / "results" / "training.json"
ROWS_PER_STEP, MAX_LENGTH, _SEED = 16, 1024, 0
_SHARED = ["ours", "ours-unshared", "trl-fp32", "trl-best", "litgpt", "llamafactory"]
_SETS = {"chat": [c.name for c in contenders.TRAINING if c.name != "ours-unshared"], "shared-prefix": _SHARED}


def main() -> None:
    """Measure and write, or only write the tables."""
    arguments = _arguments()
    if not arguments.render:
        _measure(arguments)
    tables = page.training(json.loads(arguments.output.read_text()))
    if arguments.output == RESULTS:
        page.write("training", tables)
    print(tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), help="Contenders, by name: " + ", ".join(_SETS["chat"]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(_SETS), help="Sets of rows: " + ", ".join(_SETS))
    parser.add_argument("--data", type=Path, help="Measure on these chat rows instead.")
    parser.add_argument(
        "--output", type=Path, help="Where the raw figures go. Default: benchmarks/results, or .bench with --only or --data."
    )
    parser.add_argument("--render", action="store_true", help="Only write the tables again.")
    arguments = parser.parse_args()
    if unknown := {*(arguments.only or ())} - {*_SETS["chat"]} or {*arguments.rows} - {*_SETS}:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    partial = arguments.only or arguments.data or arguments.rows != list(_SETS)
    arguments.output = arguments.output or (contenders.ENVIRONMENTS / RESULTS.name if partial else RESULTS)
    return arguments


def _measure(arguments: argparse.Namespace) -> None:
    """Go round the contenders; the results so far are on disk after every round."""
    with tempfile.TemporaryDirectory() as folder:
        files = _row_files(arguments, Path(folder))
        result: dict[str, Any] = {
            "machine": machine.describe(),
            "settings": {"rounds": arguments.rounds, "steps": arguments.steps, "rows_per_step": ROWS_PER_STEP},
            "sets": {name: {**_counts(path), "floor": [], "contenders": {}} for name, path in files.items()},
            "did_not_run": contenders.DID_NOT_RUN,
        }
        for number in range(1, arguments.rounds + 1):
            for name, path in files.items():
                print(f"==> Round {number} of {arguments.rounds}, {name}", file=sys.stderr)
                _round(result["sets"][name], path, arguments, _SETS.get(name, _SETS["chat"]))
            arguments.output.parent.mkdir(exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _row_files(arguments: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Write each set's rows in the order of the steps; return the files by the sets' names."""
    count = arguments.steps * ROWS_PER_STEP
    if arguments.data:
        sets = {"own": [json.loads(line) for line in arguments.data.read_text().splitlines()[:count]]}
        if len(sets["own"]) < count:
            sys.exit(f"{arguments.data} has {len(sets['own'])} rows; {arguments.steps} steps need {count}.")
    else:
        sets = {name: rows.KINDS[name](count, _SEED) for name in arguments.rows}
    files = {name: folder / f"{name}.jsonl" for name in sets}
    for name, path in files.items():
        path.write_text(rows.lines(sets[name]))
    return files


def _counts(path: Path) -> dict[str, list[int]]:
    """Return the tokens of each step, without padding, and those of them that the loss is taken over."""
    examples = data.load(path, AutoTokenizer.from_pretrained(contenders.base()), MAX_LENGTH).examples
    steps = [examples[start : start + ROWS_PER_STEP] for start in range(0, len(examples), ROWS_PER_STEP)]
    return {"tokens": [sum(map(len, step)) for step in steps], "targets": [sum(e.num_targets for e in step) for step in steps]}


def _round(result: dict[str, Any], path: Path, arguments: argparse.Namespace, names: list[str]) -> None:
    """Measure the floor, then each contender once."""
    floor = [sys.executable, Path(__file__).parent / "floor.py", "--threads", str(hardware.physical_cores())]
    middle = sorted(range(len(result["tokens"])), key=result["tokens"].__getitem__)[len(result["tokens"]) // 2]
    result["floor"].append(
        contenders.report([*floor, "--tokens", str(result["tokens"][middle]), "--targets", str(result["targets"][middle])])
    )
    for contender in contenders.TRAINING:
        if contender.name not in (arguments.only or names) or contender.name not in names:
            continue
        entry = result["contenders"].setdefault(contender.name, {"title": contender.title, "runs": []})
        try:
            run = contenders.train(contender, path, arguments.steps)
        except contenders.Failed as failed:
            entry["failed"] = str(failed)
            print(f"{contender.name}: did not run: {failed}", file=sys.stderr)
            continue
        entry["runs"].append(run)
        print(f"{contender.name}: {page.speed(run['seconds'], result['tokens']):.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main()
