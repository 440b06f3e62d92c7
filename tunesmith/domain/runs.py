"""What a run says while it goes: metric points, checkpoints, and the sink that hears them.

The exact meaning of each metric is in docs/how-it-works.md; sums are over tokens, never means of means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tunesmith.domain import jobs
from tunesmith.domain.specs import ResolvedSpec

#: The columns of step_metrics.csv: OpenAI's five, then ours.
CSV_COLUMNS: Mapping[str, str] = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
    "tokens_seen": "tokens_seen",
    "tokens_per_second": "tokens_per_second",
}

#: The keys of a metrics event's data and of a checkpoint's metrics, as OpenAI names them.
WIRE_METRICS = (
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)


@dataclass(frozen=True)
class MetricPoint:
    """The figures of one optimizer step; step 0 is the base model, before any update."""

    step: int
    total_steps: int
    epoch: float
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_seen: int = 0
    tokens_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures that were computed; absent ones have no key."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def wire_data(self) -> dict[str, Any]:
        """Return the data of OpenAI's metrics event."""
        values = self.to_dict()
        return {"step": self.step, "total_steps": self.total_steps} | {k: values[k] for k in WIRE_METRICS if k in values}

    def message(self) -> str:
        """Return OpenAI's metrics line, byte for byte; the base evaluation (step 0) has words of its own."""
        if self.step == 0:
            return f"Base model: full validation loss={self.full_valid_loss:.2f}"
        parts = [f"Step {self.step}/{self.total_steps}: training loss={self.train_loss:.2f}"]
        if self.valid_loss is not None:
            parts.append(f"validation loss={self.valid_loss:.2f}")
        if self.full_valid_loss is not None:
            parts.append(f"full validation loss={self.full_valid_loss:.2f}")
        return ", ".join(parts)

    def event(self) -> jobs.Event:
        """Return the event that carries this point."""
        return jobs.Event(self.message(), key=f"step:{self.step}", type="metrics", data=self.wire_data())


def step_metrics_csv(points: Iterable[MetricPoint]) -> str:
    """Return OpenAI's result file: one row per step, empty where not computed, without the base evaluation."""
    lines = [",".join(CSV_COLUMNS)]
    for point in points:
        values = point.to_dict()
        if point.step:
            lines.append(",".join(_cell(values.get(name)) for name in CSV_COLUMNS.values()))
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.5f}" if abs(value) >= 1e-3 else f"{value:.5g}"


@dataclass(frozen=True)
class Checkpoint:
    """A whole, durable checkpoint directory. `metrics` are those of its step, in OpenAI's names."""

    step: int
    directory: Path
    metrics: Mapping[str, float]
    #: 1-based number of the epoch that ended at this step, or None for one saved in between.
    epoch: int | None
    #: Non-padding tokens fed to the model so far.
    tokens_seen: int

    @property
    def full_valid_loss(self) -> float:
        """Its full validation loss, infinite where there was no full validation."""
        return self.metrics.get("full_valid_loss", float("inf"))


#: Checkpoints of the last epochs that are kept, as OpenAI keeps three.
KEPT_EPOCHS = 3


def best(checkpoints: Sequence[Checkpoint], select_by: str = "full_valid_loss") -> Checkpoint | None:
    """Return the best checkpoint by full validation (the earliest among equals), or None without validation."""
    judged = [checkpoint for checkpoint in checkpoints if "full_valid_loss" in checkpoint.metrics]
    if select_by == "accuracy":
        return max(judged, key=lambda c: (c.metrics["full_valid_mean_token_accuracy"], -c.step), default=None)
    return min(judged, key=lambda c: (c.full_valid_loss, c.step), default=None)


def chosen(checkpoints: Sequence[Checkpoint], select_by: str) -> Checkpoint:
    """Return the checkpoint whose weights become the model."""
    newest = max(checkpoints, key=lambda c: c.step)
    return newest if select_by == "last" else best(checkpoints, select_by) or newest


def listed(checkpoints: Sequence[Checkpoint], select_by: str) -> list[Checkpoint]:
    """Return the checkpoints a finished job shows: its last three epochs, the best, the chosen and the final one."""
    epochs = [c for c in sorted(checkpoints, key=lambda c: c.step) if c.epoch is not None][-KEPT_EPOCHS:]
    extra = [best(checkpoints), chosen(checkpoints, select_by), max(checkpoints, key=lambda c: c.step)]
    steps = {c.step for c in [*epochs, *extra] if c is not None}
    return [c for c in sorted(checkpoints, key=lambda c: c.step) if c.step in steps]


@dataclass(frozen=True)
class RowLosses:
    """The loss of each validation example at one full evaluation; step 0 is the base model. Or of each training example at the end.

    `lines` are those of the validation file, or of the training file where that was split; `loss` is in nats per target token.
    """

    step: int
    lines: Sequence[int]
    num_targets: Sequence[int]
    loss: Sequence[float]
    of: Literal["validation", "training"] = "validation"

    def to_dict(self) -> dict[str, Any]:
        """Return it compactly: validation's lines and targets, which never change, at step 0 only; 4 digits are enough."""
        head = {"step": self.step, "of": self.of, "loss": [float(f"{loss:.4g}") for loss in self.loss]}
        rows = {"lines": list(self.lines), "num_targets": list(self.num_targets)}
        return head | rows if self.step == 0 or self.of == "training" else head


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `reason` names the stop condition; a paused or cancelled run can go on from its checkpoint."""

    outcome: Literal["finished", "paused", "cancelled"]
    reason: str
    step: int
    tokens_seen: int


class RunSink(Protocol):
    """Who hears a run: a folder (`tunesmith train`) or the worker's pipe. Calls come in order, one at a time."""

    def resolved(self, spec: ResolvedSpec) -> None:
        """Hear what will run, execution plan included."""

    def event(self, event: jobs.Event) -> None:
        """Hear a message event; metrics events come through `metric`."""

    def metric(self, point: MetricPoint) -> None:
        """Hear one step's figures."""

    def row_losses(self, losses: RowLosses) -> None:
        """Hear each validation example's loss at a full evaluation, before that step's figures; each training example's where asked."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Hear of a checkpoint that is durable; the sink may move or thin out older ones, never this one."""

    def request(self) -> jobs.Request:
        """Say whether to go on; asked at each micro-batch."""


def difference(before: Any, here: Any) -> str | None:
    """Say what differs between two runs' specs, digests of data included; of a file its content counts, not its path. None if nothing."""
    before, here = _comparable(before), _comparable(here)
    if before == here:
        return None
    if isinstance(before, dict) and isinstance(here, dict):
        keys = sorted(key for key in before.keys() | here.keys() if before.get(key) != here.get(key))
        return ", ".join(f"{key} {before.get(key, 'default')!r} there, {here.get(key, 'default')!r} asked" for key in keys)
    return f"{before!r} there, {here!r} asked"


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items() if key != "path"}
    return value
