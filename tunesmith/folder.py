"""A run's folder as it is written: what the run says goes into files, each whole or not there. `tunesmith.run` reads it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tunesmith import logs
from tunesmith.diagnosis import render, report
from tunesmith.diagnosis.history import History
from tunesmith.diagnosis.watch import Watch
from tunesmith.domain import findings, jobs, runs
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import Checkpoint, MetricPoint, RowLosses
from tunesmith.domain.specs import ResolvedSpec, TrainingSpec
from tunesmith.errors import InvalidRequest, TrainingFailed
from tunesmith.store import bases
from tunesmith.training import checkpoints


class FolderSink:
    """Writes what a run says into its folder."""

    def __init__(
        self,
        directory: Path,
        on_metric: Callable[[MetricPoint], None],
        on_event: Callable[[Event], None],
        request: Callable[[], jobs.Request],
    ) -> None:
        self.directory, self.request = directory, request
        self._on_metric, self._on_event = on_metric, on_event
        self._head: dict[str, Any] = {}
        self._select_by = "last"
        self._saved: list[Checkpoint] = []
        self._last_step = -1
        self._keys: set[str] = set()
        self._watch = Watch()

    def begin(self, spec: TrainingSpec, base: bases.Base, data: Mapping[str, Path | None]) -> ResolvedSpec | None:
        """Write spec.json, or check that the one in the folder asks for the same; then return what it resolved to.

        Raises: InvalidRequest naming what differs.
        """
        self._head = {
            **spec.to_dict(),
            "base": base.name,
            "data": {role: {"path": str(path), "sha256": sha256(path)} for role, path in data.items() if path},
        }
        path = self.directory / "spec.json"
        if not path.exists() or not self._has_begun():
            write_json(path, self._head | {"resolved": None})
            return None
        there = read_json(path)
        for key in ("model", "asked", "data"):
            if words := runs.difference(there.get(key), self._head[key]):
                raise InvalidRequest(
                    f"{str(self.directory)!r} holds a run with another {key}: {words}. "
                    "Hint: give the same arguments to go on with it, or another output folder."
                )
        return ResolvedSpec.from_dict(there["resolved"]) if there["resolved"] else None

    def _has_begun(self) -> bool:
        """Whether there is anything to go on with; a run that ended over its arguments or data leaves its folder free."""
        return bool(self._lines("metrics")) or any((self.directory / "checkpoints").glob("step-*"))

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, or None; one that was cut off before it was noted is made again."""
        for directory in (self.directory / "checkpoints").glob("step-*"):
            if not (directory / checkpoints.NOTE).is_file():
                shutil.rmtree(directory)
        return checkpoints.newest(self.directory / "checkpoints")

    def go_on_from(self, resume: Path | None) -> None:
        """Keep what the run said up to the checkpoint it goes on from; the rest is said again."""
        step = int(resume.name.removeprefix("step-")) if resume else -1
        points = [point for point in self._lines("metrics") if point["step"] <= step]
        events = [event for event in self._lines("events") if resume and event["key"] not in ("stopped", "failed")]
        known = {point["step"] for point in points}  # a step whose figures were not out is evaluated again
        rows = [row for row in self._lines("row_losses") if row["step"] in known]
        for name, content in (("metrics", points), ("events", events), ("row_losses", rows)):
            write_text(self.directory / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in content))
        self._last_step = points[-1]["step"] if points else -1
        self._keys = {event["key"] for event in events}
        for directory in sorted((self.directory / "checkpoints").glob("step-*")):
            saved = Checkpoint(**read_json(directory / checkpoints.NOTE) | {"directory": directory})
            if resume and saved.step <= step:
                self._saved.append(saved)

    def resolved(self, spec: ResolvedSpec) -> None:
        """Write what runs into spec.json."""
        self._select_by = spec.select_by
        write_json(self.directory / "spec.json", self._head | {"resolved": spec.to_dict()})

    def data_findings(self, found: Sequence[findings.Finding]) -> None:
        """Write data_findings.json, and say each as an event."""
        write_text(self.directory / "data_findings.json", json.dumps([finding.to_dict() for finding in found], indent=2) + "\n")
        for event in findings.data_events(found):
            self.event(event)

    def event(self, event: Event) -> None:
        """Append to events.jsonl, each key once."""
        if event.key not in self._keys:
            self._keys.add(event.key)
            row = {"created_at": int(time.time()), "level": event.level, "type": event.type, "key": event.key}
            self._append("events.jsonl", row | {"message": event.message, "data": dict(event.data)})
        if event.type == "message":
            self._on_event(event)

    def metric(self, point: MetricPoint) -> None:
        """Append to metrics.jsonl and events.jsonl, each step once."""
        if point.step > self._last_step:
            self._last_step = point.step
            self._append("metrics.jsonl", point.to_dict())
            self.event(point.event())
            if self._watch.is_due(point) and (history := self._history()):
                for event in self._watch.hear(history):
                    self.event(event)
        self._on_metric(point)

    def row_losses(self, losses: RowLosses) -> None:
        """Append to row_losses.jsonl, each step once; training rows have a file of their own."""
        if losses.of == "training":
            write_json(self.directory / "training_row_losses.json", losses.to_dict())
        elif losses.step > self._last_step:
            self._append("row_losses.jsonl", losses.to_dict())

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Note the checkpoint and delete those no longer needed."""
        for name in ("metrics.jsonl", "events.jsonl", "row_losses.jsonl"):
            fsync(self.directory / name)
        write_json(checkpoint.directory / checkpoints.NOTE, asdict(checkpoint) | {"directory": checkpoint.directory.name})
        self._saved = [*(saved for saved in self._saved if saved.step != checkpoint.step), checkpoint]
        kept = runs.listed(self._saved, self._select_by)
        for saved in self._saved:
            if saved not in kept:
                shutil.rmtree(saved.directory, ignore_errors=True)
        self._saved = kept

    def finish(self, result: runs.RunResult) -> None:
        """Write the pictures and the CSV; when the run is over, the model and result.json too."""
        from tunesmith import plots  # noqa: PLC0415 - matplotlib is slow to import

        points = self._lines("metrics")
        write_text(self.directory / "step_metrics.csv", runs.step_metrics_csv(MetricPoint(**point) for point in points))
        plots.save(points, self.directory, title=self._head["model"])
        if result.outcome == "finished":
            chosen = runs.chosen(self._saved, self._select_by)
            self._export(chosen.directory)
            self._report()
            write_json(self.directory / "result.json", asdict(result) | {"chosen_step": chosen.step})

    def fail(self, error: TrainingFailed) -> None:
        """Note why the run cannot go on, and what that means."""
        self.event(Event(f"The run failed: {error.message}", key="failed", level="error", data={"code": error.code}))
        if self._lines("metrics"):
            self._report()

    def _report(self) -> None:
        """Write report.md and say the verdict."""
        history = self._history()
        if history is None:
            return
        found = report.diagnose(replace(history, finished=True))
        write_text(self.directory / "report.md", render.markdown(found, title=self._head["model"]))
        self.event(Event(f"Verdict: {found.verdict}", key="verdict"))

    def _history(self) -> History | None:
        """Return what the folder says so far; where it cannot be read, say so and go on: a diagnosis must cost no run."""
        try:
            return logs.read(self.directory)
        except InvalidRequest as refused:
            self.event(Event(f"The run cannot be diagnosed: {refused.message}", key="undiagnosed", level="warn"))
            return None

    def _lines(self, name: str) -> list[dict[str, Any]]:
        return read_lines(self.directory / f"{name}.jsonl")

    def _export(self, checkpoint: Path) -> None:
        """Copy the chosen checkpoint's weights to adapter/ (or model/), with a manifest of their own."""
        ours = {checkpoints.OPTIMIZER, checkpoints.RNG, checkpoints.STATE, checkpoints.MANIFEST, checkpoints.NOTE}

        def fill(directory: Path) -> None:
            for path in checkpoint.iterdir():
                if path.name not in ours:
                    shutil.copyfile(path, directory / path.name)

        is_adapter = (checkpoint / "adapter_config.json").is_file()
        checkpoints.write(self.directory / ("adapter" if is_adapter else "model"), fill)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.directory / name).open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder against a second run in it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(f"{str(directory)!r} is in use by another run that is going on right now.") from None
        yield


def sha256(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds."""
    data: dict[str, Any] = json.loads(path.read_bytes())
    return data


def read_list(path: Path) -> list[dict[str, Any]]:
    """Return the list that a file holds, empty where it is not there."""
    return list(json.loads(path.read_bytes())) if path.is_file() else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a file by an object, durably."""
    write_text(path, json.dumps(data, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file by one rename, durably."""
    temp = path.with_name(f".{path.name}.tmp")
    temp.write_text(text)
    fsync(temp)
    temp.rename(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a crash."""
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
