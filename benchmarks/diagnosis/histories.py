"""Measure the diagnosis on others' training histories: `python benchmarks/diagnosis/histories.py --data DIR [--details]`.

DIR holds overfitguard_train.jsonl.gz, finetune_real.jsonl.gz and peft_method_comparison.jsonl.gz (one JSON object a line with `rows` of
`step`, `train_loss`, `valid_loss`, ...), which are not part of this repository. Each history is written as a CSV and read as a user's is.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import macro_f1, report_on, wilson

from tunesmith import logs
from tunesmith.diagnosis import report
from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.history import History, Series
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Diagnosis
from tunesmith.errors import InvalidRequest

_COLUMNS = ("step", "epoch", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy", "accuracy", "precision", "recall", "f1")
#: Silver label -> the codes that say the same.
_SAME: Mapping[str, tuple[str, ...]] = {
    "healthy": ("healthy", "converged"),
    "still_improving": ("still_improving", "slow_learning"),
    "overfitting": ("overfitting", "too_little_data"),
    "overconfidence": ("over_confidence",),
    "noisy_validation": ("noisy_validation", "cannot_tell"),
    "plateau": ("plateau",),
    "no_learning": ("no_learning", "constant_metric"),
    "suspicious_perfect": ("suspiciously_perfect",),
    "divergence": ("divergence", "non_finite"),
}


def main() -> None:
    """Print a table and, with --output, write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--details", action="store_true", help="say what was found in each history that came out wrong")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    parts = {
        "overfitguard": overfitguard(_records(arguments.data / "overfitguard_train.jsonl.gz"), arguments.details),
        "silver": silver(_records(arguments.data / "finetune_real.jsonl.gz"), arguments.details),
        "peft": peft(_records(arguments.data / "peft_method_comparison.jsonl.gz")),
        "stability": stability([*_records(arguments.data / "overfitguard_train.jsonl.gz")[::8],
                                *_labelled(_records(arguments.data / "finetune_real.jsonl.gz"))]),
        "speed": speed(),
    }  # fmt: skip
    report_on(parts, arguments.output)


def overfitguard(records: Sequence[Mapping[str, Any]], details: bool = False) -> dict[str, Any]:
    """Tell overfit histories from others, and stop those that overfit while they go on."""
    truth, said, premature, delays, optimal = [], [], 0, [], 0
    for record in records:
        history = read(record)
        found = "overfit" if {"overfitting", "over_confidence", "too_little_data"} & codes(report.diagnose(history)) else "non_overfit"
        truth.append(record["label"])
        said.append(found)
        if details and found != record["label"]:
            print(f"{record['id']}: {record['label']}, said {found}")
        stopped = _stop(history)
        if record["label"] == "overfit":
            values = history["full_valid_loss"] if len(history["full_valid_loss"]) else history["valid_loss"]
            best = values.steps[int(np.argmin(values.values))]
            delays.append((stopped or history.last_step) - best)
            optimal += int((stopped or math.inf) > best)
        elif stopped is not None:
            premature += 1
    wrong = sum(a != b for a, b in zip(truth, said, strict=True))
    return {
        "histories": len(truth), "macro_f1": macro_f1(truth, said), "wrong": wrong, "premature_stops": premature,
        "stopped_after_the_optimum": f"{optimal}/{len(delays)}", "median_delay_epochs": float(np.median(delays)),
    }  # fmt: skip


def _stop(history: History) -> int | None:
    """Return the step at which a rise that is sure at two looks in a row, ten points apart, would have stopped the run."""
    series = history["full_valid_loss"] if len(history["full_valid_loss"]) else history["valid_loss"]
    stood = False
    for step in series.steps[10::10]:
        view = View(history.until(step))
        is_sure = view.has_risen and view.rise > LIMITS.surely_risen
        if is_sure and stood:
            return int(step)
        stood = is_sure
    return None


def silver(records: Sequence[Mapping[str, Any]], details: bool = False) -> dict[str, Any]:
    """Compare with what a reader saw in real fine-tunings: false alarms, abstentions, classes."""
    alarms, healthy, abstained, noisy, truth, said, right_by_repository = 0, 0, 0, 0, [], [], defaultdict(list)
    for record in _labelled(records):
        label = record["silver_label"]["primary"]
        found = report.diagnose(read(record))
        first = next((finding.code for finding in found.findings if finding.severity != "info"), None)
        grave = codes(found)
        if label == "healthy":
            healthy += 1
            alarms += bool(grave - {"no_validation"})
        if label == "noisy_validation":
            noisy += 1
            abstained += bool(set(_SAME[label]) & {finding.code for finding in found.findings}) and "overfitting" not in grave
        named = _class(found, first)
        truth.append(label)
        said.append(named)
        right_by_repository[record["source"].split("@")[0]].append(label == named)
        if details and (named != label or (label == "healthy" and grave)):
            told = [(finding.code, finding.severity) for finding in found.findings]
            print(f"{record['id'][:70]} ({len(record['rows'])} rows): {label}, said {named} {told}")
    low, high = _bootstrap(truth, said, [record["source"].split("@")[0] for record in _labelled(records)])
    return {
        "histories": len(truth), "false_alarms_on_healthy": f"{alarms}/{healthy}", "noisy_abstained": f"{abstained}/{noisy}",
        "macro_f1": macro_f1(truth, said), "macro_f1_90_percent": [low, high], "false_alarm_interval": wilson(alarms, healthy),
    }  # fmt: skip


def _class(found: Diagnosis, first: str | None) -> str:
    """Return the silver class that a diagnosis amounts to: its gravest finding, else what it says in passing."""
    every = [finding.code for finding in found.findings]
    for code in ([first] if first else []) + [code for code in ("plateau", "still_improving", "cannot_tell") if code in every]:
        for label, same in _SAME.items():
            if code in same:
                return label
    return "healthy"


def _bootstrap(truth: Sequence[str], said: Sequence[str], groups: Sequence[str]) -> tuple[float, float]:
    """Return the 90 % interval of macro-F1, whole repositories drawn at a time."""
    by_group: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        by_group[group].append(index)
    random, names, scores = np.random.default_rng(0), sorted(by_group), []
    for _ in range(500):
        drawn = [index for name in random.choice(names, len(names)) for index in by_group[name]]
        scores.append(macro_f1([truth[i] for i in drawn], [said[i] for i in drawn]))
    return round(float(np.quantile(scores, 0.05)), 3), round(float(np.quantile(scores, 0.95)), 3)


def peft(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the score quoted for the chosen checkpoint with the held-out test score of the finished run."""
    gaps, covered, raw_best, raw_last, widths = [], 0, [], [], []
    for record in records:
        if "GSM8K" not in record.get("task", "") or record.get("final_test_accuracy") is None:
            continue
        found = report.diagnose(read(record))
        if found.checkpoint is None or found.checkpoint.score is None:
            continue
        score, test = found.checkpoint.score, record["final_test_accuracy"]
        values = [row["valid_accuracy"] for row in record["rows"] if row.get("valid_accuracy") is not None]
        gaps.append(score["value"] - test)
        covered += score["low"] <= test <= score["high"]
        widths.append(score["high"] - score["low"])
        raw_best.append(max(values) - test)
        raw_last.append(values[-1] - test)
    return {
        "runs": len(gaps), "mean_error_points": 100 * float(np.mean(gaps)), "mean_distance_points": 100 * float(np.mean(np.abs(gaps))),
        "covered": covered / len(gaps),
        "median_width_points": 100 * float(np.median(widths)),
        "best_raw_error_points": 100 * float(np.mean(raw_best)), "last_raw_error_points": 100 * float(np.mean(raw_last)),
    }  # fmt: skip


def stability(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many verdicts stay when evaluations are halved, noise is added, or the loss is rescaled."""
    kept: Counter[str] = Counter()
    count = 0
    random = np.random.default_rng(0)
    for record in records:
        history = read(record)
        before = _verdict(history)
        count += 1
        for name, changed in disturbed(history, random).items():
            kept[name] += _verdict(changed) == before
    return {"histories": count} | {name: stayed / count for name, stayed in kept.items()}


def disturbed(history: History, random: np.random.Generator) -> dict[str, History]:
    """Return the history with half its evaluations, with a tenth of its noise added, and with its losses in other units."""
    halved, noisy, scaled = {}, {}, {}
    for name, series in history.series.items():
        is_loss, is_valid = name.endswith("loss"), not name.startswith("train")
        keep = slice(None, None, -2) if is_valid and len(series) >= 8 else slice(None, None, -1)
        halved[name] = Series(series.steps[keep][::-1], series.values[keep][::-1])
        jitter = 0.1 * stats.noise(series.values) * random.standard_normal(len(series))
        noisy[name] = Series(series.steps, series.values + jitter) if is_loss else series
        scaled[name] = Series(series.steps, 1.7 * series.values) if is_loss else series
    return {name: replace(history, series=cut) for name, cut in (("halved", halved), ("noise", noisy), ("rescaled", scaled))}


def _verdict(history: History) -> str:
    found = report.diagnose(history)
    return next((finding.code for finding in found.findings if finding.severity != "info"), "sound")


def speed(points: int = 10_000) -> dict[str, float]:
    """Return the milliseconds of a diagnosis of 10,000 points, the middle of eleven."""
    random = np.random.default_rng(0)
    steps = np.arange(1, points + 1, dtype=float)
    loss = 0.5 + 2 * np.exp(-steps / 1000) + 0.05 * random.standard_normal(points)
    history = History({name: Series(steps, loss) for name in ("train_loss", "valid_loss", "train_accuracy", "valid_accuracy")})
    took = []
    for _ in range(11):
        started = time.perf_counter()
        report.diagnose(history)
        took.append(1000 * (time.perf_counter() - started))
    return {"points": points, "milliseconds": float(np.median(took))}


def codes(found: Diagnosis) -> set[str]:
    """Return the codes of the findings above info."""
    return {finding.code for finding in found.findings if finding.severity != "info"}


def read(record: Mapping[str, Any]) -> History:
    """Return a record's history, read from a CSV."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.csv"
        with path.open("w", newline="") as file:
            known = [name for name in _COLUMNS if any(row.get(name) is not None for row in record["rows"])]
            writer = csv.DictWriter(file, known, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(record["rows"])
        try:
            return logs.read(path)
        except InvalidRequest as refused:
            raise SystemExit(f"{record['id']}: {refused.message}") from None


def _labelled(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if record.get("silver_label")]


def _records(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
