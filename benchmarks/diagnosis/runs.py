"""Make the runs with known causes: `python benchmarks/diagnosis/runs.py [--only NAME,...] [--seeds 0,1]`.

Each is a real fine-tuning of SmolLM2-135M-Instruct on rows of `desk`, scored afterwards on 160 rows that nobody trained or validated on.
What is already in runs.jsonl.gz is not made again. Takes about a minute a run on one core.
Two processes pinned to a core each (`taskset -c 0 … --share 0/2`) are quicker than one on both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import desk
import torch
from conditions import CONDITIONS, Condition, files
from records import RUNS, Record, append, read

import tunesmith
from tunesmith.domain.specs import ResolvedSpec
from tunesmith.errors import TrainingFailed
from tunesmith.services import bases
from tunesmith.settings import Settings
from tunesmith.training import data, evaluation, lora, model
from tunesmith.training.network import Network
from tunesmith.training.tokenizer import load_tokenizer

_MODEL, _LENGTH = "smollm2-135m-instruct", 512


def main() -> None:
    """Make what is missing, seed by seed, so that an early stop leaves whole rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CONDITIONS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=list(range(99)))
    parser.add_argument("--output", type=Path, default=RUNS)
    parser.add_argument("--share", default="0/1", help="make only every n-th of them, so that n processes share them: 0/2 and 1/2")
    arguments = parser.parse_args()
    share, shares = map(int, arguments.share.split("/"))
    done = {(record["condition"], record["seed"]) for record in read(arguments.output)}
    for seed in sorted(set(arguments.seeds)):
        for number, name in enumerate(arguments.only):
            condition = CONDITIONS[name]
            if seed >= condition.seeds or (name, seed) in done or (number + seed) % shares != share:
                continue
            started = time.monotonic()
            record = make(condition, seed)
            append(arguments.output, record)
            print(f"{name} {seed}: {summary(record)} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def summary(record: Record) -> str:
    """Say a record in a few words."""
    full = [f"{point['full_valid_loss']:.3f}" for point in record["metrics"] if "full_valid_loss" in point]
    test = sum(record["test"]["nll"]) / sum(record["test"]["num_targets"])
    return f"full valid {' '.join(full[:1] + full[1:][-6:])}, test {test:.4f}"


def make(condition: Condition, seed: int, rows: dict[str, list[desk.Row]] | None = None, asked: dict[str, Any] | None = None) -> Record:
    """Train and score one run; `rows` and `asked` stand in for the condition's own."""
    rows = rows or files(condition, seed)
    hyperparameters = {
        "seed": 1000 + seed,
        "n_steps": None,
        "accumulation_steps": 1,
        "training_split": None,
        **_rates(),
        **(asked or condition.asked),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {role: Path(folder) / f"{role}.jsonl" for role in rows}
        for role, path in paths.items():
            path.write_text("".join(json.dumps(row) + "\n" for row in rows[role]))
        diverged = None
        try:
            run = tunesmith.train(
                paths["training"], valid=paths["validation"], model=_MODEL, output=Path(folder) / "run", **hyperparameters
            )
        except TrainingFailed as failed:
            diverged, run = str(failed), tunesmith.Run(Path(folder) / "run")
        record: Record = {
            "id": f"{condition.name}#{seed}", "condition": condition.name, "seed": seed, "error": diverged,
            "hyperparameters": {key: value for key, value in run.spec["resolved"].items() if key not in ("reasons", "plan")},
            "metrics": [_short(point) for point in run.metrics], "row_losses": run.row_losses,
            "data_findings": run.data_findings, "result": run.result,
        }  # fmt: skip
        network, tokenizer = _load(run, diverged is not None)
        examples = data.load(paths["test"], tokenizer, _LENGTH).examples
        scored = evaluation.evaluate(network, examples, 4096)
        nll = [round(float(nll), 3) for nll in scored.nll_E]
        record["test"] = {"nll": nll, "num_targets": [example.num_targets for example in examples], "accuracy": scored.accuracy}
    return record


def _rates() -> dict[str, Any]:
    """The command line's defaults stand for a learning rate of their own; here the model's is wanted, as over the API."""
    return {"base_learning_rate": "auto", "learning_rate_multiplier": 1.0, "n_epochs": 3, "stop_eval_loss": None}


def _load(run: tunesmith.Run, is_base: bool) -> tuple[Network, Any]:
    spec = ResolvedSpec.from_dict(run.spec["resolved"])
    assert spec.plan is not None
    base = bases.ready(Settings.load(), _MODEL).directory
    network = Network(model.load_base(base, getattr(torch, spec.plan.dtype), "cpu"), spec, spec.plan)
    if not is_base:
        lora.load_adapter(network.model, run.model_directories()[1])  # type: ignore[arg-type]
    return network, load_tokenizer(base)


def _short(point: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in point.items() if key not in ("tokens_per_second", "total_steps")}
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in kept.items()} | {
        "total_steps": point["total_steps"]
    }


if __name__ == "__main__":
    main()
