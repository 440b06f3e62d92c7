"""The real API over loopback, the schema its answers must satisfy, and a worker's part of a job, played through the store."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import uvicorn
from fastapi import FastAPI

from tunesmith.api.app import create_app
from tunesmith.domain import ids, models
from tunesmith.domain.jobs import Event, Job
from tunesmith.domain.runs import MetricPoint
from tunesmith.domain.specs import ExecutionPlan, ResolvedSpec
from tunesmith.inference.backend import Backend, Endpoint, Reply, Target
from tunesmith.services import Context, diagnoses
from tunesmith.settings import Settings
from tunesmith.store import jobs, queue
from tunesmith.store.files import FileRow
from tunesmith.store.jobs import CheckpointRow
from tunesmith.store.models import ModelRow
from tunesmith.training import checkpoints

KEY = "My API Key"
BASE = "tiny-llama"
TRAIN = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}).encode() + b"\n"
    for n in range(12)
)

# --- the server ---


@dataclass
class Serving:
    """A server that is up."""

    url: str
    app: FastAPI
    context: Context
    key: str = KEY

    def http(self, **options: Any) -> httpx.Client:
        """Return a plain client that has the key."""
        headers = {"authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        return httpx.Client(base_url=self.url, headers=headers, **{"timeout": 30} | options)


def settings(directory: Path, **given: Any) -> Settings:
    """Return the settings of a deployment in `directory`, with one base that is there and has no weights worth loading."""
    base = directory / "bases" / BASE
    base.mkdir(parents=True, exist_ok=True)
    (base / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 128}')
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    defaults = {"data_dir": directory / "data", "cache_dir": directory / "cache", "api_key": KEY, "allowed_models": (str(base),)}
    return Settings(**defaults | {"model_aliases": {"gpt-4o-mini": BASE}} | given)


@contextmanager
def serve(deployment: Settings, backend: Backend | None = None, port: int = 0) -> Iterator[Serving]:
    """Run the app as `tunesmith serve` does, in a thread."""
    app = create_app(deployment, backend)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, http="h11", server_header=False, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Serving(f"http://127.0.0.1:{port}", app, app.state.context)
    app.state.live.end()
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), "the server did not stop"


@dataclass
class Parrot:
    """A backend that needs no model: it says the last message or prompt again. Remembers what it was sent."""

    asked: list[tuple[Target, Endpoint, dict[str, Any]]] = field(default_factory=list)
    cancelled: int = 0
    #: Seconds before an answer, or before each word of a stream.
    delay: float = 0.0

    async def post(self, target: Target, path: Endpoint, body: Mapping[str, Any]) -> Reply:
        """Answer at once, or after `delay`."""
        self.asked.append((target, path, dict(body)))
        if body.get("stream"):
            return Reply(200, events=self._events(body))
        await self._wait()
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        common = {"id": ids.new(ids.CHAT_COMPLETION), "created": 1, "model": body["model"], "usage": usage}
        if path == "/v1/completions":
            choice: dict[str, Any] = {"index": 0, "text": body["prompt"], "logprobs": None, "finish_reason": "length"}
            return Reply(200, common | {"object": "text_completion", "choices": [choice]})
        message = {"role": "assistant", "content": body["messages"][-1]["content"], "refusal": None}
        choices = [{"index": n, "message": message, "logprobs": None, "finish_reason": "stop"} for n in range(body.get("n", 1))]
        return Reply(200, common | {"object": "chat.completion", "choices": choices})

    async def _events(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        for word in body["messages"][-1]["content"].split():
            await self._wait()
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None, "logprobs": None}
            yield f"data: {json.dumps(common | {'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"

    async def _wait(self) -> None:
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def close(self) -> None:
        """Nothing was started."""


# --- a worker's part ---


def resolved(job: Job) -> dict[str, Any]:
    """Return what a worker would resolve this job to."""
    spec = ResolvedSpec(
        model=job.model, lora_alpha=64.0, lora_dropout=0.05, lora_rank=16, tuning="lora", batch_size=1, accumulation_steps=1,
        n_steps=None, n_epochs=int(job.asked.get("n_epochs", 3)), learning_rate_multiplier=1.0, base_learning_rate=2e-4,
        training_split=None, stop_eval_loss=None, early_stopping_patience=None, select_by="last", eval_interval=10, eval_samples=8,
        checkpoint_seconds=300.0, seed=job.seed, learning_rate_schedule="linear", warmup_ratio=0.03, max_length=128,
        reasons={"batch_size": "auto: 12 examples"}, plan=ExecutionPlan("cpu", "float32", 1, 1024, "x86", "2.13"),
    )  # fmt: skip
    return spec.to_dict()


def validate(context: Context) -> Job:
    """Claim the oldest job whose files are to be validated, find them good and queue it."""
    job = queue.claim(context.db, "worker-1", ("validating_files",))
    assert job is not None
    told = [
        Event(f"Validating training file: {job.training_file}", "validating"),
        Event("Files validated, moving job to queued state", "queued"),
    ]
    return jobs.move(context.db, job.id, job.fence, "queued", events=told, resolved=resolved(job))


def begin(context: Context) -> Job:
    """Claim the oldest queued job and start it."""
    job = queue.claim(context.db, "worker-1")
    assert job is not None
    return jobs.move(context.db, job.id, job.fence, "running", events=[Event("Fine-tuning job started", "started")])


def points(steps: int) -> list[MetricPoint]:
    """Return a plausible curve, the base model's level first."""
    base = MetricPoint(0, steps, 0.0, full_valid_loss=2.5, full_valid_mean_token_accuracy=0.4)
    return [base] + [
        MetricPoint(
            step, steps, step / 4, train_loss=2 / step, train_mean_token_accuracy=0.5, learning_rate=1e-4, tokens_seen=10 * step,
            valid_loss=2 / step + 0.1 if step % 2 == 0 else None, valid_mean_token_accuracy=0.5 if step % 2 == 0 else None,
            full_valid_loss=0.05 if step == steps else None, full_valid_mean_token_accuracy=0.9 if step == steps else None,
        )
        for step in range(1, steps + 1)
    ]  # fmt: skip


def _fill(directory: Path) -> None:
    """Write what is asked of an adapter without loading it."""
    (directory / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 64}')


def succeed(context: Context, job: Job, steps: int = 6, checkpoint_steps: Sequence[int] = (2, 4, 6)) -> Job:
    """Train a running job to its end: metrics, checkpoints, result file, model."""
    curve = points(steps)
    jobs.record(context.db, job.id, job.fence, points=curve, events=[point.event() for point in curve])
    return finish(context, job, checkpoint_steps)


def finish(context: Context, job: Job, checkpoint_steps: Sequence[int]) -> Job:
    """End a running job well: checkpoints, result file, model."""
    name = models.fine_tuned_name(job.model, context.settings.organization, job.suffix)
    rows = []
    for step in checkpoint_steps:
        directory = f"jobs/{job.id}/checkpoints/step-{step:06}-f{job.fence}"
        checkpoints.write(context.settings.data_dir / directory, _fill)
        metrics = {"train_loss": 2 / step, "full_valid_loss": 0.05}
        row = CheckpointRow(ids.new(ids.CHECKPOINT), job.id, step, step // 2, 0, directory, metrics, 10 * step)
        row = jobs.add_checkpoint(context.db, job.id, job.fence, row)
        final = step == checkpoint_steps[-1]
        called = name if final else models.checkpoint_name(job.model, context.settings.organization, job.suffix, step)
        rows.append(CheckpointRow(**{**row.__dict__, "name": called, "listed": True}))
    csv = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.00000,0.50000,,\n"
    with context.blobs.new_temp() as temp:
        temp.write(csv)
        result = FileRow(ids.new(ids.FILE), len(csv), int(time.time()), "step_metrics.csv", "fine-tune-results", temp.sha256)
        context.blobs.commit(temp, result.id)
    told = [Event(f"New fine-tuned model created: {name}", "model"), Event("The job has successfully completed", "succeeded")]
    model = ModelRow(name, job.id, job.model, checkpoint_steps[-1], rows[-1].directory, "lora", int(time.time()))
    return jobs.finish_succeeded(
        context.db, job.id, job.fence, model=model, checkpoints=rows, result_file=result, events=told, trained_tokens=60
    )  # fmt: skip


def diagnose(context: Context, job: Job, *, final: bool = False) -> str:
    """Store what is to be said of a running job's figures so far, and return its verdict."""
    found = diagnoses.history(context.db, job.id)
    return diagnoses.record(context.db, job.id, job.fence, dataclasses.replace(found, finished=final))


# --- OpenAI's schema ---


def _modern(schema: dict[str, Any]) -> dict[str, Any]:
    """Write the bounds of OpenAPI 3.0 that the specification still has (`exclusiveMinimum: true`) as JSON Schema does."""
    if schema.get("exclusiveMinimum") is True:
        schema["exclusiveMinimum"] = schema.pop("minimum")
    return schema


_SPEC = json.loads((Path(__file__).parent / "openapi_subset.json").read_text(), object_hook=_modern)
_TEMPLATES = [
    (re.compile(re.sub(r"\{(\w+)\}", r"[^?]+" if path == "/models/{model}" else r"[^/]+", path)), operations)
    for path, operations in _SPEC["paths"].items()
]


def violations(method: str, path: str, status: int, body: Any) -> list[str]:
    """Return how an answer departs from OpenAI's specification; `path` is below /v1."""
    if status >= 400:
        return _against({"$ref": "#/components/schemas/ErrorResponse"}, body)
    for template, operations in _TEMPLATES:
        if template.fullmatch(path) and method.lower() in operations:
            schema = operations[method.lower()]["responses"]["200"]["content"]["application/json"]["schema"]
            return _against(schema, body)
    raise LookupError(f"{method} {path} is not in the specification")


def _against(schema: Mapping[str, Any], body: Any) -> list[str]:
    whole = {**schema, "components": _SPEC["components"]}
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(whole).iter_errors(body)]
