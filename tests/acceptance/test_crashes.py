"""Kills, cancels, pauses and restarts of the real processes, on a tiny model so that each costs seconds."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from .deployment import Deployment, eventually, serving

TRAINER, WORKER = "tunesmith.worker.trainer", "tunesmith.worker"
#: Long enough to be killed in; a checkpoint after every step, so that little is done again.
LONG = {"n_epochs": 16, "batch_size": 4, "lora_dropout": 0.2, "checkpoint_seconds": 0, "base_learning_rate": 1e-3}


@pytest.fixture(scope="module")
def deployment(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with serving(tmp_path_factory.mktemp("crashes") / "data", [tiny]) as running:
        yield running


def start(deployment: Deployment, letters: tuple[Path, Path], **hyperparameters: Any) -> Any:
    return deployment.start_job(*letters, "tiny", **{**LONG, **hyperparameters})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def steps(deployment: Deployment, job_id: str) -> list[int]:
    return [event.data["step"] for event in deployment.events(job_id) if event.type == "metrics"]


def kill(deployment: Deployment, module: str) -> None:
    """kill -9 the one process that runs `module`, and nothing else."""
    (process,) = eventually(lambda: deployment.children(module), 30)
    process.kill()


def test_killed_trainer_and_worker_leave_no_trace_in_the_result(deployment: Deployment, letters: tuple[Path, Path], drill: int) -> None:
    whole = deployment.await_status(start(deployment, letters).id, ("succeeded", "failed"))
    assert whole.status == "succeeded", whole.error

    job = start(deployment, letters)
    deployment.await_step(job.id, 40)
    kill(deployment, TRAINER)
    deployment.await_step(job.id, 90)
    killed_at = time.monotonic()
    (trainer,) = deployment.children(TRAINER)
    kill(deployment, WORKER)
    eventually(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE, 5)  # it dies with its worker
    job = deployment.await_status(job.id, ("succeeded", "failed"))
    assert job.status == "succeeded", job.error
    assert time.monotonic() - killed_at < 60

    assert digest(deployment.adapter(job.id, 160)) == digest(deployment.adapter(whole.id, 160))
    assert steps(deployment, job.id) == list(range(161))  # each once, in order
    assert any("The trainer died (signal 9)" in event.message for event in deployment.events(job.id))
    contents = [deployment.client.files.content(j.result_files[0]).text for j in (whole, job)]
    without_speed = [[line.rsplit(",", 1)[0] for line in content.splitlines()] for content in contents]
    assert without_speed[0] == without_speed[1]


def test_cancel_kills_within_five_seconds(deployment: Deployment, letters: tuple[Path, Path]) -> None:
    job = start(deployment, letters, n_epochs=200)
    deployment.await_step(job.id, 5)
    (trainer,) = deployment.children(TRAINER)
    cancelled = deployment.client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    eventually(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE, 5)
    said = len(deployment.events(job.id))
    time.sleep(1)
    assert len(deployment.events(job.id)) == said  # nothing is written after it
    with pytest.raises(openai.BadRequestError, match="Job has already completed"):
        deployment.client.fine_tuning.jobs.cancel(job.id)


def test_pause_and_resume(deployment: Deployment, letters: tuple[Path, Path]) -> None:
    client = deployment.client.fine_tuning.jobs
    job = start(deployment, letters)
    deployment.await_step(job.id, 10)
    client.pause(job.id)
    deployment.await_status(job.id, ("paused",), 15)
    assert not deployment.children(TRAINER)
    before = steps(deployment, job.id)
    time.sleep(1)
    assert steps(deployment, job.id) == before
    assert client.resume(job.id).status == "queued"
    job = deployment.await_status(job.id, ("succeeded", "failed"))
    assert job.status == "succeeded", job.error
    assert steps(deployment, job.id) == list(range(161))


def test_a_queued_job_waits_its_turn_and_can_be_cancelled(deployment: Deployment, letters: tuple[Path, Path]) -> None:
    first, second = start(deployment, letters, n_epochs=200), start(deployment, letters)
    deployment.await_step(first.id, 1)
    assert deployment.await_status(second.id, ("queued",), 20).status == "queued"  # validated while another trains
    assert deployment.client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    deployment.client.fine_tuning.jobs.cancel(first.id)


def test_bad_files_fail_the_job_with_openais_words(deployment: Deployment, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    good = '{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n'
    bad.write_text(good * 10 + '{"messages":[{"content":"q"}]}\n{"messages":[{"role":"user","content":"q"}]}\n')
    job = deployment.await_status(deployment.start_job(bad, None, "tiny").id, ("failed",), 20)
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert "Example 11, message 1 Discriminator 'role' is missing in value" in job.error.message
    assert "Example 12 has no message with role 'assistant'" in job.error.message and "(2 errors" in job.error.message
    few = tmp_path / "few.jsonl"
    few.write_text(good * 7)
    job = deployment.await_status(deployment.start_job(few, None, "tiny").id, ("failed",), 20)
    assert job.error.message == "Training file has 7 example(s), but must have at least 10 examples"
    assert job.finished_at is None and job.hyperparameters.n_epochs == "auto"


def test_sigterm_gives_the_job_back(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    """A server that is stopped in mid-run and started again finishes the job; no crash is counted, nothing is repeated."""
    with serving(tmp_path / "data", [tiny]) as deployment:
        job = start(deployment, letters)
        deployment.await_step(job.id, 20)
        deployment.process.send_signal(signal.SIGTERM)
        deployment.process.wait(30)
    with serving(tmp_path / "data", [tiny]) as deployment:
        job = deployment.await_status(job.id, ("succeeded", "failed"))
        assert job.status == "succeeded", job.error
        assert steps(deployment, job.id) == list(range(161))
        assert not any("died" in event.message for event in deployment.events(job.id))
