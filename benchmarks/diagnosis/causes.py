"""Measure the diagnosis on runs whose cause is known: `python benchmarks/diagnosis/causes.py [--held-out] [--details]`.

Reads runs.jsonl.gz beside it (made by runs.py). Rules were made looking at the even seeds only; --held-out takes the odd ones. A faulty
run counts only where it differs from its twin beyond noise, on held-out test data or, for faults of the validation data, in what its
validation says of the test data. `--remedies` re-runs each with the first change that was proposed (remedies.jsonl.gz).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import macro_f1, report_on, wilson
from conditions import CONDITIONS, HEALTHY, UNSCORED, Condition, files
from records import HERE, RUNS, Record, append, read

from tunesmith.diagnosis import report
from tunesmith.diagnosis.history import History
from tunesmith.diagnosis.watch import Watch
from tunesmith.domain.findings import Change, Diagnosis, Finding
from tunesmith.logs import runs as run_logs
from tunesmith.services import data

REMEDIES = HERE / "remedies.jsonl.gz"
#: Standard errors of a paired difference per row that count as a difference.
_BEYOND = 2.0


def main() -> None:
    """Print a table and, with --output, write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--details", action="store_true")
    parser.add_argument("--remedies", action="store_true", help="make the runs with the proposed change that are missing")
    parser.add_argument("--share", default="0/1", help="with --remedies: make only every n-th of them")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    records = [record for record in read(arguments.runs) if record["condition"] in CONDITIONS]
    half = [record for record in records if record["seed"] % 2 == int(arguments.held_out)]
    scored = [(record, cause_of(record), report.diagnose(history(record))) for record in half]
    if arguments.remedies:
        make_remedies(scored, records, arguments.share)
        return
    report_on({"causes": causes(scored, records, arguments.details), "remedies": remedies(scored, records, arguments.details)},
              arguments.output)  # fmt: skip


def history(record: Record) -> History:
    """Return a record's history as the product sees it: data examined, and the base learning rate that suits the model known."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {role: Path(folder) / f"{role}.jsonl" for role in ("training", "validation")}
        for role, path in paths.items():
            rows = files(CONDITIONS[record["condition"]], record["seed"])[role]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = [finding.to_dict() for finding in data.examine(paths["training"], paths["validation"])]
    resolved = record["hyperparameters"] | {"usual_learning_rate": record["hyperparameters"]["base_learning_rate"]}
    return run_logs.history(
        record["metrics"], record["id"], resolved=resolved, row_losses=record["row_losses"], data_findings=found,
        events={}, checkpoint_steps=[point["step"] for point in record["metrics"] if "full_valid_loss" in point and point["step"]],
        finished=True, broke_down=record["error"] is not None,
    )  # fmt: skip


def cause_of(record: Record) -> str:
    """Return the true cause by the table of conditions."""
    return CONDITIONS[record["condition"]].cause


def named_cause(found: Diagnosis) -> str:
    """Return the cause that a diagnosis names: the first change of its first finding above info."""
    finding = next((finding for finding in found.findings if finding.severity != "info"), None)
    return HEALTHY if finding is None else _knob(finding)


def _knob(finding: Finding) -> str:
    if finding.code == "prompt_in_loss":
        return "prompt_in_loss off"
    if not finding.changes:
        return finding.code
    change = finding.changes[0]
    if change.knob == "training_data":
        return "training_data more" if finding.code == "too_little_data" else "training_data clean"
    if change.knob == "validation_data":
        return "validation_data clean" if finding.code == "leakage" else "validation_data more"
    return f"{change.knob} {_way(change)}"


def _way(change: Change) -> str:
    if not isinstance(change.before, (int, float)) or not isinstance(change.after, (int, float)):
        return "set"
    return "up" if change.after > change.before else "down"


def causes(scored: Sequence[tuple[Record, str, Diagnosis]], records: Sequence[Record], details: bool) -> dict[str, Any]:
    """Return how often the cause was named, over the healthy and the faulty that differ from their twins."""
    by_id = {record["id"]: record for record in records}
    truth, said, left_out, alarms, healthy, live, withdrawn = [], [], Counter[str](), 0, 0, 0, 0
    for record, cause, found in scored:
        named = named_cause(found)
        if cause == UNSCORED:
            continue
        if cause != HEALTHY and not differs(record, by_id):
            left_out[record["condition"]] += 1
            continue
        truth.append(cause)
        said.append(named)
        if cause == HEALTHY:
            healthy += 1
            alarms += any(finding.severity != "info" for finding in found.findings)
            events = Watch().hear(history(record))
            live += any(event.level == "warn" for event in events)
            withdrawn += any(event.key.startswith("withdrawn") for event in events)
        if details and named != cause:
            told = [(finding.code, finding.severity) for finding in found.findings]
            print(f"{record['id']}: {cause}, said {named} {told}: {_summary(record)}")
    return {
        "runs": len(truth), "faulty": len(truth) - healthy, "macro_f1": macro_f1(truth, said),
        "per_cause": _per_cause(truth, said), "false_alarms": f"{alarms}/{healthy}",
        "false_alarm_interval": wilson(alarms, healthy), "live_alarms_on_healthy": f"{live}/{healthy}",
        "no_different_from_their_twin": dict(left_out),
    }  # fmt: skip


def _per_cause(truth: Sequence[str], said: Sequence[str]) -> dict[str, str]:
    return {
        cause: f"{sum(a == b == cause for a, b in zip(truth, said, strict=True))}/{truth.count(cause)} found, {said.count(cause)} said"
        for cause in sorted(set(truth))
    }


def differs(record: Record, by_id: Mapping[str, Record]) -> bool:
    """Say whether a faulty run is worse than its twin, beyond noise.

    On test data, paired by row; or, for faults of the validation data, in how far its validation loss is off the test loss.
    """
    twin = by_id.get(f"{CONDITIONS[record['condition']].twin}#{record['seed']}")
    if twin is None:
        return False
    change, error = test_change(twin, record)
    if change > _BEYOND * error:
        return True
    return cause_of(record).startswith("validation_data") and _misleads(record) > 2 * _misleads(twin) and _misleads(record) > 0.1


def test_change(before: Record, after: Record) -> tuple[float, float]:
    """Return the change of the test loss in nats per target token, and its standard error by rows (a paired ratio estimator)."""
    weight = np.array(before["test"]["num_targets"], dtype=float)
    change = np.array(after["test"]["nll"]) - np.array(before["test"]["nll"])
    mean = float(change.sum() / weight.sum())
    spread = change - mean * weight
    return mean, float(math.sqrt(len(weight) / (len(weight) - 1) * float(spread @ spread)) / weight.sum())


def _misleads(record: Record) -> float:
    """Return how far the full validation loss of the chosen weights is from their test loss, as a share of that."""
    full = {point["step"]: point["full_valid_loss"] for point in record["metrics"] if "full_valid_loss" in point}
    chosen = (record["result"] or {}).get("chosen_step", max(full))
    return abs(full[chosen] / _test_loss(record) - 1)


def _test_loss(record: Record) -> float:
    return float(sum(record["test"]["nll"]) / sum(record["test"]["num_targets"]))


def _summary(record: Record) -> str:
    full = [f"{point['full_valid_loss']:.3f}" for point in record["metrics"] if "full_valid_loss" in point]
    return f"full valid {' '.join(full[:1] + full[1:][-5:])}, test {_test_loss(record):.3f}"


# --- remedies ---


def make_remedies(scored: Iterable[tuple[Record, str, Diagnosis]], records: Sequence[Record], share: str) -> None:
    """Re-run each faulty run with the first change proposed for it."""
    from runs import make  # noqa: PLC0415 - torch

    by_id = {record["id"]: record for record in records}
    mine, shares = map(int, share.split("/"))
    done = {record["id"] for record in read(REMEDIES)}
    wanted = [one for one in scored if one[1] not in (HEALTHY, UNSCORED) and differs(one[0], by_id) and one[0]["id"] not in done]
    for record, _, found in wanted:
        if zlib.crc32(record["id"].encode()) % shares != mine:
            continue
        started = time.monotonic()
        changed = remedy(record, found)
        if changed is None:
            again: Record = {"id": record["id"], "change": None}
        else:
            condition, asked, what = changed
            again = make(condition, record["seed"], asked=asked) | {"id": record["id"], "change": what}
        append(REMEDIES, again)
        print(f"{record['id']}: {again['change']}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def remedy(record: Record, found: Diagnosis) -> tuple[Condition, dict[str, Any], str] | None:
    """Return how to run again with the first change of the first finding above info; data are mended as a person would who knows how.

    More training rows are five times as many; clean answers are the true ones; clean validation rows are none of the training rows; the
    prompt is put where it belongs.
    """
    cause = named_cause(found)
    condition = CONDITIONS[record["condition"]]
    asked = dict(condition.asked)
    first = next((finding for finding in found.findings if finding.severity != "info"), None)
    if first is None:
        return None
    if cause == "training_data more":
        return replace(condition, num_training=5 * condition.num_training), asked, cause
    if cause == "training_data clean":
        return replace(condition, answer_noise=0.0), asked, cause
    if cause == "validation_data clean":
        return replace(condition, leaked=0.0), asked, cause
    if cause == "validation_data more":
        return replace(condition, num_validation=200), asked, cause
    if cause == "prompt_in_loss off":
        return replace(condition, prompt_in_loss=False), asked, cause
    if not first.changes:
        return None
    change = first.changes[0]
    return condition, asked | {change.knob: change.after}, change.words()


def remedies(scored: Sequence[tuple[Record, str, Diagnosis]], records: Sequence[Record], details: bool) -> dict[str, Any]:
    """Return how often the first proposed change made the run better on held-out test data, beyond noise."""
    by_id = {record["id"]: record for record in records}
    again = {record["id"]: record for record in read(REMEDIES)}
    better, honest, tried, of_validation = 0, 0, 0, 0
    for record, cause, _ in scored:
        if cause in (HEALTHY, UNSCORED) or not differs(record, by_id) or record["id"] not in again:
            continue
        tried += 1
        result = again[record["id"]]
        is_better = False
        if result["change"] is not None:
            change, error = test_change(record, result)
            is_better = change < -_BEYOND * error
            if cause.startswith("validation_data"):
                of_validation += 1
                honest += _misleads(result) < 0.5 * _misleads(record)
        better += is_better
        if details and not is_better:
            print(f"{record['id']}: not better after {result['change']}: {_test_loss(record):.3f}"
                  + (f" to {_test_loss(result):.3f}" if result["change"] else ""))  # fmt: skip
    return {
        "tried": tried, "better_on_test": f"{better}/{tried}", "interval": wilson(better, tried),
        "of_faults_of_validation_data_whose_report_became_true": f"{honest}/{of_validation}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
