"""Continue token sequences with one base model and its adapters. Token ids in, token ids out: knows no text and no HTTP.

One thread calls `step`, which moves everything on in one forward pass: a token for every answer under way, whichever adapter it is
written with, and a bounded number of tokens of the prompts being read. So a short question is answered while a long one is read.

What others ask never reaches an answer. Its numbers are the same alone and in company up to round-off: a processor may add up in
another order when it multiplies more rows, or when a prompt's beginning was read before. In float64 and float32 that hardly ever moves
a token; in bfloat16 it can, at a near tie. Where it was measured there was nothing to round off: with weights laid out as `chat.load`
does it, bfloat16 and AVX-512, an answer is the same bits alone, in company and when asked again.

Shape letters: R rows (new tokens), V vocabulary.
"""

from __future__ import annotations

import itertools
import queue
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import InvalidRequest, TunesmithError, Unavailable
from tunesmith.inference import selfcheck
from tunesmith.inference.adapters import Adapter, Switch
from tunesmith.inference.forward import Held, Part, failure
from tunesmith.inference.requests import Sampling
from tunesmith.inference.sampling import Token, draw, measured

Reason = Literal["stop", "length"]

_PROMPT_PIECE = 256  # tokens of prompts computed in one step, fewer far into a text; answers under way wait that long
_OLDEST_PIECE = 64  # of these, for who has waited longest; the rest is for the shortest
_FAR = 1024  # tokens; as many before it again, and a token's attention costs about as much as all else did
_MAX_WAITING = 256  # generations
_MAX_RUNNING = 16  # generations
_MAX_CHOICES = 4  # of one generation at once, so that n=128 is no way to the front of the queue
_CACHED_TOKENS = 65_536  # tokens that all running generations hold; where they come to hold more, only the oldest goes on
_EXPECTED_TOKENS = 1024  # of an answer, when it is decided whether one more generation may begin
_KEPT_TOKENS = 8_192  # of these, for prompts that begin like earlier ones


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
    """One of the n continuations of a prompt. Its last token was heard, but what follows it is not computed yet."""

    index: int
    random: np.random.Generator
    ids: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    held: Held | None = None


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
    # The engine's own: the prompt as far as it was read, what follows it, and the choices under way.
    _held: Held | None = None
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
        #: How several requests are computed, in words.
        self._runner, self.manner = selfcheck.choose(model, self.adapters)
        self._arrivals: queue.SimpleQueue[Generation] = queue.SimpleQueue()
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []

    def check(self, prompt: Sequence[int], sampling: Sampling, param: str) -> None:
        """Refuse what `submit` could not work on; `param` is the field that the prompt came from.

        Raises: InvalidRequest for a prompt without tokens or over the context length, or a token outside the vocabulary.
        """
        if not prompt:
            raise InvalidRequest(f"Your {param} resulted in no tokens at all, so there is nothing to continue.", param=param)
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

    @torch.inference_mode()
    def step(self) -> bool:
        """Move every running generation on; return whether there is any work left."""
        for generation in [generation for generation in self._running if generation.cancelled]:
            self._leave(generation)
        self._admit()
        work = self._work()
        all_parts = [part for parts in work.values() for part in parts]
        results = iter(self._runner.compute(all_parts) if all_parts else [])
        for generation, parts in work.items():
            self._go_on_or_fail(generation, parts, [next(results) for _ in parts])
        self._runner.trim(min(_KEPT_TOKENS, max(0, _CACHED_TOKENS - sum(map(_held_tokens, self._running)))))
        return bool(self._running or self._waiting)

    def _admit(self) -> None:
        while not self._arrivals.empty():
            self._waiting.append(self._arrivals.get())
        self._waiting = [generation for generation in self._waiting if not generation.cancelled]
        while self._waiting and len(self._running) < _MAX_RUNNING:
            expected = sum(max(self._expected_tokens(running), _held_tokens(running)) for running in self._running)
            if self._running and expected + self._expected_tokens(self._waiting[0]) > _CACHED_TOKENS:
                break
            self._running.append(self._waiting.pop(0))

    def _limit(self, generation: Generation) -> int:
        """Return the most tokens of one choice."""
        room = self.max_length - len(generation.prompt)
        asked = generation.sampling.max_tokens
        return room if asked is None else min(asked, room)

    def _expected_tokens(self, generation: Generation) -> int:
        """Return about how many tokens it will hold; an answer may be as long as the context, but hardly any is."""
        return (len(generation.prompt) + min(self._limit(generation), _EXPECTED_TOKENS)) * min(generation.n, _MAX_CHOICES)

    def _work(self) -> dict[Generation, list[Part]]:
        """Return what this step computes: pieces of prompts, and one token of each choice; none where more choices are to begin."""
        lengths = self._piece_lengths()
        work: dict[Generation, list[Part]] = {}
        is_full = sum(map(_held_tokens, self._running)) > _CACHED_TOKENS
        for generation in self._running[:1] if is_full else self._running:
            held = generation._held
            if generation in lengths and held is not None:
                ids = generation.prompt[held.length : held.length + lengths[generation]]
                work[generation] = [Part(held, ids, generation.adapter, generation.prompt_logprobs)]
            if generation._logits_V is not None:
                choices = [(choice, choice.held) for choice in generation._choices]
                work[generation] = [Part(held, choice.ids[-1:], generation.adapter) for choice, held in choices if held is not None]
        return work

    def _piece_lengths(self) -> dict[Generation, int]:
        """Return how much of which prompts to read: some of the one that has waited longest, for the rest the shortest first."""
        rests: dict[Generation, int] = {}
        mosts: dict[Generation, int] = {}
        for generation in self._running:
            if generation._logits_V is None and generation._held is None:
                generation._held = self._runner.begin(generation.prompt, generation.adapter, fresh=generation.prompt_logprobs)
            if generation._logits_V is None and generation._held is not None:
                rests[generation] = len(generation.prompt) - generation._held.length
                mosts[generation] = min(rests[generation], _PROMPT_PIECE // (1 + generation._held.length // _FAR))
        lengths = {generation: min(most, _OLDEST_PIECE) for generation, most in itertools.islice(mosts.items(), 1)}
        for generation in sorted(rests, key=lambda generation: rests[generation]):
            more = min(mosts[generation] - lengths.get(generation, 0), _PROMPT_PIECE - sum(lengths.values()))
            if more > 0:
                lengths[generation] = lengths.get(generation, 0) + more
        return lengths

    def _go_on_or_fail(self, generation: Generation, parts: Sequence[Part], results: Sequence[Tensor | TunesmithError]) -> None:
        try:
            logits = [result for result in results if isinstance(result, Tensor)]
            for result in results:
                if isinstance(result, TunesmithError):
                    raise result
            self._go_on(generation, parts, logits)
        except TunesmithError as error:
            self._leave(generation, failed=True)
            generation.listener.failed(error)
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:  # torch's, or a fault around this one
            self._leave(generation, failed=True)
            generation.listener.failed(failure(error))

    def _go_on(self, generation: Generation, parts: Sequence[Part], logits: Sequence[Tensor]) -> None:
        """Take what was computed for a generation: draw the next token of each choice, begin others, and see whether it is done."""
        if generation._logits_V is None:
            self._read(generation, parts[0], logits[0])
        else:
            for choice, logits_RV in zip(list(generation._choices), logits, strict=True):
                if not self._draw(generation, choice, logits_RV[-1]):
                    generation._choices.remove(choice)
        if generation._logits_V is not None:
            for _ in range(min(_MAX_CHOICES - len(generation._choices), generation.n - generation._num_started)):
                self._start_choice(generation, generation._logits_V)
            if not generation._choices and generation._num_started == generation.n:
                self._running.remove(generation)

    def _read(self, generation: Generation, part: Part, logits_RV: Tensor) -> None:
        """Take a piece of a prompt."""
        end = part.held.length
        if generation.prompt_logprobs:
            start = end - len(part.ids)
            if start == 0:
                generation._prompt_tokens.append(Token(generation.prompt[0]))
            top = generation.sampling.top_logprobs or 0
            for logits_V, id in zip(logits_RV, generation.prompt[start + 1 : end + 1], strict=False):
                generation._prompt_tokens.append(measured(id, logits_V, top))
        if end == len(generation.prompt):
            generation._logits_V = logits_RV[-1].clone()  # or all the others' would stay with it
            generation.listener.prompt(generation._prompt_tokens)

    def _start_choice(self, generation: Generation, logits_V: Tensor) -> None:
        index, seed = generation._num_started, generation.sampling.seed
        generation._num_started += 1
        last = generation._num_started == generation.n
        # Each choice has a stream of its own: neither the others nor other requests move it.
        choice = _Choice(index, np.random.default_rng(None if seed is None else [seed % 2**64, index]))
        if self._draw(generation, choice, logits_V) and generation._held is not None:
            choice.held = self._runner.fork(generation._held, generation.adapter, last=last)
            generation._choices.append(choice)
        if last:
            generation._held = None

    def _draw(self, generation: Generation, choice: _Choice, logits_V: Tensor) -> bool:
        """Draw a choice's next token; return whether the choice goes on."""
        sampling, limit = generation.sampling, self._limit(generation)
        reason: Reason | None = "length" if limit == 0 else None
        if reason is None:
            id = draw(logits_V, sampling, choice.counts, choice.random)
            if id in generation.stop_ids:
                reason = "stop"
            else:
                top = sampling.top_logprobs
                token = Token(id) if top is None else measured(id, logits_V, top)
                choice.ids.append(id)
                choice.counts[id] += 1
                if not generation.listener.token(choice.index, token):
                    reason = "stop"
                elif len(choice.ids) >= limit:
                    reason = "length"
        if reason is None:
            return True
        if choice.held is not None:
            self._runner.end(choice.held, [*generation.prompt, *choice.ids], generation.adapter)
            choice.held = None
        generation.listener.finished(choice.index, reason)
        return False

    def _leave(self, generation: Generation, *, failed: bool = False) -> None:
        """Let go of a generation in mid-work; a prompt that was read well is kept for others."""
        self._running.remove(generation)
        unread = generation._logits_V is None
        for held in [generation._held if failed or unread else None, *(choice.held for choice in generation._choices)]:
            if held is not None:
                self._runner.drop(held)


def _held_tokens(generation: Generation) -> int:
    """Return how many tokens a generation holds the keys and values of."""
    return sum(held.length for held in [generation._held, *(choice.held for choice in generation._choices)] if held is not None)
