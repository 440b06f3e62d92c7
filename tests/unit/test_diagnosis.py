"""The rules on histories made up for them; each with the same run made well beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.diagnosis import history, report
from tunesmith.diagnosis.history import History
from tunesmith.domain.findings import Diagnosis

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
    loss = np.full((2, 40), 0.5)
    loss[0] = 3.0
    loss[1] += np.linspace(0, 0.1, 40)
    lines = list(range(1, 41))
    evaluations = [{"step": 0, "loss": loss[0].tolist(), "lines": lines, "num_targets": [20] * 40}, {"step": 75, "loss": loss[1].tolist()}]
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
