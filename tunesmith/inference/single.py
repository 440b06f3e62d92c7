"""Run one sequence after the other through a model that does not let us exchange its attention. Knows no schedule."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tunesmith.errors import TunesmithError
from tunesmith.inference import forward
from tunesmith.inference.adapters import Adapter, Switch


@dataclass(eq=False)
class _Held:
    """One sequence in transformers' own cache."""

    cache: Any
    length: int = 0


class Single:
    """A `forward.Runner` that knows nothing about the model: transformers' cache, one sequence at a time, no beginnings used again."""

    def __init__(self, model: nn.Module, switch: Switch) -> None:
        self._model, self._switch = model, switch
        self._device = next(model.parameters()).device

    def begin(self, ids: Sequence[int], adapter: Adapter | None, *, fresh: bool) -> _Held:
        """Return an empty cache."""
        cache = DynamicCache(config=self._model.config)
        cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return _Held(cache)

    def compute(self, parts: Sequence[forward.Part]) -> list[Tensor | TunesmithError]:
        """Compute each part alone."""
        results: list[Tensor | TunesmithError] = []
        for part in parts:
            try:
                results.append(self._compute(part))
            except RuntimeError as error:
                results.append(forward.failure(error))
        return results

    def _compute(self, part: forward.Part) -> Tensor:
        assert isinstance(part.held, _Held)
        ids_1R = torch.tensor([part.ids], device=self._device)
        keep = 0 if part.all_logits else 1
        with self._switch.using([part.adapter]):
            output = self._model(input_ids=ids_1R, past_key_values=part.held.cache, use_cache=True, logits_to_keep=keep)
        part.held.length += len(part.ids)
        logits_RV: Tensor = output.logits[0].cpu()
        return logits_RV

    def fork(self, prompt: forward.Held, adapter: Adapter | None, *, last: bool) -> forward.Held:
        """Copy the prompt's cache, or give it away."""
        return prompt if last else copy.deepcopy(prompt)

    def end(self, held: forward.Held, ids: Sequence[int], adapter: Adapter | None) -> None:
        """Keep nothing."""

    def drop(self, held: forward.Held) -> None:
        """Keep nothing."""

    def trim(self, num_tokens: int) -> None:
        """Keep nothing."""


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one attention layer, in a buffer that doubles.

    transformers' own copies everything at each token, which at 2,000 tokens costs more than the token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; return all keys and all values, [batch, heads, tokens, width] each."""
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self._buffers is None or new > self._buffers[0].shape[-2]:
            self._buffers = (self._grown(key_states, self.keys, old, new), self._grown(value_states, self.values, old, new))
        keys, values = self._buffers
        keys[..., old:new, :] = key_states
        values[..., old:new, :] = value_states
        self.is_initialized = True
        self.keys, self.values = keys[..., :new, :], values[..., :new, :]
        return self.keys, self.values

    @staticmethod
    def _grown(states: Tensor, held: Tensor | None, old: int, new: int) -> Tensor:
        capacity = max(64, 2 ** math.ceil(math.log2(new)))
        buffer = states.new_empty((*states.shape[:-2], capacity, states.shape[-1]))
        if held is not None:
            buffer[..., :old, :] = held
        return buffer
