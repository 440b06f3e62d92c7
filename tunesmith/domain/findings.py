"""What a diagnosis says: findings, the checkpoint to use, the next run. Knows not how it was found out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunesmith.domain.jobs import Event, Level

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")

#: What curves can show.
CURVE_CODES = (
    "converged", "still_improving", "overfitting", "over_confidence", "plateau", "no_learning", "divergence", "slow_learning",
    "noisy_validation", "noisy_training", "constant_metric", "suspiciously_perfect", "memorization", "too_little_data",
    "metric_conflict", "late_improvement", "pipeline_fault", "non_finite", "no_validation", "cannot_tell",
)  # fmt: skip
#: What the data itself shows, before or beside any curve.
DATA_CODES = (
    "duplicates", "leakage", "truncated_rows", "no_target_rows", "class_imbalance", "small_validation", "low_variety",
    "inconsistent_answers", "prompt_in_loss",
)  # fmt: skip
CODES = (*CURVE_CODES, *DATA_CODES)


@dataclass(frozen=True)
class Change:
    """One concrete change for the next run: `knob` is a hyperparameter, or "training_data" or "validation_data"."""

    knob: str
    before: float | int | str | None
    after: float | int | str | None
    reason: str

    def words(self) -> str:
        """Say it in one line."""
        return f"{self.knob} {_short(self.before)} → {_short(self.after)}, because {self.reason}"


@dataclass(frozen=True)
class Finding:
    """One thing that was seen. `message` says what, `advice` what to do; `evidence` are the numbers that show it.

    `confidence`, 0 to 1, says how sure it is: 1 for facts, for the rest a judgement that is not measured yet. `steps` are the first
    and the last it is about, None for one about the data. `lines` are those of the file that `evidence` names.
    """

    code: str
    severity: Severity
    confidence: float
    message: str
    advice: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, int] | None = None
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"Unknown finding code {self.code!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"steps": list(self.steps) if self.steps else None, "changes": [asdict(change) for change in self.changes]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """Return the finding that `to_dict` wrote."""
        steps = tuple(data["steps"]) if data["steps"] else None
        return cls(**{**data, "steps": steps, "changes": tuple(Change(**change) for change in data["changes"])})


@dataclass(frozen=True)
class CheckpointChoice:
    """Which checkpoint to use and why. `score` is what to expect of it on new data: its name, value and 90 % interval."""

    step: int
    reason: str
    score: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What happened in a run, why, and what to do next.

    `plots` say in words what the loss plot, the token-accuracy plot and both together show; `reading` is how loss and accuracy are to be
    read together; `rows` are single rows worth a look, by file line; `cannot_tell` is what these curves leave open.
    """

    verdict: str
    findings: tuple[Finding, ...]
    checkpoint: CheckpointChoice | None
    next_hyperparameters: Mapping[str, Any]
    plots: Mapping[str, str]
    reading: str
    rows: Mapping[str, Any]
    cannot_tell: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as `tunesmith diagnose --json` prints it."""
        return asdict(self) | {"findings": [finding.to_dict() for finding in self.findings], "cannot_tell": list(self.cannot_tell)}


def ordered(findings: list[Finding]) -> list[Finding]:
    """Return findings with the gravest first, then the surest."""
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.confidence))


def data_events(findings: Iterable[Finding]) -> list[Event]:
    """Return what is said of a job's or a run's data: an event for each finding, a warning where it is more than info."""
    events: dict[str, Event] = {}
    for finding in findings:
        key = f"data:{finding.code}"
        if key in events:  # a code that stands for several things has a finding for each kind
            key += f":{finding.evidence.get('kind')}"
        level: Level = "info" if finding.severity == "info" else "warn"
        events[key] = Event(f"{finding.message} {finding.advice}", key=key, level=level)
    return list(events.values())


def _short(value: float | int | str | None) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
