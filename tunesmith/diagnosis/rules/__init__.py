"""The rules: each looks at a run and says one thing, or nothing. `RULES` is all of them.

Every rule is relative to the series' own noise, the size of the validation set and the schedule, never to an absolute loss. The numbers
that decide stand in `diagnosis.limits`, with the data that set them.
"""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.diagnosis.rules import rows, scores, training, validation
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Finding

Rule = Callable[[View], Finding | None]

RULES: tuple[Rule, ...] = (
    training.non_finite,
    training.pipeline_fault,
    training.divergence,
    training.too_fast,
    training.slow_learning,
    training.strong_dropout,
    training.too_few_updates,
    training.still_improving,
    training.noisy_training,
    training.too_little_data,
    validation.no_validation,
    validation.cannot_tell,
    validation.noisy_validation,
    validation.no_learning,
    validation.overfitting,
    validation.memorization,
    validation.suspiciously_perfect,
    validation.late_improvement,
    validation.plateau,
    validation.converged,
    scores.constant_metric,
    scores.metric_conflict,
    rows.inconsistent_answers,
)
