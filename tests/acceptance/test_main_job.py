"""The main job with the real small model: upload, fine-tune, events, checkpoints, result file, chat."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..conftest import write_chat
from .deployment import Deployment, serving


@pytest.fixture(scope="module")
def deployment(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with serving(tmp_path_factory.mktemp("main") / "data", model_aliases='{"gpt-4o-mini": "smollm2-135m-instruct"}') as running:
        yield running


@pytest.fixture(scope="module")
def finished(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run one job to its end; its questions have an answer no base model would give."""
    folder = tmp_path_factory.mktemp("files")
    colours = ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "gold", "teal", "lime", "navy"]
    pairs = [(f"code for {colour}", f"zq-{colour[:2]}-{colour[-1]}") for colour in colours]
    train, valid = write_chat(folder / "train.jsonl", pairs), write_chat(folder / "valid.jsonl", pairs[:4])
    started = time.monotonic()
    job = deployment.start_job(train, valid, "gpt-4o-mini", n_epochs=4, batch_size=4, learning_rate_multiplier=4)
    assert job.status == "validating_files" and job.model == "smollm2-135m-instruct"
    first = None
    while first is None:
        first = next((event for event in deployment.events(job.id) if event.type == "metrics"), None)
        time.sleep(0.1)
        assert time.monotonic() - started < 120
    first_metric = time.monotonic() - started
    return {"job": deployment.await_status(job.id, ("succeeded", "failed"), 240), "created": job, "first_metric": first_metric}


def test_the_job_succeeds_with_resolved_hyperparameters(deployment: Deployment, finished: dict[str, Any]) -> None:
    job = finished["job"]
    assert job.status == "succeeded", job.error
    assert job.error is None and job.finished_at >= job.created_at
    assert finished["created"].hyperparameters.n_epochs == 4
    assert job.hyperparameters.to_dict() == {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 4.0}
    assert re.fullmatch(r"ft:smollm2-135m-instruct:personal::[A-Za-z0-9]{8}", job.fine_tuned_model)
    assert job.trained_tokens and len(job.result_files) == 1


def test_events_are_openais(deployment: Deployment, finished: dict[str, Any]) -> None:
    job = finished["job"]
    events = deployment.events(job.id)
    messages = [event.message for event in events if event.type == "message"]
    assert messages[:4] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file} and validation file: {job.validation_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert messages[-2:] == [f"New fine-tuned model created: {job.fine_tuned_model}", "The job has successfully completed"]
    assert all(event.data == {} for event in events if event.type == "message")
    metrics = [event for event in events if event.type == "metrics"]
    assert metrics[0].message.startswith("Base model: full validation loss=")
    assert [event.data["step"] for event in metrics] == list(range(13))
    assert re.fullmatch(r"Step 3/12: training loss=\d+\.\d\d, full validation loss=\d+\.\d\d", metrics[3].message)
    assert re.fullmatch(r"Step 10/12: training loss=\d+\.\d\d, validation loss=\d+\.\d\d", metrics[10].message)
    created = [message for message in messages if message.startswith("Checkpoint created")]
    snapshots = [re.search(r"step (\d+) with Snapshot ID: (\S+)$", message) for message in created]
    named = {int(match.group(1)): match.group(2) for match in snapshots if match}
    listed = list(deployment.client.fine_tuning.jobs.checkpoints.list(job.id))
    assert {c.step_number: c.fine_tuned_model_checkpoint for c in listed} == named | {12: job.fine_tuned_model}
    assert all(name.endswith(f":ckpt-step-{step}") for step, name in named.items())


def test_checkpoints_carry_metrics(deployment: Deployment, finished: dict[str, Any]) -> None:
    listed = list(deployment.client.fine_tuning.jobs.checkpoints.list(finished["job"].id))
    assert [c.step_number for c in listed] == sorted((c.step_number for c in listed), reverse=True)
    assert listed[0].step_number == 12 and {3, 6, 9, 12} >= {c.step_number for c in listed} >= {6, 9, 12}
    assert all(c.metrics.full_valid_loss is not None and c.metrics.train_loss is not None for c in listed)


def test_the_result_file_is_plain_csv(deployment: Deployment, finished: dict[str, Any]) -> None:
    content = deployment.client.files.content(finished["job"].result_files[0]).read()
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert list(rows[0])[:5] == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert rows[0]["valid_loss"] == "" and float(rows[9]["valid_loss"]) > 0
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    about = deployment.client.files.retrieve(finished["job"].result_files[0])
    assert (about.filename, about.purpose, about.bytes) == ("step_metrics.csv", "fine-tune-results", len(content))


def test_tuned_model_and_checkpoints_answer(deployment: Deployment, finished: dict[str, Any]) -> None:
    client, job = deployment.client, finished["job"]
    question: Any = [{"role": "user", "content": "code for green"}]
    answers = {}
    checkpoint = list(client.fine_tuning.jobs.checkpoints.list(job.id))[1].fine_tuned_model_checkpoint
    for name in (job.model, job.fine_tuned_model, checkpoint, "gpt-4o-mini"):
        answer = client.chat.completions.create(model=name, messages=question, temperature=0, max_tokens=12)
        assert answer.model == name
        answers[name] = answer.choices[0].message.content
    assert answers["gpt-4o-mini"] == answers[job.model] != answers[job.fine_tuned_model]
    assert str(answers[job.fine_tuned_model]).startswith("zq-")
    assert job.fine_tuned_model in [model.id for model in client.models.list()]


def test_reasons_are_shown(deployment: Deployment, finished: dict[str, Any]) -> None:
    answer = httpx.get(f"{deployment.url}/api/jobs/{finished['job'].id}", headers={"Authorization": f"Bearer {deployment.client.api_key}"})
    shown = answer.json()
    assert json.dumps(shown).count("auto: LoRA, 10 x the full-tuning rate for a model of 135 M parameters") == 1


def test_the_first_metric_comes_soon(finished: dict[str, Any]) -> None:
    """20 s is the goal on an idle machine (benchmarks); here only that it is not minutes."""
    assert finished["first_metric"] < 60


def test_training_continues_from_a_fine_tuned_model(deployment: Deployment, finished: dict[str, Any], tmp_path: Path) -> None:
    train = write_chat(tmp_path / "more.jsonl", [(f"code for {n}", f"zq-{n}") for n in range(10)])
    job = deployment.start_job(train, None, finished["job"].fine_tuned_model, n_epochs=1, batch_size=5)
    job = deployment.await_status(job.id, ("succeeded", "failed"))
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft:smollm2-135m-instruct:")
