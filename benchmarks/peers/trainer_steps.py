"""The clock for peers that are built on transformers' Trainer."""

from __future__ import annotations

from typing import Any

import measure
from transformers import TrainerCallback


class Steps(TrainerCallback):
    """Hands the trainer's steps and losses to the clock."""

    def __init__(self, clock: measure.Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin the first step."""
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End a step."""
        self.clock.step()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Note a step's loss."""
        if "loss" in logs:
            self.clock.losses.append(float(logs["loss"]))
