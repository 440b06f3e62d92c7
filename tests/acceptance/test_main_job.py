"""The main job with the real small model: upload, fine-tune, events, checkpoints, result file, chat."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ..conftest import write_chat
from ..contract.serving import violations
from .deployment import KEY, Deployment, serving

#: Answers that OpenAI's specification describes; generation and file contents are not in the subset.
_SPECIFIED = re.compile(r"/v1(/(?:files|fine_tuning|models)(?!.*/content$).*)")
_checked: list[str] = []


def check(response: Any) -> None:
    """Hold an answer against OpenAI's specification."""
    assert response.headers["x-request-id"].startswith("req_")
    if path := _SPECIFIED.match(response.request.url.path):
        assert violations(response.request.method, path[1], response.status_code, response.json()) == []
        _checked.append(f"{response.request.method} {path[1]}")


@pytest.fixture(scope="module")
def deployment(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Serve, and speak through the unmodified client at its strictest."""

    def read_and_check(response: httpx.Response) -> None:
        if not response.headers["content-type"].startswith("text/event-stream"):
            response.read()
            check(response)

    with serving(tmp_path_factory.mktemp("main") / "data", model_aliases='{"gpt-4o-mini": "smollm2-135m-instruct"}') as running:
        http = openai.DefaultHttpxClient(event_hooks={"response": [read_and_check]})
        running.client = openai.OpenAI(
            base_url=f"{running.url}/v1", api_key=KEY, http_client=http, max_retries=0, _strict_response_validation=True
        )
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
    warnings = [event.message for event in events if event.level == "warn"]
    assert warnings[0].startswith("4 of 4 validation rows (100 %) are in the training file too")
    assert ["validation rows can show" in words or "12 rows to train on" in words for words in warnings[1:3]] == [True, True], warnings
    messages = [event.message for event in events if event.type == "message" and event.level == "info"]
    assert messages[:4] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file} and validation file: {job.validation_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert messages[-2:] == [f"New fine-tuned model created: {job.fine_tuned_model}", "The job has successfully completed"]
    assert messages[-3].startswith("Verdict: 4 of 4 validation rows (100 %) are in the training file too")
    # What OpenAI also says has no data; the reckoning of memory, ours, carries its figures.
    assert all(event.data == {} for event in events if event.type == "message" and not event.message.startswith("Memory:"))
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


def test_the_job_is_told_what_happened(deployment: Deployment, finished: dict[str, Any]) -> None:
    job = finished["job"]
    key = {"Authorization": f"Bearer {deployment.client.api_key}"}
    found = httpx.get(f"{deployment.url}/api/jobs/{job.id}/diagnosis", headers=key).json()
    assert (found["status"], found["final"], found["step"]) == ("succeeded", True, 12)
    assert found["findings"][0]["code"] == "leakage" and found["checkpoint"]["step"] == 12
    assert [row["line"] for row in found["rows"]["worst_validation"]] and found["rows"]["num_validation"] == 4
    again = found["next_hyperparameters"]
    assert again["learning_rate_multiplier"] == 4.0 and again["base_learning_rate"] == pytest.approx(3.7e-4, rel=0.1)
    file = deployment.client.files.create(file=("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 12), purpose="fine-tune")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": again}}
    next_job = deployment.client.fine_tuning.jobs.create(model=job.model, training_file=file.id, method=method)
    assert next_job.status == "validating_files", "the proposed hyperparameters are accepted as they are"
    deployment.client.fine_tuning.jobs.cancel(next_job.id)
    told = deployment.command("diagnose", job.id, "--json")
    assert json.loads(told)["verdict"] == found["verdict"]


def test_the_first_metric_comes_soon(finished: dict[str, Any]) -> None:
    """20 s is the goal on an idle machine (benchmarks); here only that it is not minutes."""
    assert finished["first_metric"] < 60


async def test_the_async_client_continues_from_the_fine_tuned_model(
    deployment: Deployment, finished: dict[str, Any], tmp_path: Path
) -> None:
    async def read_and_check(response: httpx.Response) -> None:
        if not response.headers["content-type"].startswith("text/event-stream"):
            await response.aread()
            check(response)

    train = write_chat(tmp_path / "more.jsonl", [(f"code for {n}", f"zq-{n}") for n in range(10)])
    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [read_and_check]})
    async with openai.AsyncOpenAI(
        base_url=f"{deployment.url}/v1", api_key=KEY, http_client=http, max_retries=0, _strict_response_validation=True
    ) as client:
        jobs = client.fine_tuning.jobs
        file = await client.files.create(file=train, purpose="fine-tune")
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 5}}}
        job = await jobs.create(model=finished["job"].fine_tuned_model, training_file=file.id, method=method, metadata={"round": "2"})
        while job.status not in ("succeeded", "failed", "cancelled"):
            await asyncio.sleep(0.2)
            job = await jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        assert str(job.fine_tuned_model).startswith("ft:smollm2-135m-instruct:")
        assert [found.id async for found in jobs.list(metadata={"round": "2"})] == [job.id]
        # Four to start, few rows, memory, sharing, two steps, that nothing validates, a verdict, three to end.
        assert len([event async for event in jobs.list_events(job.id)]) == 14
        (checkpoint,) = [c async for c in jobs.checkpoints.list(job.id)]
        assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model
        assert (await client.files.content(job.result_files[0])).text.startswith("step,train_loss,train_accuracy,")
        question: Any = [{"role": "user", "content": "code for 3"}]
        stream = await client.chat.completions.create(
            model=str(job.fine_tuned_model), messages=question, stream=True, stream_options={"include_usage": True}, max_tokens=8, seed=1
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])


def test_every_answer_was_held_against_the_specification() -> None:
    seen = {re.sub(r"(ft|ftjob|file)[-:][^/]+", "*", path) for path in _checked}
    assert seen >= {
        "POST /files", "GET /files/*", "POST /fine_tuning/jobs", "GET /fine_tuning/jobs", "GET /fine_tuning/jobs/*",
        "GET /fine_tuning/jobs/*/events", "GET /fine_tuning/jobs/*/checkpoints", "GET /models",
    }  # fmt: skip
