"""Runs in a folder, with no server: `train` makes one, `Run` reads one. `tunesmith train` is this on the command line.

A run folder holds spec.json (asked, resolved, reasons), data_findings.json, metrics.jsonl, events.jsonl, row_losses.jsonl,
step_metrics.csv, checkpoints/, adapter/ (or model/ after full tuning), loss.png, token_accuracy.png, and result.json once the run is over.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import html
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import processes
from tunesmith.domain import datasets, findings, jobs, models, runs
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import Checkpoint, MetricPoint, RowLosses
from tunesmith.domain.specs import ResolvedSpec, TrainingSpec
from tunesmith.errors import InvalidRequest
from tunesmith.services import bases as base_service
from tunesmith.services import data as data_service
from tunesmith.settings import Settings
from tunesmith.store import bases
from tunesmith.training import checkpoints, defaults

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_MAX_ANSWER_TOKENS = 256
_COMPARED = ("full_valid_loss", "full_valid_mean_token_accuracy")


class Run:
    """One run folder."""

    def __init__(self, directory: str | Path, settings: Settings | None = None) -> None:
        self.directory, self._settings = Path(directory), settings
        if not (self.directory / "spec.json").is_file():
            raise InvalidRequest(f"{str(directory)!r} is no run folder: it has no spec.json. Hint: give the --output of `tunesmith train`.")

    @property
    def spec(self) -> dict[str, Any]:
        """What was asked, what ran, and why: the content of spec.json."""
        return _read_json(self.directory / "spec.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The figures of every step, in order; step 0 is the base model."""
        return _read_lines(self.directory / "metrics.jsonl")

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the run said, in order."""
        return _read_lines(self.directory / "events.jsonl")

    @property
    def row_losses(self) -> list[dict[str, Any]]:
        """The loss of each validation example at each full evaluation, `RowLosses.to_dict()`, in order."""
        return _read_lines(self.directory / "row_losses.jsonl")

    @property
    def data_findings(self) -> list[dict[str, Any]]:
        """What the data showed before the first step: `Finding.to_dict()`, the gravest first."""
        return list(json.loads(path.read_bytes())) if (path := self.directory / "data_findings.json").is_file() else []

    @property
    def result(self) -> dict[str, Any] | None:
        """How the run ended, or None while it has not."""
        path = self.directory / "result.json"
        return _read_json(path) if path.is_file() else None

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """Base, tuned and difference of the full validation's figures; empty without validation."""
        full = [point for point in self.metrics if "full_valid_loss" in point]
        if len(full) < 2 or full[0]["step"]:
            return {}
        chosen = (self.result or {}).get("chosen_step")
        tuned = next((point for point in full if point["step"] == chosen), full[-1])
        base = {key: full[0][key] for key in _COMPARED}
        return {
            "base": base,
            "tuned": {key: tuned[key] for key in _COMPARED},
            "difference": {key: tuned[key] - base[key] for key in _COMPARED},
        }

    def plot(self) -> Figure:
        """Draw loss and token accuracy over the steps; a notebook shows the figure."""
        from tunesmith import plots  # noqa: PLC0415 - matplotlib is slow to import and not always needed

        return plots.figure(self.metrics, title=str(self.spec["model"]))

    def chat(self, prompt: str | list[dict[str, Any]], **sampling: Any) -> str:
        """Ask the tuned model; `prompt` is a text or a list of messages.

        Sampling as in the chat completions API; the answer has at most 256 tokens unless `max_tokens` says otherwise.
        """
        processes.compute_here()
        from tunesmith.inference import chat  # noqa: PLC0415 - torch

        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not hasattr(self, "_loaded"):
            base, adapter = self.model_directories()
            self._loaded = chat.load(base, adapter)
        return self._loaded.chat(messages, **{"max_tokens": _MAX_ANSWER_TOKENS, **sampling})

    def model_directories(self) -> tuple[Path, Path | None]:
        """Return the directory of the base and of the adapter; after full tuning the model itself and None.

        Raises: InvalidRequest while there is none, CheckpointDamaged when it is not what was written.
        """
        for name in ("adapter", "model"):
            if not (self.directory / name).is_dir():
                continue
            checkpoints.verify(self.directory / name)
            if name == "model":
                return self.directory / name, None
            return base_service.ready(self._settings or Settings.load(), self.spec["base"]).directory, self.directory / name
        raise InvalidRequest(f"Run {str(self.directory)!r} has no model yet. Hint: the same `tunesmith train` command goes on with it.")

    def __repr__(self) -> str:
        points = self.metrics
        return f"Run({str(self.directory)!r}, step {points[-1]['step'] if points else 0})"

    def _repr_html_(self) -> str:
        """Show base, tuned and difference, and the plots, in a notebook."""
        rows = "".join(
            f"<tr><td>{name}</td>" + "".join(f"<td>{self.summary[column][name]:.4f}</td>" for column in self.summary) + "</tr>"
            for name in _COMPARED
            if self.summary
        )
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=90)
        image = base64.b64encode(picture.getvalue()).decode()
        table = f"<table><tr><th></th><th>base</th><th>tuned</th><th>difference</th></tr>{rows}</table>" if rows else ""
        return f'<p><b>{html.escape(repr(self))}</b></p>{table}<img src="data:image/png;base64,{image}"/>'


def train(
    data: str | Path,
    *,
    model: str = models.DEFAULT,
    valid: str | Path | None = None,
    output: str | Path | None = None,
    settings: Settings | None = None,
    on_metric: Callable[[MetricPoint], None] = lambda point: None,
    on_event: Callable[[Event], None] = lambda event: None,
    request: Callable[[], jobs.Request] = lambda: "run",
    **hyperparameters: Any,
) -> Run:
    """Fine-tune `model` on a JSONL file and return the run; every hyperparameter is a keyword argument.

    With the same `output` and the same arguments an interrupted run goes on from its newest checkpoint, and a finished
    one is returned as it is. `on_metric` and `on_event` hear the run while it goes; `request` may ask it to pause.
    Raises: DataError, InvalidRequest, TrainingFailed.
    """
    spec = TrainingSpec.ask(model, hyperparameters, "train")
    training, validation = Path(data), Path(valid) if valid else None
    num_training, num_validation = _check(training, "training"), _check(validation, "validation") if validation else 0
    settings = settings or Settings.load()
    base = base_service.ready(settings, model)
    directory = Path(output) if output else Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    with _locked(directory):
        sink = FolderSink(directory, on_metric, on_event, request)
        found = sink.begin(spec, base, {"training": training, "validation": validation})
        if found is not None and sink.run.result is not None:
            return Run(directory, settings)
        processes.compute_here()
        from tunesmith.training import loop  # noqa: PLC0415 - torch

        facts = bases.facts(base.directory)
        resume = sink.newest() if found else None
        if found is None or resume is None:
            resolved = defaults.resolve(spec, facts, defaults.DataFacts(num_training, num_validation))
        else:
            resolved = found
        sink.go_on_from(resume)
        for number, words in enumerate(defaults.warnings(resolved, facts)):
            sink.event(Event(words, key=f"warning:{number}", level="warn"))
        if resume is None:
            sink.data_findings(data_service.examine(training, validation, split=resolved.training_split))
        order = loop.Order(resolved, base.directory, training, validation, directory, resume=resume)
        sink.finish(loop.train(order, sink))
    return Run(directory, settings)


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

    @property
    def run(self) -> Run:
        """The folder as a run."""
        return Run(self.directory)

    def begin(self, spec: TrainingSpec, base: bases.Base, data: Mapping[str, Path | None]) -> ResolvedSpec | None:
        """Write spec.json, or check that the one in the folder asks for the same; then return what it resolved to.

        Raises: InvalidRequest naming what differs.
        """
        self._head = {
            **spec.to_dict(),
            "base": base.name,
            "data": {role: {"path": str(path), "sha256": _sha256(path)} for role, path in data.items() if path},
        }
        path = self.directory / "spec.json"
        if not path.exists() or not self._has_begun():
            _write_json(path, self._head | {"resolved": None})
            return None
        there = _read_json(path)
        for key in ("model", "asked", "data"):
            if words := runs.difference(there.get(key), self._head[key]):
                raise InvalidRequest(
                    f"{str(self.directory)!r} holds a run with another {key}: {words}. "
                    "Hint: give the same arguments to go on with it, or another output folder."
                )
        return ResolvedSpec.from_dict(there["resolved"]) if there["resolved"] else None

    def _has_begun(self) -> bool:
        """Whether there is anything to go on with; a run that ended over its arguments or data leaves its folder free."""
        return bool(self.run.metrics) or any((self.directory / "checkpoints").glob("step-*"))

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, or None; one that was cut off before it was noted is made again."""
        for directory in (self.directory / "checkpoints").glob("step-*"):
            if not (directory / checkpoints.NOTE).is_file():
                shutil.rmtree(directory)
        return checkpoints.newest(self.directory / "checkpoints")

    def go_on_from(self, resume: Path | None) -> None:
        """Keep what the run said up to the checkpoint it goes on from; the rest is said again."""
        step = int(resume.name.removeprefix("step-")) if resume else -1
        points = [point for point in self.run.metrics if point["step"] <= step]
        events = [event for event in self.run.events if resume and event["key"] != "stopped"]
        known = {point["step"] for point in points}  # a step whose figures were not out is evaluated again
        rows = [row for row in self.run.row_losses if row["step"] in known]
        for name, content in (("metrics", points), ("events", events), ("row_losses", rows)):
            _write_text(self.directory / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in content))
        self._last_step = points[-1]["step"] if points else -1
        self._keys = {event["key"] for event in events}
        for directory in sorted((self.directory / "checkpoints").glob("step-*")):
            saved = Checkpoint(**_read_json(directory / checkpoints.NOTE) | {"directory": directory})
            if resume and saved.step <= step:
                self._saved.append(saved)

    def resolved(self, spec: ResolvedSpec) -> None:
        """Write what runs into spec.json."""
        self._select_by = spec.select_by
        _write_json(self.directory / "spec.json", self._head | {"resolved": spec.to_dict()})

    def data_findings(self, found: Sequence[findings.Finding]) -> None:
        """Write data_findings.json, and say each as an event."""
        _write_text(self.directory / "data_findings.json", json.dumps([finding.to_dict() for finding in found], indent=2) + "\n")
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
        self._on_metric(point)

    def row_losses(self, losses: RowLosses) -> None:
        """Append to row_losses.jsonl, each step once."""
        if losses.step > self._last_step:
            self._append("row_losses.jsonl", losses.to_dict())

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Note the checkpoint and delete those no longer needed."""
        for name in ("metrics.jsonl", "events.jsonl", "row_losses.jsonl"):
            _fsync(self.directory / name)
        _write_json(checkpoint.directory / checkpoints.NOTE, asdict(checkpoint) | {"directory": checkpoint.directory.name})
        self._saved = [*(saved for saved in self._saved if saved.step != checkpoint.step), checkpoint]
        kept = runs.listed(self._saved, self._select_by)
        for saved in self._saved:
            if saved not in kept:
                shutil.rmtree(saved.directory, ignore_errors=True)
        self._saved = kept

    def finish(self, result: runs.RunResult) -> None:
        """Write the pictures and the CSV; when the run is over, the model and result.json too."""
        from tunesmith import plots  # noqa: PLC0415 - matplotlib is slow to import

        points = self.run.metrics
        _write_text(self.directory / "step_metrics.csv", runs.step_metrics_csv(MetricPoint(**point) for point in points))
        plots.save(points, self.directory, title=self._head["model"])
        if result.outcome == "finished":
            chosen = runs.chosen(self._saved, self._select_by)
            self._export(chosen.directory)
            _write_json(self.directory / "result.json", asdict(result) | {"chosen_step": chosen.step})

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
def _locked(directory: Path) -> Iterator[None]:
    """Hold the folder against a second run in it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(f"{str(directory)!r} is in use by another run that is going on right now.") from None
        yield


def _check(path: Path, role: datasets.Role) -> int:
    if not path.is_file():
        raise InvalidRequest(f"The {role} file {str(path)!r} does not exist.", param=f"{role}_file")
    with path.open("rb") as file:
        return datasets.check(file, role).num_examples


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_bytes())
    return data


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(data, indent=2, default=str) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Replace a file by one rename, durably."""
    temp = path.with_name(f".{path.name}.tmp")
    temp.write_text(text)
    _fsync(temp)
    temp.rename(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
