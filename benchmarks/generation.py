"""How fast Tunesmith answers many at once, beside transformers' `generate` called for one after the other.

    python benchmarks/generation.py [--rounds 3] [--requests 8] [--tokens 64] [--render]

The same prompts, type and library versions, greedy. The sides take turns, each in a process of its own; both have computed something
before the clock starts. Raw figures go to benchmarks/results/generation.json, the table to docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contenders
import machine
import page
import rows
from transformers import AutoTokenizer

from tunesmith import hardware
from tunesmith.inference import backend

RESULTS = contenders.ROOT / "benchmarks" / "results" / "generation.json"
TITLES = {"tunesmith": "Tunesmith, all at once", "transformers": "transformers `generate`, one after the other"}
#: The server's child that computes has it too.
_ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {"tunesmith": backend.ENVIRONMENT, "transformers": {}}


def main() -> None:
    """Measure and write, or only write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="New tokens of each.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="Only write the table again.")
    arguments = parser.parse_args()
    if not arguments.render:
        _measure(arguments)
    result = json.loads(arguments.output.read_text())
    if arguments.output == RESULTS:
        page.write("generation", _table(result))
    print(_table(result))


def _measure(arguments: argparse.Namespace) -> None:
    """Let the sides take turns."""
    sides: dict[str, list[dict[str, Any]]] = {side: [] for side in TITLES}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as prompts:
        json.dump(_prompts(arguments.requests), prompts)
        prompts.flush()
        asked = ["--model", contenders.base(), "--prompts", prompts.name, "--tokens", str(arguments.tokens)]
        for _ in range(arguments.rounds):
            for side, runs in sides.items():
                command = [sys.executable, contenders.PEERS / f"answer_{side}.py", *asked, "--threads", str(hardware.physical_cores())]
                runs.append(contenders.report(command, _ENVIRONMENTS[side]))
                print(f"{side}: {arguments.requests * arguments.tokens / runs[-1]['seconds']:.0f} tokens/s", file=sys.stderr)
    settings = {name: getattr(arguments, name) for name in ("rounds", "requests", "tokens")}
    arguments.output.write_text(json.dumps({"machine": machine.describe(), "settings": settings, "sides": sides}, indent=1) + "\n")


def _prompts(count: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(contenders.base())
    questions = [row["messages"][:-1] for row in rows.chat(count)]
    return [tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"] for question in questions]


def _table(result: dict[str, Any]) -> str:
    """Return how it was measured and one line for each side."""
    m, settings = result["machine"], result["settings"]
    told = (
        f"{m['date']}, commit `{m['commit']}`: {settings['requests']} requests of {settings['tokens']} new tokens, "
        f"{settings['rounds']} rounds. {_agreement(result['sides'])}"
    )
    head = (
        "",
        "tokens/s [range]",
        "first token alone, ms",
        "first token of all at once, middle one, ms",
        "last one, ms",
        "peak memory, MB",
    )
    new = settings["requests"] * settings["tokens"]
    return f"{told}\n\n{page.table(head, [_line(TITLES[side], runs, new) for side, runs in result['sides'].items()])}"


def _line(title: str, runs: list[dict[str, Any]], new: int) -> list[str]:
    figures = (
        [new / run["seconds"] for run in runs],
        [1000 * run["first_alone"] for run in runs],
        [1000 * statistics.median(run["first"]) for run in runs],
        [1000 * max(run["first"]) for run in runs],
        [run["peak_rss_mb"] for run in runs],
    )
    return [title, *map(page.middle, figures)]


def _agreement(sides: dict[str, list[dict[str, Any]]]) -> str:
    pairs = list(zip(sides["tunesmith"][0]["written"], sides["transformers"][0]["written"], strict=True))
    return f"{sum(ours == theirs for ours, theirs in pairs)} of {len(pairs)} answers have the same tokens on both sides."


if __name__ == "__main__":
    main()
