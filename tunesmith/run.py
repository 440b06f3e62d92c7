"""Runs in a folder, with no server: `train` makes one, `Run` reads one. `tunesmith train` is this on the command line.

A run folder holds spec.json (asked, resolved, reasons), data_findings.json, metrics.jsonl, events.jsonl, row_losses.jsonl,
step_metrics.csv, checkpoints/, adapter/ (or model/ after full tuning), loss.png, token_accuracy.png, and once the run is over report.md,
what it all means, and result.json. `tunesmith.folder` writes it.
"""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import folder, logs, processes
from tunesmith.diagnosis import report
from tunesmith.domain import datasets, jobs, models
from tunesmith.domain.findings import Diagnosis
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import MetricPoint
from tunesmith.domain.specs import TrainingSpec
from tunesmith.errors import InvalidRequest, TrainingFailed
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
        return folder.read_json(self.directory / "spec.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The figures of every step, in order; step 0 is the base model."""
        return folder.read_lines(self.directory / "metrics.jsonl")

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the run said, in order."""
        return folder.read_lines(self.directory / "events.jsonl")

    @property
    def row_losses(self) -> list[dict[str, Any]]:
        """The loss of each validation example at each full evaluation, `RowLosses.to_dict()`, in order."""
        return folder.read_lines(self.directory / "row_losses.jsonl")

    @property
    def diagnosis(self) -> Diagnosis:
        """What happened in the run, why, and what to do next. Raises: InvalidRequest before its first figures."""
        return report.diagnose(logs.read(self.directory))

    @property
    def data_findings(self) -> list[dict[str, Any]]:
        """What the data showed before the first step: `Finding.to_dict()`, the gravest first."""
        return folder.read_list(self.directory / "data_findings.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """How the run ended, or None while it has not."""
        path = self.directory / "result.json"
        return folder.read_json(path) if path.is_file() else None

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
    with folder.locked(directory):
        sink = folder.FolderSink(directory, on_metric, on_event, request)
        found = sink.begin(spec, base, {"training": training, "validation": validation})
        if found is not None and Run(directory).result is not None:
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
        try:
            sink.finish(loop.train(order, sink))
        except TrainingFailed as failed:
            sink.fail(failed)
            raise
    return Run(directory, settings)


def _check(path: Path, role: datasets.Role) -> int:
    if not path.is_file():
        raise InvalidRequest(f"The {role} file {str(path)!r} does not exist.", param=f"{role}_file")
    with path.open("rb") as file:
        return datasets.check(file, role).num_examples
