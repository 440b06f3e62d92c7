"""The unmodified `openai` client, strict, drives the server; each answer also satisfies OpenAI's specification."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tunesmith.domain.jobs import JobError
from tunesmith.store import jobs, queue, records

from . import serving
from .serving import BASE, KEY, TRAIN, Parrot, Serving

#: What this run's answers are checked against; the generation endpoints and file contents are not in the subset.
_SPECIFIED = re.compile(r"/v1(/(?:files|fine_tuning|models)(?!.*/content$).*)")


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def server(tmp_path: Path, database_url: str, parrot: Parrot) -> Iterator[Serving]:
    with serving.serve(serving.settings(tmp_path, database_url=database_url), parrot) as running:
        yield running


@pytest.fixture
def checked() -> list[str]:
    """The answers that were held against the specification."""
    return []


@pytest.fixture
def client(server: Serving, checked: list[str]) -> Iterator[openai.OpenAI]:
    def check(response: Any) -> None:
        path = _SPECIFIED.match(response.request.url.path)
        if path:
            response.read()
            found = serving.violations(response.request.method, path[1], response.status_code, response.json())
            assert [words for words in found if "'paused' is not one of" not in words] == []
            checked.append(f"{response.request.method} {path[1]}")
        assert response.headers["x-request-id"].startswith("req_")

    http = openai.DefaultHttpxClient(event_hooks={"response": [check]})
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, http_client=http, _strict_response_validation=True, max_retries=0
    ) as strict:
        yield strict


def upload(client: openai.OpenAI, content: bytes = TRAIN) -> str:
    return client.files.create(file=("train.jsonl", content), purpose="fine-tune").id


def train(server: Serving, client: openai.OpenAI, **asked: Any) -> Any:
    """Create a job and let a worker take it to success."""
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client), **asked)
    serving.validate(server.context)
    serving.succeed(server.context, serving.begin(server.context))
    return client.fine_tuning.jobs.retrieve(job.id)


def test_a_job_from_upload_to_chat(server: Serving, client: openai.OpenAI, checked: list[str], parrot: Parrot) -> None:
    training = client.files.create(file=("../train.jsonl", TRAIN), purpose="fine-tune")
    assert (training.filename, training.bytes, training.status) == ("train.jsonl", len(TRAIN), "processed")
    assert client.files.content(training.id).read() == TRAIN
    assert client.files.wait_for_processing(training.id).id == training.id

    job = client.fine_tuning.jobs.create(
        model="gpt-4o-mini", training_file=training.id, suffix="Order Bot", seed=7, metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "lora_alpha": 32}}},
    )  # fmt: skip
    assert (job.status, job.model, job.seed, job.error, job.metadata) == ("validating_files", BASE, 7, None, {"team": "a"})
    assert job.hyperparameters.to_dict() == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job.to_dict()["user_provided_suffix"] == "Order Bot"
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens, job.result_files) == (None, None, None, [])

    serving.validate(server.context)
    queued = client.fine_tuning.jobs.retrieve(job.id)
    assert queued.status == "queued"
    assert queued.hyperparameters.to_dict() == {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.0}
    every = queued.to_dict()["method"]["supervised"]["hyperparameters"]
    assert every == {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.0, "lora_alpha": 64.0}
    assert isinstance(every["n_epochs"], int)

    serving.succeed(server.context, serving.begin(server.context))
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded" and done.finished_at and done.trained_tokens == 60 and done.estimated_finish is None
    assert re.fullmatch(rf"ft:{BASE}:personal:order-bot:[A-Za-z0-9]{{8}}", done.fine_tuned_model or "")

    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    assert events.has_more is False
    assert [event.message for event in reversed(events.data)] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {training.id}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Base model: full validation loss=2.50",
        "Step 1/6: training loss=2.00",
        "Step 2/6: training loss=1.00, validation loss=1.10",
        "Step 3/6: training loss=0.67",
        "Step 4/6: training loss=0.50, validation loss=0.60",
        "Step 5/6: training loss=0.40",
        "Step 6/6: training loss=0.33, validation loss=0.43, full validation loss=0.05",
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    first, last = events.data[-1], events.data[2]
    assert (first.type, first.data, first.level) == ("message", {}, "info")
    assert last.type == "metrics" and last.data == {
        "step": 6, "total_steps": 6, "train_loss": 2 / 6, "train_mean_token_accuracy": 0.5, "valid_loss": 2 / 6 + 0.1,
        "valid_mean_token_accuracy": 0.5, "full_valid_loss": 0.05, "full_valid_mean_token_accuracy": 0.9,
    }  # fmt: skip

    points = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [point.step_number for point in points] == [6, 4, 2]
    assert points[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert points[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-4")
    assert points[0].metrics.step == 6 and points[0].metrics.full_valid_loss == 0.05

    assert client.files.retrieve(done.result_files[0]).filename == "step_metrics.csv"
    assert client.files.content(done.result_files[0]).text.startswith("step,train_loss,train_accuracy,valid_loss,")

    listed = {model.id: model.owned_by for model in client.models.list()}
    assert listed[done.fine_tuned_model] == done.organization_id and listed[BASE] == "tunesmith"
    assert points[1].fine_tuned_model_checkpoint not in listed
    for name in (done.fine_tuned_model, points[1].fine_tuned_model_checkpoint, "gpt-4o-mini"):
        assert name is not None and client.models.retrieve(name).id == name
        answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hello"}], temperature=0)
        assert (answer.model, answer.choices[0].message.content) == (name, "hello")
    adapters = [target.adapter_directory for target, _, _ in parrot.asked]
    assert [path and path.name for path in adapters] == ["step-000006-f2", "step-000004-f2", None]
    assert len(checked) == 12


async def test_the_async_client(server: Serving) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, _strict_response_validation=True) as client:
        training = await client.files.create(file=("train.jsonl", TRAIN), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE, training_file=training.id)
        await asyncio.to_thread(serving.validate, server.context)
        await asyncio.to_thread(lambda: serving.succeed(server.context, serving.begin(server.context)))
        done = await client.fine_tuning.jobs.retrieve(job.id)
        assert done.status == "succeeded"
        assert len([event async for event in client.fine_tuning.jobs.list_events(job.id, limit=3)]) == 13
        assert len([point async for point in client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)]) == 3
        assert (await client.files.content(done.result_files[0])).text.count("\n") == 2
        stream = await client.chat.completions.create(
            model=done.fine_tuned_model or "", messages=[{"role": "user", "content": "one two"}], stream=True
        )
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["one", "two"]
        completion = await client.completions.create(model=done.fine_tuned_model or "", prompt="once")
        assert completion.choices[0].text == "once"


def test_files_are_listed_filtered_and_deleted(client: openai.OpenAI) -> None:
    made = [upload(client) for _ in range(5)]
    other = client.files.create(file=("a.pdf", b"%PDF"), purpose="assistants", expires_after={"anchor": "created_at", "seconds": 3600})
    assert other.expires_at == other.created_at + 3600
    assert [file.id for file in client.files.list(purpose="fine-tune", limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(order="asc")] == [*made, other.id]
    assert client.files.list(after=made[1], purpose="fine-tune").data[0].id == made[0]
    assert client.files.list(purpose="vision").data == []
    assert client.files.delete(other.id).deleted
    for missing in (lambda: client.files.retrieve(other.id), lambda: client.files.content(other.id), lambda: client.files.delete(other.id)):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {other.id}"):
            missing()


def test_a_file_in_use_stays(server: Serving, client: openai.OpenAI) -> None:
    training = upload(client)
    job = client.fine_tuning.jobs.create(model=BASE, training_file=training)
    with pytest.raises(openai.BadRequestError, match=job.id):
        client.files.delete(training)
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(training).deleted
    with pytest.raises(openai.BadRequestError, match="No such File object") as error:
        client.fine_tuning.jobs.create(model=BASE, training_file=training)
    assert error.value.param == "training_file"


def test_jobs_are_paged_and_filtered_by_metadata(client: openai.OpenAI) -> None:
    training = upload(client)
    made = [
        client.fine_tuning.jobs.create(model=BASE, training_file=training, metadata=metadata).id
        for metadata in ({"team": "a", "n": "1"}, {"team": "a"}, {"team": ""}, None, {})
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [made[1], made[0]]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a", "n": "1"})] == [made[0]]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": ""})] == [made[2]]
    for query in ({"metadata": "null"}, {"metadata": ""}):
        assert [job.id for job in client.fine_tuning.jobs.list(extra_query=query)] == [made[3]]
    assert client.fine_tuning.jobs.list(limit=5).has_more is False
    with pytest.raises(openai.BadRequestError) as error:
        client.fine_tuning.jobs.list(after="ftjob-unknown")
    assert error.value.param == "after"


def test_events_are_paged_newest_first(server: Serving, client: openai.OpenAI) -> None:
    job = train(server, client)
    whole = [event.id for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert [event.id for event in client.fine_tuning.jobs.list_events(job.id, limit=2)] == whole
    assert len(set(whole)) == 13


def test_cancel(server: Serving, client: openai.OpenAI) -> None:
    training = upload(client)
    for steps in ((), (serving.validate,), (serving.validate, serving.begin)):
        job = client.fine_tuning.jobs.create(model=BASE, training_file=training)
        for step in steps:
            step(server.context)
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match=f"Job has already completed: {job.id}"):
            client.fine_tuning.jobs.cancel(job.id)
    done = train(server, client)
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client.fine_tuning.jobs.cancel(done.id)
    for call in (client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.NotFoundError, match="Could not find fine tune: 123") as error:
            call("123")
        assert (error.value.code, error.value.param) == ("fine_tune_not_found", "fine_tune_id")


def test_pause_and_resume(server: Serving, client: openai.OpenAI) -> None:
    loose = client.with_options()
    loose._strict_response_validation = False  # "paused" is in OpenAI's prose, not in its enum
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client))
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.pause(job.id)
    serving.validate(server.context)
    assert loose.fine_tuning.jobs.pause(job.id).status == "paused"
    assert loose.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    running = serving.begin(server.context)
    assert client.fine_tuning.jobs.pause(job.id).status == "running"
    assert queue.heartbeat(server.context.db, job.id, running.fence) == "pause"
    jobs.move(server.context.db, job.id, running.fence, "paused")
    assert loose.fine_tuning.jobs.retrieve(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.resume(job.id)


def test_a_failed_job_says_why(server: Serving, client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client))
    held = queue.claim(server.context.db, "worker-1", ("validating_files",))
    assert held is not None
    why = JobError("invalid_n_examples", "Training file has 7 example(s), but must have at least 10 examples", "training_file")
    jobs.move(server.context.db, job.id, held.fence, "failed", error=why)
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed" and failed.finished_at is None and failed.error is not None
    assert (failed.error.code, failed.error.message, failed.error.param) == (why.code, why.message, why.param)
    assert failed.hyperparameters.n_epochs == "auto"


def test_the_old_place_of_hyperparameters(client: openai.OpenAI) -> None:
    training = upload(client)
    job = client.fine_tuning.jobs.create(model=BASE, training_file=training, hyperparameters={"n_epochs": 3.0})  # type: ignore[typeddict-item]
    assert job.hyperparameters.n_epochs == 3 and isinstance(job.hyperparameters.n_epochs, int)
    both = client.fine_tuning.jobs.create(
        model=BASE, training_file=training, hyperparameters={"batch_size": 2},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}, "dpo": {}, "reinforcement": {"grader": {}}},  # type: ignore[typeddict-item]
    )  # fmt: skip
    assert (both.hyperparameters.n_epochs, both.hyperparameters.batch_size) == (4, 2)
    unlimited = client.fine_tuning.jobs.create(
        model=BASE, training_file=training, hyperparameters={"n_epochs": None, "n_steps": 5}  # type: ignore[typeddict-unknown-key]
    )  # fmt: skip
    assert unlimited.hyperparameters.n_epochs is None
    assert unlimited.to_dict()["method"]["supervised"]["hyperparameters"]["n_steps"] == 5


def test_null_is_accepted_for_every_optional_field(client: openai.OpenAI) -> None:
    nothing: Any = None
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=upload(client), validation_file=nothing, suffix=nothing, seed=nothing, method=nothing,
        hyperparameters=nothing, integrations=nothing, metadata=nothing,
    )  # fmt: skip
    assert 0 <= job.seed < 2**31 and job.metadata is None and job.to_dict()["integrations"] == []


def test_a_request_that_is_sent_again_finds_its_job(client: openai.OpenAI) -> None:
    training = upload(client)
    again = {"x-stainless-retry-count": "1"}
    first = client.fine_tuning.jobs.create(model=BASE, training_file=training)
    assert client.fine_tuning.jobs.create(model=BASE, training_file=training, extra_headers=again).id == first.id
    assert client.fine_tuning.jobs.create(model=BASE, training_file=training, seed=1, extra_headers=again).id != first.id
    assert client.fine_tuning.jobs.create(model=BASE, training_file=training).id != first.id


def test_training_goes_on_from_a_model_of_ours(server: Serving, client: openai.OpenAI) -> None:
    model = train(server, client).fine_tuned_model
    job = client.fine_tuning.jobs.create(model=model, training_file=upload(client))
    assert job.model == model
    with pytest.raises(openai.BadRequestError, match=job.id):
        client.models.delete(model)


def test_deleting_models(server: Serving, client: openai.OpenAI) -> None:
    job = train(server, client)
    directories = {row.step: server.context.settings.data_dir / row.directory for row in records.checkpoints(server.context.db, job.id)}
    assert all(path.is_dir() for path in directories.values())
    assert client.models.delete(job.fine_tuned_model).deleted
    assert [path.is_dir() for path in directories.values()] == [True, True, False]
    for gone in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError) as error:
            gone(job.fine_tuned_model)
        assert error.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError, match="base model"):
        client.models.delete(BASE)


def test_a_model_that_lost_its_files_is_an_error_that_says_so(server: Serving, client: openai.OpenAI) -> None:
    job = train(server, client)
    (server.context.settings.data_dir / records.checkpoints(server.context.db, job.id)[-1].directory).rename(
        server.context.settings.data_dir / "gone"
    )
    with pytest.raises(openai.InternalServerError, match=r"its manifest cannot be read \(No such file or directory\)\. Hint: use another"):
        client.chat.completions.create(model=job.fine_tuned_model, messages=[{"role": "user", "content": "?"}])


def test_generation_parameters_reach_the_backend(client: openai.OpenAI, parrot: Parrot) -> None:
    client.chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": "?"}], temperature=0.5, top_p=0.9, n=2, stop=["a", "b"], seed=3, logprobs=True,
        top_logprobs=5, max_completion_tokens=9, logit_bias={"5": -100}, user="u", store=True, metadata={"a": "b"}, service_tier="auto",
    )  # fmt: skip
    _, path, body = parrot.asked[-1]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": BASE, "messages": [{"role": "user", "content": "?"}], "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["a", "b"],
        "seed": 3, "logprobs": True, "top_logprobs": 5, "max_completion_tokens": 9, "logit_bias": {"5": -100},
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_stops_the_generation(client: openai.OpenAI, parrot: Parrot, stream: bool) -> None:
    parrot.delay = 30
    with pytest.raises(openai.APITimeoutError):
        list(
            client.with_options(timeout=0.3).chat.completions.create(model=BASE, messages=[{"role": "user", "content": "?"}], stream=stream)
        )
    deadline = time.monotonic() + 5
    while not parrot.cancelled and time.monotonic() < deadline:
        time.sleep(0.02)
    assert parrot.cancelled == 1
