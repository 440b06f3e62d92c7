"""`tunesmith.train` and the run folder it leaves: what is in it, how it goes on, and what it refuses."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

import tunesmith
from tunesmith import plots
from tunesmith.domain.jobs import Request
from tunesmith.domain.runs import MetricPoint
from tunesmith.errors import DataError, InvalidRequest, ModelNotFound, TrainingFailed
from tunesmith.settings import Settings
from tunesmith.training import lora
from tunesmith.training.network import Network

from ..conftest import write_chat

ASKED: dict[str, Any] = {
    "n_epochs": 2, "batch_size": 4, "accumulation_steps": 2, "learning_rate_multiplier": 2e-3, "lora_rank": 4, "eval_interval": 2,
}  # fmt: skip
METRICS = {
    "step", "total_steps", "epoch", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy",
    "full_valid_loss", "full_valid_mean_token_accuracy", "learning_rate", "grad_norm", "tokens_seen", "tokens_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings under which `tiny` may be used."""
    room = tmp_path_factory.mktemp("home")
    return Settings(data_dir=room / "data", cache_dir=room / "cache", allowed_models=(str(tiny),))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    room = tmp_path_factory.mktemp("files")
    pairs = [(f"{chr(97 + i % 26)}{i}", chr(97 + i % 26) * (2 + i % 5)) for i in range(60)]
    return write_chat(room / "train.jsonl", pairs[:40]), write_chat(room / "valid.jsonl", pairs[40:])


def train(home: Settings, files: tuple[Path, Path | None], output: Path, **more: Any) -> tunesmith.Run:
    run: tunesmith.Run = tunesmith.train(files[0], model="tiny", valid=files[1], output=output, settings=home, **(ASKED | more))
    return run


@pytest.fixture(scope="module")
def done(home: Settings, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tunesmith.Run:
    """Return one whole run: 2 epochs of 5 steps."""
    return train(home, files, tmp_path_factory.mktemp("runs") / "whole")


def pause_at(question: int) -> Callable[[], Request]:
    asked = 0

    def request() -> Request:
        nonlocal asked
        asked += 1
        return "pause" if asked >= question else "run"

    return request


def bits(run: tunesmith.Run) -> str:
    return hashlib.sha256((run.directory / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def timeless(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in point.items() if key != "tokens_per_second"} for point in points]


def test_the_folder(done: tunesmith.Run) -> None:
    there = {path.name for path in done.directory.iterdir() if not path.name.startswith(".")}
    assert there == {
        "spec.json", "data_findings.json", "metrics.jsonl", "step_metrics.csv", "events.jsonl", "row_losses.jsonl", "checkpoints",
        "adapter", "loss.png", "token_accuracy.png", "report.md", "result.json",
    }  # fmt: skip
    assert {path.name for path in (done.directory / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    }  # fmt: skip
    assert sorted(path.name for path in (done.directory / "checkpoints").iterdir()) == ["step-000005", "step-000010"]


def test_the_spec_says_what_was_asked_what_runs_and_why(done: tunesmith.Run) -> None:
    spec = done.spec
    assert spec["asked"] == ASKED and spec["model"] == "tiny" and spec["base"] == "tiny"
    assert spec["resolved"]["lora_rank"] == 4 and spec["resolved"]["reasons"]["lora_rank"] == "asked"
    assert spec["resolved"]["seed"] == 42 and spec["resolved"]["reasons"]["seed"] == "default"
    assert spec["resolved"]["max_length"] == 512 and "the model's 512" in spec["resolved"]["reasons"]["max_length"]
    assert {"device", "dtype", "threads", "token_budget"} <= set(spec["resolved"]["reasons"])
    assert spec["data"]["training"]["sha256"] == hashlib.sha256(Path(spec["data"]["training"]["path"]).read_bytes()).hexdigest()


def test_the_metrics(done: tunesmith.Run) -> None:
    points = done.metrics
    assert [point["step"] for point in points] == list(range(11))
    assert set().union(*points) == METRICS
    assert set(points[0]) == {"step", "total_steps", "epoch", "full_valid_loss", "full_valid_mean_token_accuracy", "tokens_seen"}
    assert [point["step"] for point in points if "valid_loss" in point] == [2, 4, 6, 8, 10]
    assert [point["step"] for point in points if "full_valid_loss" in point] == [0, 5, 10]
    assert points[-1]["epoch"] == 2.0 and all(point["total_steps"] == 10 for point in points)


def test_the_csv(done: tunesmith.Run) -> None:
    with (done.directory / "step_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 11)]
    assert rows[0]["valid_loss"] == "" and float(rows[1]["valid_loss"]) == pytest.approx(done.metrics[2]["valid_loss"], abs=1e-5)
    assert float(rows[9]["train_accuracy"]) == pytest.approx(done.metrics[10]["train_mean_token_accuracy"], abs=1e-5)


def test_the_events(done: tunesmith.Run) -> None:
    events = done.events
    keys = [event["key"] for event in events]
    assert len(set(keys)) == len(keys) and [key for key in keys if key.startswith("step:")] == [f"step:{n}" for n in range(11)]
    assert all({"created_at", "level", "type", "key", "message", "data"} == set(event) for event in events)
    assert events[-2]["message"] == "Training stopped at step 10: n_epochs 2 reached."
    assert events[-1]["message"] == f"Verdict: {done.diagnosis.verdict}"
    assert (done.directory / "report.md").read_text().startswith(f"# Report: tiny\n\n**{done.diagnosis.verdict}**\n")
    assert done.result is not None and done.result["reason"] == "n_epochs 2 reached." and done.result["chosen_step"] == 10
    assert next(event for event in events if event["key"] == "step:5")["data"]["full_valid_loss"] == done.metrics[5]["full_valid_loss"]


def test_base_tuned_and_difference(done: tunesmith.Run) -> None:
    points, summary = done.metrics, done.summary
    for key in ("full_valid_loss", "full_valid_mean_token_accuracy"):
        assert summary["base"][key] == points[0][key] and summary["tuned"][key] == points[10][key]
        assert summary["difference"][key] == points[10][key] - points[0][key]
    assert summary["difference"]["full_valid_loss"] < 0


def ink(path: Path, color: str) -> int:
    """Count the pixels that have a colour."""
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(-1) <= 8).sum())


@pytest.mark.parametrize("name", ["loss.png", "token_accuracy.png"])
def test_the_pictures_are_drawn(done: tunesmith.Run, tmp_path: Path, name: str) -> None:
    blue, green, red, grey = "#1f6fd6", "#2e9e4f", "#d62728", "#8a8a8a"
    path = done.directory / name
    height, width, _ = matplotlib.image.imread(path).shape
    assert width >= 1000 and height >= 500
    for color in (blue, green, red, grey):
        assert ink(path, color) > 40, color
    plots.save([{k: v for k, v in point.items() if "valid" not in k} for point in done.metrics if point["step"]], tmp_path)
    assert ink(tmp_path / name, blue) > 40  # without validation there is a blue line and nothing else
    assert ink(tmp_path / name, green) == ink(tmp_path / name, red) == 0
    plots.save([], tmp_path)
    assert ink(tmp_path / name, blue) == 0


def test_the_pictures_have_labels_and_borders(done: tunesmith.Run) -> None:
    figure = done.plot()
    loss, accuracy = figure.axes
    assert loss.get_ylabel() == "loss (nats per target token)" and accuracy.get_ylabel() == "share of target tokens predicted"
    assert accuracy.get_xlabel() == "step (optimizer updates)"
    words = [text.get_text() for text in loss.get_legend().get_texts()]
    assert words[:3] == ["train", "validation", "full validation"] and words[3].startswith("base model (")
    lines = {line.get_label(): line for line in loss.lines}
    assert list(lines["train"].get_xdata()) == list(range(1, 11))
    assert list(lines["full validation"].get_xdata()) == [5, 10] and lines["full validation"].get_linestyle() == "None"
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == ":"] == [5]


def test_a_run_in_a_notebook(done: tunesmith.Run) -> None:
    assert repr(done) == f"Run({str(done.directory)!r}, step 10)"
    html = done._repr_html_()
    assert html.count("<tr>") == 3 and f"{done.summary['base']['full_valid_loss']:.4f}" in html
    assert "data:image/png;base64,iVBOR" in html


def test_chat(done: tunesmith.Run) -> None:
    answer = done.chat("a1", max_tokens=5, temperature=0)
    assert isinstance(answer, str) and answer == done.chat([{"role": "user", "content": "a1"}], max_tokens=5, temperature=0)
    base, adapter = done.model_directories()
    assert base.name == "tiny" and adapter == done.directory / "adapter"


def test_a_finished_run_is_returned_as_it_is(done: tunesmith.Run, home: Settings, files: tuple[Path, Path]) -> None:
    def stop() -> Request:
        raise AssertionError("it trains")

    before = {path: path.stat().st_mtime_ns for path in done.directory.rglob("*") if path.name != ".lock"}
    again = train(home, files, done.directory, request=stop)
    assert again.result == done.result and again.chat("b2", max_tokens=2) is not None
    assert before == {path: path.stat().st_mtime_ns for path in done.directory.rglob("*") if path.name != ".lock"}


def said(run: tunesmith.Run) -> list[tuple[str, str]]:
    """Return what a run said but of memory, which is the moment's."""
    return [(event["key"], event["message"]) for event in run.events if event["key"] != "memory"]


@pytest.mark.parametrize("question", [1, 8, 9, 14])
def test_an_interrupted_run_goes_on(done: tunesmith.Run, home: Settings, files: tuple[Path, Path], tmp_path: Path, question: int) -> None:
    """Stopped in the base evaluation, in step 5, in its evaluation and in a later step: the same bits in the end, each step there once."""
    cut = train(home, files, tmp_path / "run", request=pause_at(question))
    assert cut.result is None and (tmp_path / "run" / "loss.png").is_file() and len(cut.metrics) < 11
    with pytest.raises(InvalidRequest, match="has no model yet"):
        cut.chat("a")
    heard: list[int] = []
    whole = train(home, files, tmp_path / "run", on_metric=lambda point: heard.append(point.step))
    assert whole.result == done.result and bits(whole) == bits(done)
    assert timeless(whole.metrics) == timeless(done.metrics) and whole.row_losses == done.row_losses
    assert [rows["step"] for rows in done.row_losses] == [0, 5, 10] and "lines" in done.row_losses[0]
    assert said(whole) == said(done)
    assert heard == list(range(heard[0], 11))
    assert sorted(path.name for path in (whole.directory / "checkpoints").iterdir()) == ["step-000005", "step-000010"]


def test_a_step_said_after_its_checkpoint_is_not_said_again(
    done: tunesmith.Run, home: Settings, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Paused in the evaluation of step 5, gone on with, killed once its figures were out: the checkpoint is still the old one."""
    train(home, files, tmp_path / "run", request=pause_at(9))
    for name in ("metrics.jsonl", "events.jsonl"):
        shutil.copy(done.directory / name, tmp_path / "run" / name)
    run = train(home, files, tmp_path / "run")
    assert timeless(run.metrics) == timeless(done.metrics) and run.result == done.result and bits(run) == bits(done)
    assert {event["key"]: event["message"] for event in run.events} == {event["key"]: event["message"] for event in done.events}


def test_rows_of_a_step_whose_figures_were_not_out_are_there_once(
    done: tunesmith.Run, home: Settings, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Paused in the evaluation of step 5, gone on with, killed between the rows' losses and the figures."""
    train(home, files, tmp_path / "run", request=pause_at(9))
    path = tmp_path / "run" / "row_losses.jsonl"
    path.write_text("".join((done.directory / path.name).read_text().splitlines(keepends=True)[:2]))
    run = train(home, files, tmp_path / "run")
    assert run.row_losses == done.row_losses and timeless(run.metrics) == timeless(done.metrics)


def torn(directory: Path) -> None:
    """A kill while a line was written, after the newest checkpoint."""
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train_lo')
    with (directory / "events.jsonl").open("a") as file:
        file.write('{"key": "st')


def unheard(directory: Path) -> None:
    """A kill after the last checkpoint was written and before the folder noted it."""
    (directory / "checkpoints" / "step-000010" / "checkpoint.json").unlink()


def lost(directory: Path) -> None:
    """A kill before the last checkpoint: five steps were said that no checkpoint knows."""
    shutil.rmtree(directory / "checkpoints" / "step-000010")


def damaged(directory: Path) -> None:
    with (directory / "checkpoints" / "step-000010" / "adapter_model.safetensors").open("r+b") as file:
        file.write(b"\xff")


@pytest.mark.parametrize(
    "accident", [lambda directory: None, torn, unheard, lost, damaged], ids=["end", "torn", "unheard", "lost", "damaged"]
)
def test_a_crash_near_the_end_is_made_good(
    done: tunesmith.Run, home: Settings, files: tuple[Path, Path], tmp_path: Path, accident: Callable[[Path], None]
) -> None:
    """Whatever was left undone when the run was cut off after its last step, the same command finishes it."""
    shutil.copytree(done.directory, tmp_path / "run")
    for name in ("result.json", "step_metrics.csv", "loss.png"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "adapter")
    accident(tmp_path / "run")
    run = train(home, files, tmp_path / "run")
    assert run.result == done.result and bits(run) == bits(done)
    assert timeless(run.metrics) == timeless(done.metrics)
    assert {event["key"]: event["message"] for event in run.events} == {event["key"]: event["message"] for event in done.events}
    assert (tmp_path / "run" / "loss.png").is_file()


@pytest.mark.parametrize(
    "change,words",
    [
        ({"lora_rank": 8}, "another asked: lora_rank 4 there, 8 asked"),
        ({"seed": 1}, "another asked: seed 'default' there, 1 asked"),
        ({"model": "other"}, "another model: 'tiny' there, 'other' asked"),
    ],
)
def test_another_spec_is_an_error_that_says_what_differs(
    done: tunesmith.Run, home: Settings, files: tuple[Path, Path], tiny: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(tiny, tmp_path / "other")
    settings = Settings(data_dir=home.data_dir, cache_dir=home.cache_dir, allowed_models=(*home.allowed_models, str(tmp_path / "other")))
    arguments: dict[str, Any] = {"model": "tiny", "valid": files[1], "output": done.directory, "settings": settings} | ASKED | change
    with pytest.raises(InvalidRequest) as caught:
        tunesmith.train(files[0], **arguments)
    assert words in caught.value.message and "Hint: give the same arguments" in caught.value.message


def test_other_data_is_an_error_but_another_path_is_not(
    done: tunesmith.Run, home: Settings, files: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = shutil.copy(files[0], tmp_path / "moved.jsonl")
    assert train(home, (Path(moved), files[1]), done.directory).result == done.result
    with moved.open("a") as file:
        file.write(files[1].read_text().splitlines(keepends=True)[0])
    for changed in ((moved, files[1]), (files[0], None), (files[0], moved)):
        with pytest.raises(InvalidRequest, match="holds a run with another data"):
            train(home, changed, done.directory)


def test_a_mistake_leaves_the_folder_free(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    """After arguments or data that were refused, the same folder takes the corrected ones."""
    with pytest.raises(InvalidRequest, match="the learning rate must lie"):
        train(home, files, tmp_path / "run", learning_rate_multiplier=3)
    bad = write_chat(tmp_path / "bad.jsonl", [("q", "a<|im_end|>")] * 10)
    with pytest.raises(DataError, match="invalid token"):
        train(home, (bad, None), tmp_path / "run")
    run = train(home, files, tmp_path / "run", n_steps=1)
    assert run.result is not None and run.spec["asked"]["n_steps"] == 1


def test_two_at_once_in_one_folder(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    (tmp_path / "run").mkdir()
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run" / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin and other.stdout and other.stdout.readline() == b"held\n"
    try:
        with pytest.raises(InvalidRequest, match="is in use by another run that is going on right now"):
            train(home, files, tmp_path / "run")
    finally:
        other.communicate()
    inner: list[str] = []

    def second() -> Request:
        if not inner:
            with pytest.raises(InvalidRequest, match="is in use") as caught:
                train(home, files, tmp_path / "run")
            inner.append(caught.value.message)
        return "pause"

    train(home, files, tmp_path / "run", request=second)
    assert inner


def test_a_split_where_no_validation_file_is_given(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    run = train(home, (files[0], None), tmp_path / "run", n_epochs=1, select_by="full_valid_loss")
    assert run.spec["resolved"]["training_split"] == 0.8
    assert run.metrics[-1]["step"] == 4 and "full_valid_loss" in run.metrics[0]  # 32 of 40 rows, 8 a step
    alone = train(home, (files[0], None), tmp_path / "alone", n_epochs=1, training_split=None)
    assert alone.metrics[-1]["step"] == 5 and alone.summary == {} and alone.metrics[0]["step"] == 1
    assert "<table>" not in alone._repr_html_()


def test_full_tuning_leaves_a_model(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    run = train(home, files, tmp_path / "run", tuning="full", n_steps=1, learning_rate_multiplier=1e-4)
    assert not (run.directory / "adapter").exists()
    assert run.model_directories() == (run.directory / "model", None)
    assert not {"optimizer.safetensors", "checkpoint.json", "state.json"} & {path.name for path in (run.directory / "model").iterdir()}
    assert isinstance(run.chat("a", max_tokens=2), str)


def test_what_is_refused_before_anything_is_made(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    few = write_chat(tmp_path / "few.jsonl", [("q", "a")] * 9)
    with pytest.raises(InvalidRequest, match=r"Unknown hyperparameter 'lora_rang'\. Did you mean 'lora_rank'"):
        train(home, files, tmp_path / "run", lora_rang=3)
    with pytest.raises(InvalidRequest, match=r"training file .*nowhere\.jsonl' does not exist"):
        train(home, (tmp_path / "nowhere.jsonl", None), tmp_path / "run")
    with pytest.raises(InvalidRequest, match=r"validation file .*nowhere\.jsonl' does not exist"):
        train(home, (files[0], tmp_path / "nowhere.jsonl"), tmp_path / "run")
    with pytest.raises(DataError, match=r"has 9 example\(s\)"):
        train(home, (few, None), tmp_path / "run")
    with pytest.raises(ModelNotFound, match=r"The model 'gpt-9' does not exist.*Bases here: smollm2-135m-instruct, tiny"):
        tunesmith.train(files[0], model="gpt-9", output=tmp_path / "run", settings=home)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InvalidRequest, match="is no run folder"):
        tunesmith.Run(tmp_path)


def test_a_warning_is_heard_and_kept(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    heard: list[str] = []
    run = train(home, files, tmp_path / "run", n_steps=1, learning_rate_multiplier=1e-9, on_event=lambda event: heard.append(event.message))
    warning = next(event for event in run.events if event["level"] == "warn")
    assert "may learn nothing" in warning["message"] and warning["message"] in heard
    assert json.loads((run.directory / "result.json").read_text())["step"] == 1


def test_what_the_data_shows_is_kept_and_said(done: tunesmith.Run, home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    assert [finding["code"] for finding in done.data_findings] == ["small_validation", "too_little_data"]
    said = {event["key"]: event for event in done.events if event["key"].startswith("data:")}
    assert {key: event["level"] for key, event in said.items()} == {"data:small_validation": "warn", "data:too_little_data": "warn"}
    assert said["data:small_validation"]["message"].startswith("20 validation rows can show a difference in accuracy of 22 points or more")
    run = train(home, (files[0], files[0]), tmp_path / "run", n_steps=1)
    assert run.data_findings[0]["code"] == "leakage" and run.data_findings[0]["evidence"]["rows"] == 40
    split = train(home, (files[0], None), tmp_path / "split", n_steps=1)
    assert {f["code"]: f["evidence"]["rows"] for f in split.data_findings} == {"small_validation": 8, "too_little_data": 32}
    (split.directory / "data_findings.json").unlink()
    assert split.data_findings == [], "a run of before there were any"


def test_rows_that_were_cut_or_left_out_are_findings(home: Settings, tmp_path: Path) -> None:
    rows = [(f"q{n}", "a" * 3) for n in range(30)]
    rows[4], rows[7] = ("q", "long " * 40), ("much too long a question " * 20, "a")
    run = train(home, (write_chat(tmp_path / "train.jsonl", rows), None), tmp_path / "run", n_steps=1, max_length=64)
    found = {finding.code: finding for finding in run.diagnosis.findings}
    assert found["truncated_rows"].evidence["training_lines"] == [5, 8] and found["no_target_rows"].evidence["training_lines"] == [8]
    assert "1 of 24 training rows" in found["no_target_rows"].message


def test_a_run_that_breaks_down_is_told_so(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="diverged"):
        train(
            home,
            files,
            tmp_path / "run",
            base_learning_rate=1e-2,
            learning_rate_multiplier=1.0,
            lora_alpha=65536,
            lora_dropout=0.0,
            n_epochs=60,
        )
    run = tunesmith.Run(tmp_path / "run")
    finding = run.diagnosis.findings[0]
    assert finding.code == "non_finite" and finding.steps is not None and finding.steps[0] == run.metrics[-1]["step"] + 1
    assert run.diagnosis.next_hyperparameters["learning_rate_multiplier"] == 0.1
    assert "the run broke down there" in (tmp_path / "run" / "report.md").read_text()
    assert run.events[-2]["key"] == "failed" and run.events[-1]["message"].startswith("Verdict: At step")


def test_what_cannot_be_diagnosed_costs_no_run(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    def spoil(point: MetricPoint) -> None:
        (tmp_path / "run" / "data_findings.json").write_text('{"code": 3}')

    run = train(home, files, tmp_path / "run", n_steps=4, on_metric=spoil)
    assert run.result is not None and not (run.directory / "report.md").exists()
    assert "not what Tunesmith writes" in next(event["message"] for event in run.events if event["key"] == "undiagnosed")
    with pytest.raises(InvalidRequest, match="not what Tunesmith writes"):
        run.diagnosis


def test_rows_beyond_a_megabyte_a_line_are_read(done: tunesmith.Run, tmp_path: Path) -> None:
    shutil.copytree(done.directory, tmp_path / "run")
    rows = {"step": 0, "of": "validation", "loss": [1.2345] * 100_000, "lines": list(range(1, 100_001)), "num_targets": [9] * 100_000}
    (tmp_path / "run" / "row_losses.jsonl").write_text(json.dumps(rows) + "\n" + json.dumps({"step": 10, "loss": [1.0] * 100_000}) + "\n")
    assert tunesmith.Run(tmp_path / "run").diagnosis.rows["num_validation"] == 100_000


def test_nothing_of_a_run_stays_in_memory(home: Settings, files: tuple[Path, Path], tmp_path: Path) -> None:
    """One that trains again and again in a process must not keep every model."""
    train(home, files, tmp_path / "run", n_steps=1)
    gc.collect()
    left = [type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, (lora.LoraGroup, Network))]
    assert left == []
    run = Network.__new__(Network)
    assert any(thing is run for thing in gc.get_objects()), "what is kept would be seen"
