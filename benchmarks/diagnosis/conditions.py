"""The runs that the diagnosis is measured on: each has a known cause, and a twin that differs in that cause alone.

A condition names what is done to the data and which hyperparameters are given. `cause` is what a diagnosis should name, as the knob to
turn and the way to turn it. A seed draws rows and everything random of the training; half of the seeds of each condition are held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import desk

HEALTHY = "healthy"
#: Neither faulty nor healthy: only there to be compared with.
UNSCORED = "unscored"
NUM_TEST = 160


@dataclass(frozen=True)
class Condition:
    """One way to run. Sizes are rows; `leaked` of the validation rows are copies of training rows."""

    name: str
    cause: str
    #: The condition with the same seed that it is compared with; None for a healthy one.
    twin: str | None = None
    num_training: int = 200
    num_validation: int = 80
    answer_noise: float = 0.0
    leaked: float = 0.0
    prompt_in_loss: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 4


def _conditions() -> list[Condition]:
    plain: dict[str, Any] = {"n_epochs": 3, "batch_size": 8}
    small = plain | {"n_epochs": 5}
    fast = {"n_epochs": 5, "batch_size": 8, "learning_rate_multiplier": 3, "learning_rate_schedule": "constant"}
    chosen = {"n_epochs": 12, "batch_size": 8, "select_by": "full_valid_loss"}
    healthy = [
        Condition("plain-200", HEALTHY, asked=plain, seeds=6),
        Condition("plain-100", HEALTHY, num_training=100, asked=small, seeds=8),
        Condition("plain-400", HEALTHY, num_training=400, asked=plain | {"n_epochs": 2}),
        Condition("rate-0.6", HEALTHY, asked=plain | {"learning_rate_multiplier": 0.6}),
        Condition("rate-1.6", HEALTHY, asked=plain | {"learning_rate_multiplier": 1.6}),
        # Ten times the rate that is chosen by itself: on this task it does better still, so nothing may be said against it.
        Condition("rate-x10", HEALTHY, asked=plain | {"learning_rate_multiplier": 10}),
        Condition("no-dropout", HEALTHY, asked=plain | {"lora_dropout": 0.0}),
        Condition("batch-4", HEALTHY, asked=plain | {"batch_size": 4}),
        Condition("validation-32", HEALTHY, num_validation=32, asked=plain),
        Condition("batch-8-fast", HEALTHY, num_training=60, asked=fast, seeds=6),
    ]
    faulty = [
        Condition("rate-1/30", "learning_rate_multiplier up", "plain-200", asked=plain | {"learning_rate_multiplier": 1 / 30}),
        Condition("rate-1/100", "learning_rate_multiplier up", "plain-200", asked=plain | {"learning_rate_multiplier": 1 / 100}),
        Condition("rate-x25", "learning_rate_multiplier down", "plain-200", asked=plain | {"learning_rate_multiplier": 25}, seeds=6),
        Condition("rows-20", "training_data more", "plain-100", num_training=20, asked={"n_epochs": 5, "batch_size": 4}, seeds=8),
        Condition("epochs-few", "n_epochs up", "plain-100", num_training=100, asked={"n_epochs": 1, "batch_size": 8}, seeds=8),
        Condition("epochs-many", "n_epochs down", "plain-100", num_training=100, asked={"n_epochs": 14, "batch_size": 8}),
        Condition("noise-20", "training_data clean", "plain-200", answer_noise=0.2, asked=plain),
        Condition("noise-40", "training_data clean", "plain-200", answer_noise=0.4, asked=plain),
        Condition("leak", "validation_data clean", "chosen-60", num_training=60, leaked=0.8, asked=chosen),
        Condition("validation-8", "validation_data more", "plain-100", num_training=100, num_validation=8, asked=small, seeds=6),
        Condition("batch-1", "batch_size up", "batch-8-fast", num_training=60, asked=fast | {"batch_size": 1}),
        Condition("batch-64", "batch_size down", "plain-200", asked=plain | {"batch_size": 64}),
        Condition("prompt-in-loss", "prompt_in_loss off", "plain-100", num_training=100, prompt_in_loss=True, asked=small, seeds=6),
        Condition("dropout-0.9", "lora_dropout down", "plain-200", asked=plain | {"lora_dropout": 0.9}),
    ]
    twins = [Condition("chosen-60", UNSCORED, num_training=60, asked=chosen)]
    return [*healthy, *twins, *faulty]


CONDITIONS = {condition.name: condition for condition in _conditions()}


def files(condition: Condition, seed: int) -> dict[str, list[desk.Row]]:
    """Return the rows for training, validation and test; a condition and its twin share what they can."""
    drawn = desk.rows(1000, seed)
    test, validation, training = drawn[:NUM_TEST], drawn[200 : 200 + condition.num_validation], drawn[400 : 400 + condition.num_training]
    if condition.answer_noise:
        training = desk.shuffled_answers(training, condition.answer_noise, seed)
        validation = desk.shuffled_answers(validation, condition.answer_noise, seed + 1)
    copies = round(condition.leaked * len(validation))
    validation = training[:copies] + validation[copies:]
    if condition.prompt_in_loss:
        training, validation = desk.all_in_the_answer(training), desk.all_in_the_answer(validation)
    return {"training": training, "validation": validation, "test": test}
