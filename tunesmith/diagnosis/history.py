"""What is known of a run, as a diagnosis reads it. Sequences and facts only; where they came from is not known here.

Sampled validation (`valid_loss`: a few rows, other ones each time) and full validation (`full_valid_loss`: always all rows) are different
series and are never joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.domain.findings import Finding

Floats = npt.NDArray[np.float64]

#: The series of a history, and other names that they have in metrics.
NAMES: Mapping[str, tuple[str, ...]] = {
    "train_loss": (),
    "train_accuracy": ("train_mean_token_accuracy",),
    "valid_loss": (),
    "valid_accuracy": ("valid_mean_token_accuracy",),
    "full_valid_loss": (),
    "full_valid_accuracy": ("full_valid_mean_token_accuracy",),
    "accuracy": (),
    "precision": (),
    "recall": (),
    "f1": (),
    "learning_rate": (),
    "grad_norm": (),
    "epoch": (),
}


@dataclass(frozen=True)
class Series:
    """A metric over the steps at which it was computed; finite values only."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    def after(self, step: float) -> Series:
        """Return the part behind a step."""
        kept = self.steps > step
        return Series(self.steps[kept], self.values[kept])

    def until(self, step: float) -> Series:
        """Return the part up to a step."""
        kept = self.steps <= step
        return Series(self.steps[kept], self.values[kept])


@dataclass(frozen=True)
class Rows:
    """The loss of each of R validation examples at E full evaluations, in nats per target token."""

    steps: Sequence[int]
    lines: Sequence[int]
    num_targets_R: Floats
    loss_ER: Floats


_EMPTY = Series(np.empty(0), np.empty(0))


@dataclass(frozen=True)
class History:
    """A run's series and what is known beside them; None is unknown.

    `hyperparameters` have the names of docs/hyperparameters.md. `usual_learning_rate` is the one that suits the model. `non_finite_step`
    is where a figure was infinite or not a number. `rows` are validation's, `training_rows` all that was trained on, scored at the end;
    `data_findings` are those of `diagnosis.dataset`.
    """

    series: Mapping[str, Series]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    num_training: int | None = None
    num_validation: int | None = None
    steps_per_epoch: float | None = None
    total_steps: int | None = None
    finished: bool = True
    usual_learning_rate: float | None = None
    non_finite_step: int | None = None
    rows: Rows | None = None
    training_rows: Rows | None = None
    data_findings: Sequence[Finding] = ()
    checkpoint_steps: Sequence[int] = ()

    def __getitem__(self, name: str) -> Series:
        """Return a series, empty where nothing was logged."""
        return self.series.get(name, _EMPTY)

    def until(self, step: float) -> History:
        """Return what was known at a step, the run not being over."""
        rows = self.rows
        if rows is not None:
            kept = [i for i, at in enumerate(rows.steps) if at <= step]
            rows = Rows([rows.steps[i] for i in kept], rows.lines, rows.num_targets_R, rows.loss_ER[kept]) if kept else None
        broken = self.non_finite_step if self.non_finite_step is not None and self.non_finite_step <= step else None
        cut = {name: series.until(step) for name, series in self.series.items()}
        return replace(self, series=cut, rows=rows, training_rows=None, finished=False, non_finite_step=broken)

    @property
    def last_step(self) -> int:
        """The last step with any figure."""
        return int(max((series.steps[-1] for series in self.series.values() if len(series)), default=0))


def from_points(points: Iterable[Mapping[str, Any]], **facts: Any) -> History:
    """Return the history of metric points: dicts with "step" and any of the series' names; what is None or absent was not computed.

    A value that is infinite or not a number is left out of its series and noted as `non_finite_step`.
    """
    columns: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in NAMES}
    known_as = {other: name for name, others in NAMES.items() for other in (name, *others)}
    broken: list[float] = []
    for point in points:
        step = float(point["step"])
        for key, value in point.items():
            if key not in known_as or value is None:
                continue
            if not np.isfinite(value):
                broken.append(step)
                continue
            steps, values = columns[known_as[key]]
            steps.append(step)
            values.append(float(value))
    series = {name: _ordered(*column) for name, column in columns.items() if column[0]}
    if broken:
        facts.setdefault("non_finite_step", int(min(broken)))
    return History(series, **facts)


def rows(evaluations: Sequence[Mapping[str, Any]]) -> Rows | None:
    """Return the rows of `RowLosses.to_dict()`, the base model's first; None without them."""
    if not evaluations or "lines" not in evaluations[0]:
        return None
    head = evaluations[0]
    losses = np.array([evaluation["loss"] for evaluation in evaluations], dtype=float)
    return Rows([int(e["step"]) for e in evaluations], head["lines"], np.array(head["num_targets"], dtype=float), losses)


def _ordered(steps: list[float], values: list[float]) -> Series:
    """Sort by step; of several values at one step the last stands."""
    latest = dict(zip(steps, values, strict=True))
    ordered = sorted(latest)
    return Series(np.array(ordered), np.array([latest[step] for step in ordered]))
