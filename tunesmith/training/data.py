"""From a checked file to token ids with a mask of target tokens. Knows no model weights and no batches.

Target tokens are what the loss is taken over: the content of each assistant message (weight 0 excluded) with its
end-of-turn, or a completion with its end-of-text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from tunesmith.domain import chat, datasets
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import RunSink
from tunesmith.domain.specs import ResolvedSpec, training_rows
from tunesmith.errors import DataError, InvalidRequest

Tokens = npt.NDArray[np.int64]
#: Most lines that a warning names.
_LISTED = 20


@dataclass(frozen=True)
class TokenizedExample:
    """One example: its tokens, and which of them are targets. `line` is its line in the file."""

    line: int
    ids_T: Tokens
    is_target_T: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def num_targets(self) -> int:
        """Tokens the loss is taken over."""
        return int(self.is_target_T.sum())


@dataclass
class Dataset:
    """The examples that can be trained on, and what had to be cut or left out."""

    examples: list[TokenizedExample]
    truncated_lines: list[int] = field(default_factory=list)
    dropped_lines: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass."""
        return sum(len(example) for example in self.examples)

    def add(self, example: TokenizedExample, max_length: int) -> None:
        """Take an example, cut at the end where it is longer; one that is left without target tokens is dropped."""
        if len(example) > max_length:
            self.truncated_lines.append(example.line)
            example = TokenizedExample(example.line, example.ids_T[:max_length], example.is_target_T[:max_length])
        if example.num_targets:
            self.examples.append(example)
        else:
            self.dropped_lines.append(example.line)


def load_all(
    training_file: Path, validation_file: Path | None, tokenizer: Any, spec: ResolvedSpec, sink: RunSink
) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
    """Tokenize a run's files, split where asked, and warn of what was cut or left out. Raises: DataError, InvalidRequest."""
    training, validation = load(training_file, tokenizer, spec.max_length), Dataset([])
    if validation_file:
        validation = load(validation_file, tokenizer, spec.max_length, "validation")
    elif spec.training_split is not None:
        training, validation = split(training, spec.training_split, spec.seed)
    limit = f"max_length {spec.max_length} tokens"
    for name, dataset in (("training", training), ("validation", validation)):
        about = {"role": name, "of": len(dataset.examples) + len(dataset.dropped_lines), "max_length": spec.max_length}
        for kind, lines, fate in (
            ("truncated", dataset.truncated_lines, f"are longer than {limit} and were cut at the end"),
            ("dropped", dataset.dropped_lines, f"have no target token within {limit} and were left out"),
        ):
            if lines:
                words = f"{len(lines)} {name} examples {fate}: lines {_some(lines)}."
                facts = about | {"rows": len(lines), "lines": lines[:_LISTED]}
                sink.event(Event(words, key=f"{kind}:{name}", level="warn", data=facts))
    if spec.select_by != "last" and not validation.examples:
        raise InvalidRequest(f"select_by {spec.select_by!r} needs validation data.", param="select_by")
    return training.examples, validation.examples


def _some(lines: Sequence[int]) -> str:
    return ", ".join(map(str, lines[:_LISTED])) + (", ..." if len(lines) > _LISTED else "")


def load(path: Path, tokenizer: Any, max_length: int, role: datasets.Role = "training") -> Dataset:
    """Tokenize a file; over-long examples are cut at the end, those left without target tokens are dropped.

    Raises: DataError for a file that does not pass `datasets.check`, for special tokens in text, for a template that
    cannot render an example, or when nothing is left.
    """
    with path.open("rb") as file:
        datasets.check(file, role)
    dataset = Dataset([])
    renderer = Renderer(tokenizer)
    errors: list[str] = []
    with path.open("rb") as file:
        for example in datasets.read(file):
            try:
                dataset.add(renderer.tokenize(example), max_length)
            except InvalidRequest as error:
                errors.append(error.message)
    if errors:
        cause = f"a file format error in the {role} file"
        raise datasets.invalid(errors[: datasets.MAX_LISTED_ERRORS], len(errors), role, "invalid_file_format", cause)
    if not dataset.examples:
        raise DataError(
            f"The {role} file has no example with target tokens within {max_length} tokens. Hint: raise max_length or shorten the prompts.",
            param=f"{role}_file",
            code=f"invalid_{role}_file",
        )
    return dataset


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split into training and validation examples by a seeded permutation; at least one on either side."""
    count = len(dataset.examples)
    if count < 2:
        raise DataError(f"training_split {share} needs at least 2 examples, but there are {count}.", param="training_file")
    order = np.random.default_rng([seed, 1]).permutation(count)
    cut = training_rows(count, share)
    training, validation = (Dataset([dataset.examples[i] for i in sorted(part)]) for part in (order[:cut], order[cut:]))
    training.truncated_lines, training.dropped_lines = dataset.truncated_lines, dataset.dropped_lines
    return training, validation


class Renderer:
    """Turns examples into tokens with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template: str = tokenizer.chat_template or chat.DEFAULT_TEMPLATE
        self.special = [token for token in tokenizer.all_special_tokens if len(token) > 3]
        self.special_ids = set(tokenizer.all_special_ids)

    def tokenize(self, example: datasets.Example) -> TokenizedExample:
        """Return the example's tokens and target mask.

        The text is cut where an answer begins and ends and each piece tokenized alone, so that training sees the same
        tokens that generation will start from.
        Raises: InvalidRequest naming the example and message.
        """
        try:
            pieces = self._chat_pieces(example) if example.messages else self._completion_pieces(example)
        except RecursionError:
            raise InvalidRequest(f"Example {example.line}: its tools or tool calls are nested too deeply.") from None
        ids: list[int] = []
        is_target: list[bool] = []
        for piece, targets in pieces:
            ids += piece
            is_target += targets
        mask_T = np.array(is_target, dtype=np.bool_)
        mask_T[:1] = False  # nothing predicts the first token
        return TokenizedExample(example.line, np.array(ids, dtype=np.int64), mask_T)

    def _completion_pieces(self, example: datasets.Example) -> list[tuple[list[int], list[bool]]]:
        prompt: list[int] = self.tokenizer(example.prompt)["input_ids"]
        completion = [*self._ids([example.completion])[0], self.tokenizer.eos_token_id]
        if prompt and prompt[-1] == self.tokenizer.eos_token_id:  # some tokenizers close what they are given
            prompt = prompt[:-1]
        return [(prompt, [False] * len(prompt)), (completion, [True] * len(completion))]

    def _chat_pieces(self, example: datasets.Example) -> list[tuple[list[int], list[bool]]]:
        self._refuse_special_tokens(example)
        messages, tools = chat.normalize(example.messages, example.tools, self.template)
        shift = len(messages) - len(example.messages)  # a system message that carries the tools
        whole = self._render(messages, tools, example.line)
        texts: list[str] = []
        is_learned: list[bool] = []
        done = 0
        for position, message in enumerate(example.messages):
            if message["role"] != "assistant":
                continue
            so_far = messages[: position + shift]
            before = self._render(so_far, tools, example.line, generation=True) if so_far else self._opening(whole, example.line)
            is_last = position == len(example.messages) - 1
            through = whole if is_last else self._render(messages[: position + shift + 1], tools, example.line)
            if not (whole.startswith(before) and whole.startswith(through) and done <= len(before) <= len(through)):
                raise InvalidRequest(
                    f"Example {example.line}, message {position + 1}: the model's chat template renders this answer differently "
                    "inside the conversation, so its tokens cannot be told apart. Hint: end the example with this answer."
                )
            texts += [whole[done : len(before)], whole[len(before) : len(through)]]
            is_learned += [False, bool(message.get("weight", 1))]
            done = len(through)
        pieces = zip(self._ids(texts), is_learned, strict=True)
        return [(ids, self._answer_mask(ids) if learned else [False] * len(ids)) for ids, learned in pieces]

    def _opening(self, whole: str, line: int) -> str:
        """Return what stands before an answer that opens the conversation; no template is made to render an empty one."""
        question = [{"role": "user", "content": "a"}]
        header = self._render(question, None, line, generation=True).removeprefix(self._render(question, None, line))
        before, found, _ = whole.partition(header or whole)
        return before + found

    def _answer_mask(self, answer: Sequence[int]) -> list[bool]:
        """Mark an answer's tokens up to and with its end-of-turn; what a template puts after that is not the model's."""
        end = len(answer)
        while end and answer[end - 1] not in self.special_ids:
            end -= 1
        end = end or len(answer)
        return [position < end for position in range(len(answer))]

    def _refuse_special_tokens(self, example: datasets.Example) -> None:
        for position, message in enumerate(example.messages, 1):
            words = chat.text(message.get("content")) + (message.get("refusal") or "")
            words += "".join(call["name"] + call["arguments"] for call in chat.calls(message))
            if found := next((token for token in self.special if token in words), None):
                raise InvalidRequest(
                    f"Example {example.line}, message {position} contains an invalid token: {found}. "
                    "It is one of the model's control tokens and cannot be part of a text."
                )

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, line: int, generation: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=tools, chat_template=self.template, tokenize=False, add_generation_prompt=generation
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(f"Example {line}: the model's chat template cannot render it: {error}") from error

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []
