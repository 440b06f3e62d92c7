"""Continue token sequences with one base model and its adapters. Token ids in, token ids out: knows no text and no HTTP.

One thread calls `step`, which moves every running generation on by one token per choice, or by one piece of its prompt; so a
short question is answered while a long one is. Each sequence is computed alone: what others ask never changes its numbers.
Computing several in one batch is a matter of `_advance` only.

Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import queue
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tunesmith.errors import InvalidRequest, TunesmithError, Unavailable
from tunesmith.inference.adapters import Adapter, Switch
from tunesmith.inference.requests import Sampling

Reason = Literal["stop", "length"]

_PROMPT_PIECE = 256  # tokens of a prompt computed at once; others wait that long
_MAX_WAITING = 256  # generations
_MAX_RUNNING = 16  # generations
_MAX_CHOICES = 4  # of one generation at once, so that n=128 is no way to the front of the queue
_CACHED_TOKENS = 65_536  # tokens that all running generations may come to hold; one alone may hold more
_LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot carry


@dataclass(frozen=True)
class Token:
    """A token, and where asked for its log-probability and the likeliest at its place, before temperature and penalties."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Listener(Protocol):
    """Who hears a generation. Called by the thread that calls `Engine.step`."""

    def prompt(self, tokens: Sequence[Token]) -> None:
        """Hear that the prompt was read; with `prompt_logprobs`, its tokens."""

    def token(self, choice: int, token: Token) -> bool:
        """Hear one token; return whether to go on."""

    def finished(self, choice: int, reason: Reason) -> None:
        """Hear that a choice is at its end. The stop token itself is not heard."""

    def failed(self, error: TunesmithError) -> None:
        """Hear that the generation ended for another reason; nothing is heard after that."""


@dataclass(eq=False)
class _Choice:
    """One of the n continuations of a prompt."""

    index: int
    cache: Any
    logits_V: Tensor
    random: np.random.Generator
    num_tokens: int = 0
    counts: Counter[int] = field(default_factory=Counter)


@dataclass(eq=False)
class Generation:
    """A prompt (at least one token) that is to be continued `n` times. Setting `cancelled` from any thread ends it."""

    prompt: Sequence[int]
    sampling: Sampling
    listener: Listener
    n: int = 1
    stop_ids: frozenset[int] = frozenset()
    adapter: Adapter | None = None
    prompt_logprobs: bool = False
    cancelled: bool = False
    # The engine's own: the prompt as far as it was read, and the choices under way.
    _cache: Any = None
    _num_read: int = 0
    _prompt_tokens: list[Token] = field(default_factory=list)
    _logits_V: Tensor | None = None
    _num_started: int = 0
    _choices: list[_Choice] = field(default_factory=list)


class Engine:
    """One base model and the generations it is working on. All but `submit` belongs to one thread."""

    def __init__(self, model: nn.Module) -> None:
        self.adapters = Switch(model)
        config: Any = model.config
        text = config.get_text_config()
        self.max_length: int = getattr(text, "max_position_embeddings", None) or 2048
        self.vocabulary_size: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        self._model = model
        self._config = config
        self._device = next(model.parameters()).device
        self._arrivals: queue.SimpleQueue[Generation] = queue.SimpleQueue()
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []

    def check(self, prompt: Sequence[int], sampling: Sampling, param: str) -> None:
        """Refuse what `submit` could not work on; `param` is the field that the prompt came from.

        Raises: InvalidRequest for a prompt over the context length or a token outside the vocabulary.
        """
        if len(prompt) >= self.max_length:
            raise InvalidRequest(
                f"This model's maximum context length is {self.max_length} tokens, the answer included. However, your {param} "
                f"resulted in {len(prompt)} tokens. Hint: shorten the {param}.",
                param=param,
                code="context_length_exceeded",
            )
        for name, ids in ((param, prompt), ("logit_bias", sampling.logit_bias)):
            strange = next((id for id in ids if not 0 <= id < self.vocabulary_size), None)
            if strange is not None:
                words = f"Invalid token id {strange} in '{name}'. Expected ids from 0 to {self.vocabulary_size - 1} for this model."
                raise InvalidRequest(words, param=name)

    def submit(self, generation: Generation) -> None:
        """Queue a generation that passed `check`; any thread may.

        Raises: Unavailable when too many are waiting.
        """
        if self._arrivals.qsize() + len(self._waiting) >= _MAX_WAITING:
            raise Unavailable(f"{_MAX_WAITING} requests are waiting for this model already. Try again later.")
        self._arrivals.put(generation)

    def run(self) -> None:
        """Work for ever."""
        while True:
            if not self.step():
                self._waiting.append(self._arrivals.get())

    def step(self) -> bool:
        """Move every running generation on; return whether there was any work."""
        self._admit()
        for generation in list(self._running):
            if not generation.cancelled and self._advance_or_fail(generation):
                continue
            self._running.remove(generation)
        return bool(self._running or self._waiting)

    def _admit(self) -> None:
        while not self._arrivals.empty():
            self._waiting.append(self._arrivals.get())
        self._waiting = [generation for generation in self._waiting if not generation.cancelled]
        while self._waiting and len(self._running) < _MAX_RUNNING:
            held = sum(map(self._most_tokens, self._running))
            if self._running and held + self._most_tokens(self._waiting[0]) > _CACHED_TOKENS:
                break
            self._running.append(self._waiting.pop(0))

    def _limit(self, generation: Generation) -> int:
        """Return the most tokens of one choice."""
        room = self.max_length - len(generation.prompt)
        asked = generation.sampling.max_tokens
        return room if asked is None else min(asked, room)

    def _most_tokens(self, generation: Generation) -> int:
        return (len(generation.prompt) + self._limit(generation)) * min(generation.n, _MAX_CHOICES)

    def _advance_or_fail(self, generation: Generation) -> bool:
        """Return whether the generation is still under way."""
        try:
            with torch.inference_mode():
                return self._advance(generation)
        except TunesmithError as error:
            generation.listener.failed(error)
        except RuntimeError as error:  # torch's: out of memory above all
            generation.listener.failed(TunesmithError(f"The model could not go on with this request: {error}"))
        return False

    def _advance(self, generation: Generation) -> bool:
        """Read one piece of the prompt, or draw one token for each choice under way."""
        self.adapters.active = generation.adapter
        if generation._logits_V is None:
            self._read_piece(generation)
            return True
        while len(generation._choices) < _MAX_CHOICES and generation._num_started < generation.n:
            generation._choices.append(self._start_choice(generation, generation._logits_V))
        generation._choices = [choice for choice in generation._choices if self._draw(generation, choice)]
        return bool(generation._choices) or generation._num_started < generation.n

    def _read_piece(self, generation: Generation) -> None:
        if generation._cache is None:
            generation._cache = _new_cache(self._config)
        start = generation._num_read
        end = min(start + _PROMPT_PIECE, len(generation.prompt))
        logits_TV = self._forward(generation.prompt[start:end], generation._cache, all_logits=generation.prompt_logprobs)
        generation._num_read = end
        if generation.prompt_logprobs:
            if start == 0:
                generation._prompt_tokens.append(Token(generation.prompt[0]))
            top = generation.sampling.top_logprobs or 0
            for logits_V, id in zip(logits_TV, generation.prompt[start + 1 : end + 1], strict=False):
                generation._prompt_tokens.append(_measured(id, logits_V, top))
        if end == len(generation.prompt):
            generation._logits_V = logits_TV[-1]
            generation.listener.prompt(generation._prompt_tokens)

    def _start_choice(self, generation: Generation, logits_V: Tensor) -> _Choice:
        index = generation._num_started
        generation._num_started += 1
        last = generation._num_started == generation.n
        cache = generation._cache if last else copy.deepcopy(generation._cache)
        seed = generation.sampling.seed
        # Each choice has a stream of its own: neither the others nor other requests move it.
        return _Choice(index, cache, logits_V, np.random.default_rng(None if seed is None else [seed % 2**64, index]))

    def _draw(self, generation: Generation, choice: _Choice) -> bool:
        """Draw a choice's next token and compute what follows it; return whether the choice goes on."""
        sampling, limit = generation.sampling, self._limit(generation)
        reason: Reason | None = "length" if limit == 0 else None
        if reason is None:
            id = draw(choice.logits_V, sampling, choice.counts, choice.random)
            if id in generation.stop_ids:
                reason = "stop"
            else:
                top = sampling.top_logprobs
                token = Token(id) if top is None else _measured(id, choice.logits_V, top)
                choice.num_tokens += 1
                choice.counts[id] += 1
                if not generation.listener.token(choice.index, token):
                    reason = "stop"
                elif choice.num_tokens >= limit:
                    reason = "length"
                else:
                    choice.logits_V = self._forward([id], choice.cache)[-1]
        if reason is not None:
            generation.listener.finished(choice.index, reason)
        return reason is None

    def _forward(self, ids: Sequence[int], cache: Any, *, all_logits: bool = False) -> Tensor:
        """Return the logits after each of `ids` ([T, V], float32), or after the last only."""
        ids_1T = torch.tensor([ids], device=self._device)
        output = self._model(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=0 if all_logits else 1)
        logits_TV: Tensor = output.logits[0].to(torch.promote_types(output.logits.dtype, torch.float32))
        if bool(logits_TV.isnan().any()):
            raise TunesmithError("The model computed something that is not a number (NaN). Hint: its weights may be damaged.")
        return logits_TV.cpu()


def draw(logits_V: Tensor, sampling: Sampling, counts: Counter[int], random: np.random.Generator) -> int:
    """Return the next token id; `counts` says how often each was drawn before.

    Penalties and bias as OpenAI defines them; then temperature (0: the likeliest token), then top_p (Holtzman et al., 2020).
    """
    logits_V = _adjusted(logits_V, sampling, counts)
    if sampling.temperature == 0 or sampling.top_p == 0:
        return int(logits_V.argmax())
    probs_V = torch.softmax(logits_V.double() / sampling.temperature, dim=-1)
    ids_V: Tensor | None = None
    if sampling.top_p < 1:
        probs_V, ids_V = probs_V.sort(descending=True, stable=True)
        kept = int((probs_V.cumsum(0) < sampling.top_p).sum()) + 1
        probs_V = probs_V[:kept]
    cumulative_V = probs_V.cumsum(0)
    # Scaled by the sum, so that rounding cannot leave a gap at the end.
    place = int(torch.searchsorted(cumulative_V, float(random.random()) * float(cumulative_V[-1]), right=True))
    place = min(place, len(cumulative_V) - 1)
    return place if ids_V is None else int(ids_V[place])


def _adjusted(logits_V: Tensor, sampling: Sampling, counts: Counter[int]) -> Tensor:
    penalized = counts if sampling.presence_penalty or sampling.frequency_penalty else {}
    if not penalized and not sampling.logit_bias:
        return logits_V
    logits_V = logits_V.clone()
    for id, count in penalized.items():
        logits_V[id] -= count * sampling.frequency_penalty + sampling.presence_penalty
    for id, bias in sampling.logit_bias.items():
        logits_V[id] += bias
    return logits_V


def _measured(id: int, logits_V: Tensor, num_top: int) -> Token:
    """Return a token with its log-probability and the `num_top` likeliest, of the model's own distribution."""
    logprobs_V = torch.log_softmax(logits_V, dim=-1).clamp(min=_LOWEST_LOGPROB)
    values, ids = logprobs_V.topk(min(num_top, len(logprobs_V)))
    return Token(id, float(logprobs_V[id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _new_cache(config: Any) -> Any:
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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
