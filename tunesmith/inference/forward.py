"""What it means to run new tokens of several sequences through a model. `packed` and `single` do it; knows no model.

Shape letters: R rows (new tokens), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tunesmith.errors import TunesmithError
from tunesmith.inference.adapters import Adapter


class Held(Protocol):
    """What a runner holds of one sequence: the keys and values of its first `length` tokens."""

    length: int


@dataclass(frozen=True)
class Part:
    """New tokens of one sequence; wanted are the numbers after the last of them, or after each."""

    held: Held
    ids: Sequence[int]
    adapter: Adapter | None
    all_logits: bool = False


class Runner(Protocol):
    """Who computes. One thread calls everything, under torch.inference_mode."""

    def begin(self, ids: Sequence[int], adapter: Adapter | None, *, fresh: bool) -> Held | None:
        """Return what is to hold a prompt; unless `fresh` it may hold some of it already. None: ask again after the next step."""

    def compute(self, parts: Sequence[Part]) -> list[Tensor | TunesmithError]:
        """Compute; return each part's logits, [R, V] on the CPU in the model's dtype, or why there are none."""

    def fork(self, prompt: Held, adapter: Adapter | None, *, last: bool) -> Held:
        """Return what goes on from a prompt that was read; after the `last` the prompt itself is not asked for again."""

    def end(self, held: Held, ids: Sequence[int], adapter: Adapter | None) -> None:
        """Let go of a sequence of `ids` that ended as it should; its numbers may be used again."""

    def drop(self, held: Held) -> None:
        """Let go of a sequence that was given up."""

    def trim(self, num_tokens: int) -> None:
        """Hold at most `num_tokens` besides the sequences under way."""


def failure(error: Exception) -> TunesmithError:
    """Return torch's error, out of memory above all, in words for who asked."""
    return TunesmithError(f"The model could not go on with this request: {error}")
