"""The rules on histories made up for them; each with the same run made well beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.diagnosis import history, render, report, watch
from tunesmith.diagnosis.history import History, Series
from tunesmith.domain.findings import CURVE_CODES, Diagnosis
from tunesmith.errors import InvalidRequest

KNOWN = {"n_epochs": 3, "batch_size": 8, "base_learning_rate": 3.7e-4, "learning_rate_multiplier": 1.0}


def made(
    train: np.ndarray, full: dict[int, float], *, accuracy: dict[int, float] | None = None, noise: float = 0.03, multiplier: float = 1.0
) -> History:
    """Return a run of len(train) steps in 3 epochs with noise on the training loss."""
    random = np.random.default_rng(0)
    points = [{"step": step + 1, "train_loss": float(loss * (1 + noise * random.standard_normal()))} for step, loss in enumerate(train)]
    points += [{"step": step, "full_valid_loss": loss, "full_valid_accuracy": (accuracy or {}).get(step)} for step, loss in full.items()]
    known = KNOWN | {"learning_rate_multiplier": multiplier}
    return history.from_points(
        points,
        hyperparameters=known,
        total_steps=len(train),
        steps_per_epoch=len(train) / 3,
        usual_learning_rate=3.7e-4,
        num_validation=200,
    )


def falling(start: float, end: float, steps: int = 75, rate: float = 5.0) -> np.ndarray:
    return end + (start - end) * np.exp(-rate * np.arange(steps) / steps)


SOUND = made(falling(3.0, 0.6), {0: 3.0, 25: 0.8, 50: 0.66, 75: 0.65}, accuracy={0: 0.4, 25: 0.8, 50: 0.84, 75: 0.845})


def codes(found: Diagnosis) -> list[str]:
    return [finding.code for finding in found.findings if finding.severity != "info"]


def test_a_sound_run_is_left_alone() -> None:
    found = report.diagnose(SOUND)
    assert codes(found) == [] and found.verdict.startswith("The run is sound: the validation loss went from 3 to 0.65")
    assert found.checkpoint is not None and found.checkpoint.step == 75
    assert found.next_hyperparameters["base_learning_rate"] == 3.7e-4 and found.next_hyperparameters["learning_rate_multiplier"] == 1.0


@pytest.mark.parametrize(
    ("run", "code", "knob", "way"),
    [
        (made(falling(3.0, 2.7), {0: 3.0, 25: 2.9, 50: 2.85, 75: 2.8}, multiplier=0.03), "slow_learning", "learning_rate_multiplier", 1),
        (
            made(np.concatenate([falling(3.0, 1.5, 20), np.linspace(1.5, 6.0, 55)]), {0: 3.0, 25: 2.5, 50: 4.0, 75: 6.0}, multiplier=25),
            "divergence", "learning_rate_multiplier", -1,
        ),
        (
            made(falling(3.0, 0.05), {0: 3.0, 25: 0.7, 50: 0.8, 75: 0.95}, accuracy={0: 0.4, 25: 0.84, 50: 0.8, 75: 0.7}),
            "overfitting", "n_epochs", -1,
        ),
        (
            made(falling(3.0, 0.05), {0: 3.0, 25: 0.7, 50: 0.8, 75: 0.95}, accuracy={0: 0.4, 25: 0.84, 50: 0.85, 75: 0.86}),
            "over_confidence", "n_epochs", -1,
        ),
        (made(falling(3.0, 0.5, 12, 2.0), {0: 3.0, 12: 1.0}), "still_improving", "n_epochs", 1),
    ],
    ids=["too slow", "too fast", "too long", "too sure", "too short"],
)  # fmt: skip
def test_a_cause_is_named_with_the_knob_to_turn(run: History, code: str, knob: str, way: int) -> None:
    found = report.diagnose(run)
    assert codes(found)[0] == code
    change = found.findings[0].changes[0]
    assert change.knob == knob and isinstance(change.after, (int, float)) and isinstance(change.before, (int, float))
    assert (change.after - change.before) * way > 0
    assert found.next_hyperparameters[knob] == change.after


def test_rows_that_contradict_the_others() -> None:
    loss = np.full((2, 60), 0.5)
    loss[0] = 3.0
    loss[1] += np.linspace(0, 0.1, 60)
    lines = list(range(1, 61))
    evaluations = [{"step": 0, "loss": loss[0].tolist(), "lines": lines, "num_targets": [20] * 60}, {"step": 75, "loss": loss[1].tolist()}]
    points = [{"step": 0, "full_valid_loss": 3.0}, {"step": 75, "train_loss": 0.5, "full_valid_loss": 0.55}]
    assert codes(report.diagnose(history.from_points(points, rows=history.rows(evaluations)))) == []
    evaluations[1]["loss"][:8] = [4.0] * 8  # type: ignore[index]
    found = report.diagnose(history.from_points(points, rows=history.rows(evaluations)))
    assert codes(found) == ["inconsistent_answers"] and sorted(found.findings[0].evidence["validation_lines"]) == lines[:8]


TABLE = """epoch,train_loss,valid_loss,f1
1,.3803,.5110,.9546
2,.4129,.5256,.9546
3,.4804,.5305,.9546
4,.6571,.5583,.9546
5,.6605,.5193,.9546
"""


def test_a_constant_score_is_named_and_not_praised(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(TABLE)
    done = CliRunner().invoke(app, ["diagnose", str(path), "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["findings"][0]["code"] == "constant_metric"
    assert "not learning" in found["verdict"] and "rises from 0.38 to 0.66" in found["verdict"] and "0.9546" in found["verdict"]
    assert {"base_learning_rate", "learning_rate_multiplier"} <= found["next_hyperparameters"].keys()
    said = CliRunner().invoke(app, ["diagnose", str(path)])
    assert said.exit_code == 0 and "constant_metric" in said.stdout and "What these curves cannot tell" in said.stdout


def test_what_is_not_finite_comes_first() -> None:
    points = [{"step": step, "train_loss": 1.0 if step < 9 else float("nan")} for step in range(1, 12)]
    found = report.diagnose(history.from_points(points, hyperparameters=KNOWN))
    assert codes(found) == ["non_finite", "no_validation"] and found.findings[0].steps == (9, 9)


# --- each rule, and what it must not be said of ---


def with_rows(losses: np.ndarray, num_targets: list[int] | None = None) -> History:
    """Return a run whose rows begin at a loss of 3 and end with these."""
    count = len(losses)
    head = {"step": 0, "loss": [3.0] * count, "lines": list(range(1, count + 1)), "num_targets": num_targets or [20] * count}
    points = [{"step": 0, "full_valid_loss": 3.0}, {"step": 75, "full_valid_loss": float(losses.mean())}]
    points += [{"step": step + 1, "train_loss": float(loss)} for step, loss in enumerate(falling(3.0, 0.5))]
    return history.from_points(points, rows=history.rows([head, {"step": 75, "loss": losses.tolist()}]), hyperparameters=KNOWN)


def table(**columns: list[float]) -> History:
    """Return a log with a line an epoch."""
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return history.from_points({"step": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(rows, 1))


def sampled(values: np.ndarray) -> History:
    points = [{"step": 10 * step, "valid_loss": float(value)} for step, value in enumerate(values, 1)]
    return history.from_points([*points, *({"step": s, "train_loss": 1.0 - 0.001 * s} for s in range(1, 401))])


LOSS_DOWN = [0.7, 0.6, 0.5, 0.45, 0.42, 0.4]
ACCURACY_UP = [0.8, 0.83, 0.86, 0.88, 0.9, 0.91]
KEPT = [2.0, 1.0, 0.8, 0.78, 0.79]
RANDOM = np.random.default_rng(3)
NOISE = RANDOM.standard_normal(40)
TWO_GROUPS = np.concatenate([0.5 + 0.05 * RANDOM.standard_normal(45), 1.6 + 0.1 * RANDOM.standard_normal(15)])
FALLEN = [2.0, 1.2, 0.9, 0.8, 0.75, 0.74, 0.735, 0.734, 0.733, 0.733, 0.7325, 0.7325]
CLEARLY_BEST_AT_3 = [2.0, 1.0, 0.8, 0.9, 1.1, 1.3]
#: code -> a run it must be said of, at which severity, and one much like it where it must not be.
CASES: dict[str, tuple[History, str, History]] = {
    "non_finite": (
        history.from_points([{"step": s, "train_loss": 1.0 if s < 9 else math.inf} for s in range(1, 12)]),
        "critical",
        history.from_points([{"step": s, "train_loss": 1.0} for s in range(1, 12)]),
    ),
    "pipeline_fault": (made(np.linspace(1.0, 3.0, 60), {0: 1.0, 60: 3.0}), "critical", made(falling(3.0, 1.0), {0: 3.0, 75: 1.0})),
    "divergence": (
        made(np.concatenate([[5.0, 4.0, 7.5, 9.0], falling(6.0, 0.6)]), {0: 5.0, 25: 1.8, 50: 0.8, 79: 0.7}, multiplier=25),
        "warning",
        made(np.concatenate([[5.0, 4.0, 3.5, 3.0], falling(2.0, 0.6)]), {0: 5.0, 25: 0.9, 50: 0.72, 79: 0.7}, multiplier=10),
    ),
    "slow_learning": (made(falling(3.0, 2.7), {0: 3.0, 25: 2.9, 50: 2.85, 75: 2.8}, multiplier=0.03), "warning", SOUND),
    "still_improving": (made(np.linspace(3.0, 1.5, 12), {0: 3.0, 12: 1.5}), "warning", SOUND),
    "noisy_training": (
        replace(made(falling(3.0, 0.6), {0: 3.0, 75: 0.7}, noise=0.5), hyperparameters=KNOWN | {"batch_size": 1}), "warning",
        replace(made(falling(3.0, 0.6), {0: 3.0, 75: 0.7}, noise=0.05), hyperparameters=KNOWN | {"batch_size": 1}),
    ),
    "too_little_data": (
        replace(made(falling(3.0, 0.1, 60), {0: 3.0, 6: 0.8, 12: 0.79, 24: 0.95, 36: 1.1, 60: 1.3}), steps_per_epoch=6, data_findings=()),
        "info",
        replace(made(falling(3.0, 0.1, 60), {0: 3.0, 6: 1.9, 12: 1.4, 24: 0.9, 36: 0.8, 48: 1.0, 60: 1.2}), steps_per_epoch=6),
    ),
    "no_validation": (history.from_points([{"step": s, "train_loss": 1 / s} for s in range(1, 12)]), "warning", SOUND),
    "cannot_tell": (made(falling(3.0, 0.6), {0: 3.0, 75: 0.7}), "info", SOUND),
    "noisy_validation": (sampled(1.0 + 0.4 * NOISE), "warning", sampled(np.linspace(2.0, 0.5, 40) + 0.2 * NOISE)),
    "no_learning": (made(falling(3.0, 2.9), {0: 3.0, 25: 3.02, 50: 3.01, 75: 3.03}), "critical", SOUND),
    "overfitting": (
        table(train_loss=[2.0, 1.0, 0.6, 0.4, 0.3, 0.2], full_valid_loss=CLEARLY_BEST_AT_3), "warning",
        table(train_loss=[2.0, 1.0, 0.6, 0.4, 0.3, 0.2], full_valid_loss=[2.0, 1.0, 0.8, 0.79, 0.81, 0.8]),
    ),
    "over_confidence": (
        table(full_valid_loss=CLEARLY_BEST_AT_3, f1=[0.5, 0.7, 0.8, 0.82, 0.83, 0.83]), "warning",
        table(full_valid_loss=CLEARLY_BEST_AT_3, f1=[0.5, 0.7, 0.8, 0.72, 0.65, 0.6]),
    ),
    "memorization": (
        table(train_loss=[2.0, 0.5, 0.1, 0.02, 0.01], train_accuracy=[0.5, 0.8, 0.97, 0.99, 1.0], full_valid_loss=KEPT),
        "info",
        table(train_loss=[2.0, 1.1, 0.8, 0.7, 0.6], train_accuracy=[0.5, 0.7, 0.8, 0.8, 0.8], full_valid_loss=KEPT),
    ),
    "suspiciously_perfect": (
        table(full_valid_loss=[1e-4, 9e-5, 8e-5, 7e-5], f1=[1.0, 1.0, 1.0, 1.0]), "warning",
        table(full_valid_loss=[0.2, 0.1, 0.09, 0.08], f1=[0.93, 0.95, 0.96, 0.97]),
    ),
    "late_improvement": (
        table(full_valid_loss=[2.0, 1.5, 1.0, 1.3, 1.5, 1.6, 1.4, 1.1, 0.8, 0.6, 0.5, 0.45, 0.42, 0.4, 0.4]), "info",
        table(full_valid_loss=FALLEN),
    ),
    "plateau": (
        table(train_loss=[1.0] * 12, full_valid_loss=[2.0, *([0.70, 0.701, 0.699] * 3), 0.7, 0.7]), "info",
        table(train_loss=[1.0] * 12, full_valid_loss=[2.0, 1.7, 1.5, 1.3, 1.15, 1.0, 0.9, 0.8, 0.7, 0.6, 0.52, 0.45]),
    ),
    "converged": (
        table(full_valid_loss=FALLEN[:7]), "info", table(full_valid_loss=[2.0, 1.7, 1.4, 1.1, 0.9, 0.7]),
    ),
    "constant_metric": (
        table(full_valid_loss=[0.7, 0.6, 0.6, 0.6], accuracy=[0.672] * 4), "warning",
        table(full_valid_loss=[0.7, 0.6, 0.6, 0.6], accuracy=[0.672, 0.68, 0.672, 0.69]),
    ),
    "metric_conflict": (
        table(full_valid_loss=LOSS_DOWN, accuracy=ACCURACY_UP, f1=[0.6, 0.57, 0.5, 0.46, 0.42, 0.4]),
        "warning",
        table(full_valid_loss=LOSS_DOWN, accuracy=ACCURACY_UP, f1=[0.6, 0.63, 0.7, 0.71, 0.74, 0.75]),
    ),
    "inconsistent_answers": (
        with_rows(TWO_GROUPS), "warning", with_rows(0.5 + 0.08 * RANDOM.standard_normal(60)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", [*CURVE_CODES, "inconsistent_answers"])
def test_what_is_seen_is_said_and_what_is_not_is_not(code: str) -> None:
    run, severity, other = CASES[code]
    said = {finding.code: finding for finding in report.diagnose(run).findings}
    assert code in said and said[code].severity == severity, list(said)
    found = said[code]
    assert 0 < found.confidence <= 1 and found.evidence and len(found.message) > 20 and len(found.advice) > 15
    assert any(character.isdigit() for character in found.message), "the numbers are said"
    assert code not in {finding.code for finding in report.diagnose(other).findings}


def test_rows_of_another_kind_are_not_called_wrong() -> None:
    losses = TWO_GROUPS
    found = report.diagnose(with_rows(losses, [4] * 45 + [200] * 15)).findings
    assert [(f.code, f.severity) for f in found if f.code == "inconsistent_answers"] == [("inconsistent_answers", "info")]


def test_too_few_points_are_said_to_be_too_few() -> None:
    assert report.diagnose(table(train_loss=[1.0], full_valid_loss=[0.9])).verdict.startswith("Cannot tell")
    assert report.diagnose(history.from_points([])).verdict == "Nothing can be said yet: no step has been made."


def test_a_loss_in_other_units_is_the_same_run() -> None:
    for run, _, other in CASES.values():
        for one in (run, other):
            scaled = replace(one, series={n: Series(s.steps, 3 * s.values) if "loss" in n else s for n, s in one.series.items()})
            rows = one.rows and replace(one.rows, loss_ER=3 * one.rows.loss_ER)
            before, after = report.diagnose(one), report.diagnose(replace(scaled, rows=rows))
            known = {"suspiciously_perfect"}  # next to nothing is next to nothing in nats
            assert [f.code for f in before.findings if f.code not in known] == [f.code for f in after.findings if f.code not in known]


# --- the score quoted for a checkpoint ---


def test_the_score_is_not_the_best_of_many() -> None:
    values = 0.4 + 0.03 * RANDOM.standard_normal(20)
    found = report.diagnose(history.from_points({"step": s, "valid_accuracy": v, "valid_loss": 1.0} for s, v in enumerate(values, 1)))
    assert found.checkpoint is not None and found.checkpoint.score is not None
    score = found.checkpoint.score
    assert abs(score["value"] - 0.4) < 0.03 < values.max() - 0.4 and score["low"] < 0.4 < score["high"]


# --- loss and accuracy together, and other knobs ---


@pytest.mark.parametrize(
    ("loss", "accuracy", "words"),
    [
        ([2.0, 1.5, 1.2, 1.0, 0.9], [0.5, 0.6, 0.7, 0.75, 0.8], "agree: the validation loss fell and token accuracy rose"),
        ([2.0, 1.0, 0.8, 1.0, 1.2, 1.4], [0.5, 0.7, 0.8, 0.8, 0.81, 0.82], "over-confidence. The answers did not get worse"),
        ([2.0, 1.0, 0.8, 1.0, 1.2, 1.4], [0.5, 0.7, 0.8, 0.75, 0.7, 0.6], "both say that the run went on too long"),
        ([1.0, 1.0, 1.001, 1.0, 1.0], [0.5, 0.6, 0.65, 0.7, 0.72], "more answers are right by a small margin"),
        ([1.0, 0.9, 0.8, 0.7, 0.65], [0.7, 0.7, 0.7, 0.701, 0.7], "grows surer of what it already answered"),
        ([1.0, 1.0, 1.001, 1.0, 1.0], [0.7, 0.7, 0.701, 0.7, 0.7], "what is still learnt is the training rows themselves"),
    ],
)
def test_loss_and_accuracy_are_read_together(loss: list[float], accuracy: list[float], words: str) -> None:
    train = [2.0 * 0.6**n for n in range(len(loss))]
    said = report.diagnose(table(train_loss=train, full_valid_loss=loss, full_valid_accuracy=accuracy)).reading
    assert words in said and "For exact answers" in said and "Chasing the loss alone" in said


def test_a_stop_condition_that_came_too_early_is_moved() -> None:
    run = made(np.linspace(3.0, 1.5, 12), {0: 3.0, 4: 2.5, 8: 2.0, 12: 1.5})
    early = replace(run, total_steps=36, hyperparameters=KNOWN | {"stop_eval_loss": 1.6})
    (finding,) = (f for f in report.diagnose(early).findings if f.code == "still_improving")
    assert (finding.changes[0].knob, finding.changes[0].before, finding.changes[0].after) == ("stop_eval_loss", 1.6, 0.75)
    patient = replace(run, total_steps=36, hyperparameters=KNOWN | {"early_stopping_patience": 1})
    assert report.diagnose(patient).findings[0].changes[0].words().startswith("early_stopping_patience 1 → 3, because it ended the run")
    assert report.diagnose(run).findings[0].changes[0].knob == "n_epochs"


def test_the_next_run_has_the_first_change_of_each_knob() -> None:
    known = KNOWN | {"lora_dropout": 0.05, "lora_rank": 16, "lora_alpha": 64.0}
    over = made(falling(3.0, 0.05), {0: 3.0, 25: 0.7, 50: 0.8, 75: 0.95}, accuracy={0: 0.4, 25: 0.84, 50: 0.8, 75: 0.7})
    found = report.diagnose(replace(over, hyperparameters=known))
    assert found.next_hyperparameters == known | {"n_epochs": 1, "lora_dropout": 0.1}
    flat = report.diagnose(replace(CASES["plateau"][0], hyperparameters=known))
    (plateau,) = (finding for finding in flat.findings if finding.code == "plateau")
    assert [(change.knob, change.after) for change in plateau.changes] == [("lora_rank", 32), ("lora_alpha", 128.0)]
    assert flat.next_hyperparameters == known, "what needs no change turns no knob"


def test_advice_turns_the_knob_that_bounds_the_run() -> None:
    improving = made(np.linspace(3.0, 1.5, 12), {0: 3.0, 4: 2.5, 8: 2.0, 12: 1.5})
    by_steps = replace(improving, hyperparameters=KNOWN | {"n_steps": 12, "n_epochs": 500}, total_steps=12)
    assert report.diagnose(by_steps).findings[0].changes[0].words().startswith("n_steps 12 → 60")
    over = {0: 3.0, 5: 1.0, 10: 0.8, 15: 1.0, 20: 1.2, 25: 1.4}
    first = replace(made(falling(3.0, 0.1, 25), over), steps_per_epoch=50, hyperparameters=KNOWN | {"n_epochs": 1})
    assert report.diagnose(first).findings[0].changes[0].words().startswith("n_steps 25 → 10")
    unknown = table(train_loss=[2.0, 1.0, 0.6, 0.4, 0.3, 0.2], full_valid_loss=CLEARLY_BEST_AT_3)
    assert all(
        change.after is not None and change.before != change.after for f in report.diagnose(unknown).findings for change in f.changes
    )
    parts = made(np.linspace(3.0, 1.5, 12), {0: 3.0, 12: 1.5})
    parts = replace(parts, hyperparameters=KNOWN | {"batch_size": 32, "accumulation_steps": 4})
    changes = report.diagnose(parts).findings[0].changes
    assert [(c.knob, c.before, c.after) for c in changes] == [("batch_size", 32, 16), ("accumulation_steps", 4, 1)]


@pytest.mark.parametrize("full", [{}, {5 * n: 0.62 + 2.4 * math.exp(-n / 4) for n in range(21)}])
def test_a_large_batch_that_has_learnt_is_not_said_to_have_too_few_updates(full: dict[int, float]) -> None:
    run = made(falling(3.0, 0.6, 100), full, noise=0.02)
    run = replace(run, steps_per_epoch=5, hyperparameters=KNOWN | {"batch_size": 64, "n_epochs": 20})
    assert "still_improving" not in codes(report.diagnose(run))
    short = made(np.linspace(3.0, 1.5, 12), {step: loss for step, loss in full.items() if step <= 10})
    short = replace(short, steps_per_epoch=4, hyperparameters=KNOWN | {"batch_size": 64})
    assert "still_improving" in codes(report.diagnose(short))


@pytest.mark.parametrize("train", [[0.0] * 30, [0.0] * 25 + [1.0] * 5, [-1.0] * 30])
@pytest.mark.parametrize("full", [{}, {"full_valid_loss": 0.0}, {"valid_loss": 0.0, "f1": 0.0}])
def test_losses_of_nothing_are_read_too(train: list[float], full: dict[str, float]) -> None:
    points = [{"step": step, "train_loss": loss, **full} for step, loss in enumerate(train, 1)]
    run = history.from_points(points, hyperparameters={"batch_size": 1, "n_epochs": 6}, steps_per_epoch=5, usual_learning_rate=1e-4)
    watch.Watch().hear(run)
    assert report.diagnose(run).verdict


def test_the_learning_rate_goes_to_the_usual_one_and_not_beyond() -> None:
    slow = report.diagnose(made(falling(3.0, 2.7), {0: 3.0, 25: 2.9, 50: 2.85, 75: 2.8}, multiplier=0.15))
    assert slow.findings[0].code == "slow_learning" and slow.next_hyperparameters["learning_rate_multiplier"] == 1.0


# --- healthy curves of many shapes, and others ---


def many(count: int, seed: int, make: Callable[[np.random.Generator], History]) -> list[set[str]]:
    random = np.random.default_rng(seed)
    return [{f.code for f in report.diagnose(make(random)).findings if f.severity != "info"} for _ in range(count)]


def wavering(random: np.random.Generator) -> History:
    """A sound run whose training loss is noisy, at any learning rate."""
    steps = int(random.choice([100, 300, 1000]))
    at = np.arange(steps)
    train = np.abs(0.5 + 1.5 * np.exp(-at / (steps / 5)) + 0.5 * random.uniform(0.1, 0.4) * random.standard_normal(steps))
    valid = {round(steps * share): 0.55 + 1.5 * math.exp(-5 * share) for share in (0, 0.2, 0.4, 0.6, 0.8, 1)}
    return made(train, valid, noise=0.0, multiplier=float(random.choice([1.0, 4.5])))


def strong(random: np.random.Generator) -> History:
    """A base that knows the task: a quick small fall, then next to nothing; the usual learning rate is not known."""
    at = np.arange(300)
    train = 1.1 + 0.25 * np.exp(-at / 10) + 0.05 * random.standard_normal(300)
    valid = {30 * n: 1.12 + 0.2 * math.exp(-3 * n) for n in range(1, 11)}
    return replace(made(train, valid, noise=0.0), usual_learning_rate=None)


def few_epochs(random: np.random.Generator) -> History:
    """Five epochs of a sound run with 5 % of noise."""
    loss = (0.6 + 1.4 * np.exp(-1.5 * np.arange(5))) * (1 + 0.05 * random.standard_normal(5))
    return table(train_loss=[2.0, 1.0, 0.7, 0.6, 0.55], full_valid_loss=loss.tolist())


@pytest.mark.parametrize(("make", "at_most"), [(wavering, 2), (strong, 2), (few_epochs, 5)])
def test_sound_curves_of_many_shapes_are_left_alone(make: Callable[[np.random.Generator], History], at_most: int) -> None:
    said = [codes for codes in many(100, 0, make) if codes]
    assert len(said) <= at_most, said


def test_rising_ones_of_many_shapes_are_found() -> None:
    def rising(random: np.random.Generator) -> History:
        count = int(random.integers(6, 40))
        at = np.linspace(0, 1, count)
        loss = (1.0 + 2.0 * (at - random.uniform(0.2, 0.5)) ** 2) * (1 + random.uniform(0, 0.03) * random.standard_normal(count))
        return table(train_loss=(2.0 * np.exp(-3 * at)).tolist(), full_valid_loss=loss.tolist())

    said = many(100, 1, rising)
    assert sum("overfitting" in codes for codes in said) >= 95


def test_the_best_step_is_one_that_was_logged() -> None:
    loss = (1.0 + 2.0 * (np.linspace(0, 1, 30) - 0.4) ** 2).tolist()
    (finding,) = (f for f in report.diagnose(table(train_loss=[1.0] * 30, full_valid_loss=loss)).findings if f.code == "overfitting")
    assert finding.evidence["best_loss"] == pytest.approx(min(loss), rel=1e-3)
    assert finding.evidence["best_step"] == loss.index(min(loss)) + 1


def test_a_run_worse_than_its_base_is_told_so() -> None:
    found = report.diagnose(made(falling(3.0, 1.0), {0: 1.0, 25: 1.06, 50: 1.2, 75: 1.4}))
    assert codes(found)[0] == "no_learning" and "overfitting" not in codes(found)
    assert found.checkpoint is not None and "the base model is better than any of them" in found.checkpoint.reason


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (table(train_loss=[2.0, 1.5, 1.0], full_valid_loss=[2.1, 1.6, 1.9]), "Cannot tell whether it overfits or has converged, of 3"),
        (table(f1=[0.5, 0.6, 0.7, 0.72]), "There is no loss to judge by; F1 from 0.5 to 0.72 in 4 points."),
        (history.from_points({"step": s, "train_loss": 2.3} for s in range(1, 101)), "No learning: the training loss began at 2.3"),
    ],
)  # fmt: skip
def test_what_can_be_said_of_little(run: History, words: str) -> None:
    assert report.diagnose(run).verdict.startswith(words)


# --- a run that goes on ---


def told(runs: Iterable[History]) -> list[str]:
    """Return the keys of the events of a run that is looked at again and again."""
    watched = watch.Watch()
    return [event.key for run in runs for event in watched.hear(run)]


LONG = made(
    falling(3.0, 0.05, 150), {0: 3.0, 25: 0.7, 50: 0.8, 75: 0.95, 100: 1.0, 125: 1.05, 150: 1.1},
    accuracy={0: 0.4, 25: 0.84, 50: 0.8, 75: 0.7, 100: 0.68, 125: 0.66, 150: 0.65},
)  # fmt: skip


def test_a_finding_is_said_once_it_stands_and_only_once() -> None:
    keys = told(LONG.until(step) for step in range(1, 151))
    assert keys == ["finding:overfitting:1"]
    assert told([LONG]) == keys, "one that begins in the middle comes to the same"
    event = watch.Watch().hear(LONG)[0]
    assert event.level == "warn" and "Overfitting: the full validation loss was best at step 25" in event.message
    at = int(event.message.split(":")[0].removeprefix("Step "))
    first = next(s for s in range(1, 151) if "overfitting" in {f.code for f in report.diagnose(LONG.until(s)).findings})
    assert at > first, "not before it has stood over two evaluations"


def test_what_no_longer_holds_is_withdrawn_aloud() -> None:
    full = {0: 3.0, 10: 1.0, 20: 0.8, 30: 1.1, 40: 1.3, 50: 1.4, 60: 0.7, 70: 0.6, 80: 0.5, 90: 0.45, 100: 0.4}
    keys = told([made(falling(3.0, 0.3, 100), full)])
    assert keys[:2] == ["finding:overfitting:1", "withdrawn:overfitting:1"]


def test_a_sound_run_hears_nothing() -> None:
    assert told(SOUND.until(step) for step in range(1, 76)) == []


# --- whatever comes in ---


@settings(max_examples=150, deadline=None)
@given(
    columns=st.dictionaries(
        st.sampled_from(sorted(history.NAMES)),
        st.one_of(
            st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32)), max_size=30),
            st.builds(lambda value, count, end: [value] * count + end, st.sampled_from([0.0, 1.0, -1.0, 1e-30]), st.integers(3, 30),
                      st.lists(st.floats(0, 2), max_size=3)),
        ), max_size=6,
    ),
    known=st.fixed_dictionaries({}, optional={
        "batch_size": st.integers(1, 256), "n_epochs": st.integers(1, 500), "lora_dropout": st.floats(0, 0.99),
        "base_learning_rate": st.floats(1e-9, 1), "learning_rate_multiplier": st.floats(1e-9, 10),
    }),
    facts=st.fixed_dictionaries({}, optional={
        "steps_per_epoch": st.floats(0.5, 1e4), "total_steps": st.integers(1, 10**6), "num_validation": st.integers(0, 10**5),
        "usual_learning_rate": st.floats(1e-7, 0.1), "finished": st.booleans(), "num_training": st.integers(1, 10**6),
    }),
)  # fmt: skip
def test_any_history_is_read_and_said(columns: dict[str, list[float | None]], known: dict[str, Any], facts: dict[str, Any]) -> None:
    points = [{"step": s, **{n: v[s] for n, v in columns.items() if s < len(v)}} for s in range(30)]
    run = history.from_points(points, hyperparameters=known, **facts)
    found = report.diagnose(run)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["verdict"] == found.verdict
    assert found.verdict in " ".join(render.text(found).split()) or len(found.verdict) > 100
    assert render.markdown(found).startswith("# Report")
    assert {"base_learning_rate", "learning_rate_multiplier"} <= found.next_hyperparameters.keys()
    watch.Watch().hear(run)


def test_a_job_without_a_server_s_data_is_looked_for_where_nothing_is_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["diagnose", "ftjob-abc", "--data-dir", str(tmp_path / "none")])
    assert isinstance(done.exception, InvalidRequest) and "There is no job 'ftjob-abc'" in done.exception.message
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["no/such/folder/plot.png", "plot.xyz", "plot", "."])
def test_a_picture_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(TABLE)
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path / "results.csv"), "--plot", str(tmp_path / name)])
    assert isinstance(done.exception, InvalidRequest) and "The picture cannot be written to" in done.exception.message


def test_a_run_that_has_just_begun_is_not_told_to_evaluate_less() -> None:
    asked = {"eval_interval": 10}
    begun = replace(made(falling(3.0, 2.0, steps=10), {10: 1.9}), hyperparameters=asked, total_steps=93, finished=False)
    (found,) = [finding for finding in report.diagnose(begun).findings if finding.code == "cannot_tell"]
    assert not found.changes and found.advice.startswith("Wait")
    rarely = replace(begun, hyperparameters={"eval_interval": 40})
    (found,) = [finding for finding in report.diagnose(rarely).findings if finding.code == "cannot_tell"]
    assert [(change.knob, change.after) for change in found.changes] == [("eval_interval", 11)]
