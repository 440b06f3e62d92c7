"""The runs that the diagnosis is measured on: each has a known cause, and a twin that differs in that cause alone.

A condition names what is done to the data and which hyperparameters are given. `cause` is what a diagnosis should name, as the knob to
turn and the way to turn it. A seed draws rows and everything random of the training; half of the seeds of each condition are held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HEALTHY = "healthy"


@dataclass(frozen=True)
class Condition:
    """One way to run. Sizes are rows; `leaked` of the validation rows are copies of training rows."""

    name: str
    cause: str
    #: The condition with the same seed that it is compared with; None for a healthy one.
    twin: str | None = None
    num_training: int = 200
    num_validation: int = 160
    answer_noise: float = 0.0
    leaked: float = 0.0
    prompt_in_loss: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 4


def _conditions() -> list[Condition]:
    plain: dict[str, Any] = {"n_epochs": 3, "batch_size": 8}
    fast = {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 3}
    long = {"n_epochs": 14, "batch_size": 8, "select_by": "full_valid_loss"}
    healthy = [
        Condition("plain-100", HEALTHY, num_training=100, asked={"n_epochs": 4, "batch_size": 8}, seeds=6),
        Condition("plain-200", HEALTHY, asked=plain, seeds=8),
        Condition("plain-400", HEALTHY, num_training=400, asked={"n_epochs": 2, "batch_size": 8}, seeds=4),
        Condition("plain-rate-half", HEALTHY, asked=plain | {"learning_rate_multiplier": 0.6}, seeds=4),
        Condition("plain-rate-double", HEALTHY, asked=plain | {"learning_rate_multiplier": 1.6}, seeds=4),
        Condition("plain-no-dropout", HEALTHY, asked=plain | {"lora_dropout": 0.0}, seeds=4),
        Condition("plain-chosen", HEALTHY, asked={"n_epochs": 4, "batch_size": 8, "select_by": "full_valid_loss"}, seeds=6),
    ]
    faulty = [
        Condition("rate-1/30", "learning_rate_multiplier up", "plain-200", asked=plain | {"learning_rate_multiplier": 1 / 30}),
        Condition("rate-1/100", "learning_rate_multiplier up", "plain-200", asked=plain | {"learning_rate_multiplier": 1 / 100}),
        Condition("rate-x10", "learning_rate_multiplier down", "plain-200", asked=plain | {"learning_rate_multiplier": 10}),
        Condition("rate-x25", "learning_rate_multiplier down", "plain-200", asked=plain | {"learning_rate_multiplier": 25}),
        Condition("rows-20", "training_data more", "plain-200", num_training=20, asked={"n_epochs": 5, "batch_size": 4}, seeds=6),
        Condition("epochs-few", "n_epochs up", "plain-100", num_training=100, asked={"n_epochs": 1, "batch_size": 8}, seeds=6),
        Condition("epochs-many", "n_epochs down", "plain-100", num_training=100, asked={"n_epochs": 16, "batch_size": 8}, seeds=6),
        Condition("noise-20", "training_data clean", "plain-200", answer_noise=0.2, asked=plain, seeds=6),
        Condition("noise-40", "training_data clean", "plain-200", answer_noise=0.4, asked=plain),
        Condition(
            "leak", "validation_data clean", "chosen-100", num_training=100, leaked=0.5,
            asked=long, seeds=6,
        ),
        Condition(
            "validation-8", "validation_data more", "patient-200", num_validation=8,
            asked=plain | {"n_epochs": 4, "early_stopping_patience": 1}, seeds=6,
        ),
        Condition("batch-1", "batch_size up", "batch-8-fast", num_training=60, asked=fast | {"batch_size": 1}, seeds=6),
        Condition("batch-64", "batch_size down", "plain-200", asked={"n_epochs": 3, "batch_size": 64}, seeds=6),
        Condition(
            "prompt-in-loss", "prompt_in_loss off", "plain-100", num_training=100, prompt_in_loss=True,
            asked=plain | {"n_epochs": 4}, seeds=6,
        ),
        Condition("dropout-0.9", "lora_dropout down", "plain-200", asked=plain | {"lora_dropout": 0.9}),
    ]  # fmt: skip
    twins = [
        Condition("chosen-100", "n_epochs down", "plain-100", num_training=100, asked=long, seeds=6),
        Condition("patient-200", HEALTHY, asked=plain | {"n_epochs": 4, "early_stopping_patience": 1}, seeds=6),
        Condition("batch-8-fast", HEALTHY, num_training=60, asked=fast, seeds=6),
    ]  # fmt: skip
    return [*healthy, *twins, *faulty]


CONDITIONS = {condition.name: condition for condition in _conditions()}
