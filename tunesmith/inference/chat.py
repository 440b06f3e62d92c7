"""Messages in, words out: one base model in this process, with its tokenizer and its chat template. Knows no HTTP.

model = chat.load(Path("bases/smollm2"), Path("run/adapter"))
model.chat([{"role": "user", "content": "Hello"}], temperature=0)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from torch import nn

from tunesmith.domain import chat
from tunesmith.errors import InvalidRequest, TunesmithError, Unavailable
from tunesmith.inference import requests, weights
from tunesmith.inference.adapters import Adapter
from tunesmith.inference.engine import Engine, Generation, Reason
from tunesmith.inference.sampling import Token
from tunesmith.inference.text import Answer, Detokenizer, Piece, Vocabulary
from tunesmith.training import model as training_model
from tunesmith.training.tokenizer import load_tokenizer

Message = Mapping[str, Any]
Request = requests.ChatRequest | requests.CompletionRequest
#: What a request says: pieces, or why there will be no more.
Hear = Callable[[Piece | TunesmithError], None]


def load(base_directory: Path, adapter_directory: Path | None = None) -> Model:
    """Load a base (or a full fine-tune) and the adapter that `chat`, `stream` and `complete` are to use.

    Raises: InvalidRequest when the directory is no causal language model, or the adapter does not fit it.
    """
    transformers.utils.logging.disable_progress_bar()
    dtype = torch.bfloat16 if training_model.native_bfloat16() else torch.float32
    network = training_model.load_base(base_directory, dtype, "cuda" if torch.cuda.is_available() else "cpu")
    weights.lay_out(network)
    model = Model(network, load_tokenizer(base_directory))
    if adapter_directory is not None:
        model.adapter = model.engine.adapters.load(adapter_directory)
    return model


class Model:
    """A base model that answers. `start` serves many threads; `chat`, `stream` and `complete` work in the caller's."""

    def __init__(self, network: nn.Module, tokenizer: Any) -> None:
        self.engine = Engine(network)
        self.adapter: Adapter | None = None
        self.vocabulary = Vocabulary(tokenizer)
        self._tokenizer = tokenizer
        self._template: str = tokenizer.chat_template or chat.DEFAULT_TEMPLATE
        self._text_ends = _text_ends(network, tokenizer)
        self._turn_ends = self._text_ends | self._turn_end()

    def chat(self, messages: Sequence[Message], **options: Any) -> str:
        """Return the answer to a conversation; options as OpenAI's: temperature, top_p, seed, max_tokens, stop, ..."""
        return "".join(self.stream(messages, **options))

    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[str]:
        """Yield the answer to a conversation as it is written."""
        return self._answer(requests.parse_chat({**options, "messages": list(messages)}))

    def complete(self, prompt: str, **options: Any) -> str:
        """Return what continues a text; 16 tokens unless `max_tokens` says otherwise."""
        return "".join(self._answer(requests.parse_completion({**options, "prompt": prompt})))

    def _answer(self, request: Request) -> Iterator[str]:
        if request.n != 1:
            raise InvalidRequest(f"Invalid value for 'n': {request.n}. Expected 1 here.", param="n")
        heard: deque[Piece | TunesmithError] = deque()
        generations = self.start(request, heard.append, self.adapter)
        try:
            while True:
                self.engine.step()
                while heard:
                    piece = heard.popleft()
                    if isinstance(piece, TunesmithError):
                        raise piece
                    yield piece.text
                    if piece.finish is not None:
                        return
        finally:
            cancel(generations)

    def start(self, request: Request, hear: Hear, adapter: Adapter | None = None) -> list[Generation]:
        """Begin to answer; `hear` is called by the thread that steps the engine. Choices are numbered over all prompts.

        Raises: InvalidRequest for a prompt that is too long or cannot be rendered, Unavailable when too many are waiting.
        """
        prompts: list[Sequence[int]]
        if isinstance(request, requests.ChatRequest):
            prompts, stop_ids, param = [self._render(request)], self._turn_ends, "messages"
        else:
            prompts, stop_ids, param = [self._prompt(prompt) for prompt in request.prompts], self._text_ends, "prompt"
        for prompt in prompts:
            self.engine.check(prompt, request.sampling, param)
        generations = []
        for number, prompt in enumerate(prompts):
            listener = _Listener(self.vocabulary, request, prompt, number * request.n, hear)
            want_prompt = listener.echo and request.sampling.top_logprobs is not None
            generations.append(Generation(prompt, request.sampling, listener, request.n, stop_ids, adapter, want_prompt))
        try:
            for generation in generations:
                self.engine.submit(generation)
        except Unavailable:
            cancel(generations)
            raise
        return generations

    def _render(self, request: requests.ChatRequest) -> list[int]:
        messages, tools = chat.normalize(request.messages, request.tools, self._template)
        return self.vocabulary.encode(self._apply(messages, tools, generation=True))

    def _apply(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, *, generation: bool) -> str:
        """Render messages with the template, which transformers runs in jinja's sandbox."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tools=tools, chat_template=self._template, tokenize=False, add_generation_prompt=generation
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(f"The model's chat template cannot render these messages: {error}", param="messages") from error

    def _prompt(self, prompt: str | Sequence[int]) -> Sequence[int]:
        ids = self.vocabulary.encode(prompt, special=True) if isinstance(prompt, str) else prompt
        if isinstance(prompt, str) and ids and ids[-1] == self._tokenizer.eos_token_id:  # some tokenizers close what they are given
            ids = ids[:-1]
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise InvalidRequest("Invalid value for 'prompt': ''. Expected at least one token for this model.", param="prompt")
        return ids

    def _turn_end(self) -> set[int]:
        """Return the control token that the template puts after an answer, which need not be the tokenizer's end of text."""
        question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        try:
            before = self._apply([question], None, generation=True)
            through = self._apply([question, answer], None, generation=False)
        except InvalidRequest:
            return set()
        if not through.startswith(before):
            return set()
        special = set(self._tokenizer.all_special_ids)
        return set([id for id in self.vocabulary.encode(through[len(before) :]) if id in special][:1])


def cancel(generations: Sequence[Generation]) -> None:
    """End generations whose answer nobody wants any more."""
    for generation in generations:
        generation.cancelled = True


def _text_ends(network: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a text: the tokenizer's, and those that the model's generation settings name."""
    named: Any = getattr(network.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return frozenset(id for id in (*ids, tokenizer.eos_token_id) if id is not None)


class _Listener:
    """Turns one generation's tokens into pieces of text."""

    def __init__(self, vocabulary: Vocabulary, request: Request, prompt: Sequence[int], first_choice: int, hear: Hear) -> None:
        parse_calls = isinstance(request, requests.ChatRequest) and request.parse_calls
        choices = range(first_choice, first_choice + request.n)
        self.echo = isinstance(request, requests.CompletionRequest) and request.echo
        self._answers = [Answer(vocabulary, choice, prompt, request.stop, parse_calls=parse_calls) for choice in choices]
        self._vocabulary = vocabulary
        self._prompt = prompt
        self._hear = hear

    def prompt(self, tokens: Sequence[Token]) -> None:
        """Repeat the prompt where that was asked for."""
        if not self.echo:
            return
        detokenizer = Detokenizer(self._vocabulary)
        text, placed = "", []
        for token in tokens or [Token(id) for id in self._prompt]:
            placed.append((len(text), token))
            text += detokenizer.push(token.id)
        text += detokenizer.flush()
        for answer in self._answers:
            self._hear(answer.repeat(text, placed))

    def token(self, choice: int, token: Token) -> bool:
        """Take a token; stop at a stop text."""
        answer = self._answers[choice]
        piece = answer.push(token)
        if piece is not None:
            self._hear(piece)
        return not answer.stopped

    def finished(self, choice: int, reason: Reason) -> None:
        """Give out what is left of a choice."""
        self._hear(self._answers[choice].finish(reason))

    def failed(self, error: TunesmithError) -> None:
        """Pass the error on."""
        self._hear(error)
