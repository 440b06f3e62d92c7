"""`make demo`: the bundled example through the real server and the openai client, start to finish."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import openai
from rich.console import Console
from rich.table import Table

from tunesmith import plots, processes, progress
from tunesmith.domain import example, models
from tunesmith.domain.jobs import TERMINAL
from tunesmith.errors import InvalidRequest, Unavailable

_METHOD: Any = {"type": "supervised", "supervised": {"hyperparameters": example.HYPERPARAMETERS}}
_START_SECONDS = 60.0
_POLL_SECONDS = 1.0
_PARALLEL_QUESTIONS = 4
_MAX_ANSWER_TOKENS = 48


def run(data_dir: Path, examples: Path | None, questions: int, wait: bool) -> None:
    """Run the demo; Ctrl-C at any moment ends it and everything it started.

    Raises: InvalidRequest when the example files are not there, Unavailable when the server does not start.
    """
    folder = examples or example.FOLDER
    for name in ("train", "valid", "test"):
        if not (folder / f"{name}.jsonl").is_file():
            raise InvalidRequest(f"{folder / (name + '.jsonl')} does not exist. Hint: give the folder with --examples.")
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=True)
    started = time.monotonic()
    try:
        with _server(data_dir, console) as (url, key):
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
            _cancel_leftovers(client)
            job = _fine_tune(client, folder, console)
            if job.status != "succeeded":
                raise Unavailable(f"Job {job.id} ended as '{job.status}'{': ' + job.error.message if job.error else ''}.")
            _show(client, url, job, folder, questions, data_dir, console)
            console.print(f"Done in {time.monotonic() - started:.0f} s.")
            if wait:
                print(f"The dashboard: {url}/jobs/{job.id} (API key {key}). Ctrl-C ends it.", flush=True)
                signal.pause()
    except KeyboardInterrupt:
        console.print("\nEnded.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _server(data_dir: Path, console: Console) -> Iterator[tuple[str, str]]:
    """Start `tunesmith serve` on loopback and stop it, with all it started, at the end."""
    data_dir.mkdir(parents=True, exist_ok=True)
    key, port = "sk-demo-" + secrets.token_urlsafe(16), _free_port()
    url = f"http://127.0.0.1:{port}"
    with (data_dir / "server.log").open("wb") as log:
        passed = {name: value for name, value in os.environ.items() if name.startswith("TUNESMITH_")}
        child = processes.spawn(
            "tunesmith.cli", "serve", "--with-parent", "--port", str(port), "--data-dir", str(data_dir.absolute()),
            stderr=log, environment=passed | {"TUNESMITH_API_KEY": key},
        )  # fmt: skip
    try:
        with console.status("Starting the server ..."):
            _await(child, url, data_dir)
        console.print(f"Server: {url} (log: {data_dir / 'server.log'})")
        if link := re.search(r"browser:\s+(\S+)", (data_dir / "server.log").read_text()):
            console.print(f"Watch it: {link[1]}", soft_wrap=True)
        yield url, key
    finally:
        _stop(child)


def _await(child: subprocess.Popen[bytes], url: str, data_dir: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise Unavailable(f"The server did not start; see {data_dir / 'server.log'}.")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the server; a second Ctrl-C meanwhile must not leave it behind."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child.terminate()
        try:
            child.wait(45)
        except subprocess.TimeoutExpired:
            processes.kill_group(child)
            child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _free_port() -> int:
    """Return the default port if it is free, else another."""
    for port in (8321, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                return int(listener.getsockname()[1])
        except OSError:
            continue
    raise Unavailable("No free port on 127.0.0.1.")


def _cancel_leftovers(client: openai.OpenAI) -> None:
    """An earlier demo that was interrupted must not keep this one waiting."""
    for job in client.fine_tuning.jobs.list(limit=100):
        if job.status not in TERMINAL:
            client.fine_tuning.jobs.cancel(job.id)


def _fine_tune(client: openai.OpenAI, folder: Path, console: Console) -> Any:
    uploaded = {name: client.files.create(file=folder / f"{name}.jsonl", purpose="fine-tune") for name in ("train", "valid")}
    job = client.fine_tuning.jobs.create(
        model=models.DEFAULT,
        training_file=uploaded["train"].id,
        validation_file=uploaded["valid"].id,
        suffix=example.SUFFIX,
        seed=example.SEED,
        method=_METHOD,
    )
    console.print(f"Job {job.id}: {uploaded['train'].filename} and {uploaded['valid'].filename} on {job.model}")
    return _follow(client, job.id, console)


def _follow(client: openai.OpenAI, job_id: str, console: Console) -> Any:
    """Show the job's messages and metrics until it ends."""
    seen: set[str] = set()
    last_seq = 0
    with progress.RunProgress(console) as bar:
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            for event in reversed(_new_events(client, job_id, seen)):
                if event.type == "message":
                    bar.say(event.message, "yellow" if event.level == "warn" else "")
            for row in _metrics(client, job_id, last_seq):
                last_seq = row["seq"]
                bar.show(row["data"])
            if job.status in TERMINAL:
                return job
            time.sleep(_POLL_SECONDS)


def _new_events(client: openai.OpenAI, job_id: str, seen: set[str]) -> list[Any]:
    """Return the events not seen before, newest first."""
    new = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=100):
        if event.id in seen:
            break
        new.append(event)
    seen.update(event.id for event in new)
    return new


def _metrics(client: openai.OpenAI, job_id: str, after: int = 0) -> list[dict[str, Any]]:
    """Return the figures numbered above `after`; they are beside OpenAI's API, at /api."""
    answer: Any = client.get(f"/../api/jobs/{job_id}/metrics", cast_to=object, options={"params": {"after": after, "limit": 1000}})
    rows: list[dict[str, Any]] = answer["data"]
    return rows


def _show(client: openai.OpenAI, url: str, job: Any, folder: Path, questions: int, data_dir: Path, console: Console) -> None:
    """Ask base and tuned model the same questions and print the table, and draw the plots."""
    rows = [json.loads(line)["messages"] for line in (folder / "test.jsonl").read_text().splitlines()][:questions]
    correct, seconds = {}, {}
    for label, name in (("base", job.model), ("tuned", job.fine_tuned_model)):
        with console.status(f"Asking the {label} model {len(rows)} held-out questions ..."):
            started = time.monotonic()
            answers = _ask(client, name, rows)
        seconds[label] = time.monotonic() - started
        correct[label] = sum(answer.strip() == row[-1]["content"] for answer, row in zip(answers, rows, strict=True)) / len(rows)
        console.print(f"{label} ({seconds[label]:.0f} s): {rows[0][-2]['content'][:60]!r} -> {answers[0].strip()[:60]!r}", soft_wrap=True)
    points = [row["data"] for row in _metrics(client, job.id)]
    full = [point for point in points if "full_valid_loss" in point]
    print(f"{job.model} -> {job.fine_tuned_model}")
    table = Table()
    for column in ("", "base", "tuned", "Δ"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("full_valid_loss", "full_valid_mean_token_accuracy"):
        table.add_row(name, f"{full[0][name]:.3f}", f"{full[-1][name]:.3f}", f"{full[-1][name] - full[0][name]:+.3f}")
    difference = correct["tuned"] - correct["base"]
    table.add_row(f"exact match ({len(rows)} test questions)", f"{correct['base']:.1%}", f"{correct['tuned']:.1%}", f"{difference:+.1%}")
    Console().print(table)
    pictures = data_dir / "plots" / job.id
    pictures.mkdir(parents=True, exist_ok=True)
    for path in plots.save(points, pictures, title=str(job.fine_tuned_model)):
        print(f"Plot: {path}")
    sys.stdout.flush()


def _ask(client: openai.OpenAI, model: str, rows: Sequence[list[dict[str, Any]]]) -> list[str]:
    def ask(row: list[dict[str, Any]]) -> str:
        messages: Any = row[:-1]
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_completion_tokens=_MAX_ANSWER_TOKENS)
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(_PARALLEL_QUESTIONS) as pool:
        return list(pool.map(ask, rows))
