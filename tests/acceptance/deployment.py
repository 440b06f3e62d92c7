"""A real `tunesmith serve` in a process of its own, for the tests that use the whole product."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import openai
import psutil

T = TypeVar("T")
KEY = "sk-test-0123456789abcdef"


class Deployment:
    """A running server: its address, a client, and its processes by role."""

    def __init__(self, process: subprocess.Popen[str], url: str, data_dir: Path) -> None:
        self.process, self.url, self.data_dir = process, url, data_dir
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)

    def children(self, module: str) -> list[psutil.Process]:
        """Return the server's descendants that run `module`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if module in child.cmdline():
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def start_job(self, train: Path, valid: Path | None, model: str, **hyperparameters: Any) -> Any:
        """Upload the files and create a job."""
        uploaded = [self.client.files.create(file=path, purpose="fine-tune").id if path else None for path in (train, valid)]
        seed = hyperparameters.pop("seed", 7)
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        extra: Any = {"validation_file": uploaded[1]} if valid else {}
        return self.client.fine_tuning.jobs.create(model=model, training_file=str(uploaded[0]), seed=seed, method=method, **extra)

    def job(self, job_id: str) -> Any:
        """Return the job as it is now."""
        return self.client.fine_tuning.jobs.retrieve(job_id)

    def await_status(self, job_id: str, statuses: Sequence[str], timeout: float = 120) -> Any:
        """Return the job once it has one of `statuses`."""
        return eventually(lambda: (job := self.job(job_id)).status in statuses and job, timeout, lambda: self.job(job_id))

    def events(self, job_id: str) -> list[Any]:
        """Return all events, oldest first."""
        return list(self.client.fine_tuning.jobs.list_events(job_id, limit=100))[::-1]

    def await_step(self, job_id: str, step: int, timeout: float = 120) -> None:
        """Wait until the job has said the figures of `step`."""
        said = f"Step {step}/"
        eventually(lambda: any(e.message.startswith(said) for e in self.events(job_id)), timeout, lambda: self.events(job_id)[-3:])

    def command(self, *arguments: str) -> str:
        """Return what a command of the command line prints, run on the server's data directory."""
        command = [sys.executable, "-m", "tunesmith.cli", *arguments, "--data-dir", str(self.data_dir)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def adapter(self, job_id: str, step: int) -> Path:
        """Return the published adapter of a step."""
        (path,) = (self.data_dir / "jobs" / job_id / "checkpoints").glob(f"step-{step:06d}-f*/adapter_model.safetensors")
        return path


def eventually(look: Callable[[], T], timeout: float, describe: Callable[[], Any] = lambda: "") -> T:
    """Return what `look` returns once that is true."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout} s; now: {describe()}")


@contextmanager
def serving(data_dir: Path, allowed: Sequence[Path | str] = (), **settings: str) -> Iterator[Deployment]:
    """Start a server on a free port; at the end it must stop by SIGTERM and leave no process."""
    environment = os.environ | {
        "TUNESMITH_API_KEY": KEY, "TUNESMITH_ALLOWED_MODELS": ",".join(map(str, allowed)),
        **{f"TUNESMITH_{name.upper()}": value for name, value in settings.items()},
    }  # fmt: skip
    command = [sys.executable, "-m", "tunesmith.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    with (data_dir.parent / f"{data_dir.name}.log").open("w+") as log:
        process = subprocess.Popen(command, stderr=log, env=environment, text=True)
        path = Path(log.name)
        try:
            match = eventually(lambda: re.search(r"API at (http://\S+)/v1", path.read_text()), 30, path.read_text)
            deployment = Deployment(process, match.group(1), data_dir)
            yield deployment
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        eventually(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family), 5, lambda: family)
