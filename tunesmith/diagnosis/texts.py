"""A data file's rows as findings need them: fingerprints of what is equal, and words as numbers. The texts themselves are not kept.

The prompt of a row is all that stands before its last learned answer. Knows no tokenizer: words here are words, and some signs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.domain import chat
from tunesmith.domain.datasets import Example

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

#: Rows of a file whose words are kept; fingerprints are kept of all.
MAX_COMPARED = 200_000
#: Words kept of a prompt and of an answer: the first half and the last half of as many.
MAX_WORDS = 256
_MAX_CHARS = 16 * MAX_WORDS
_MAX_SPELLED = 1_000_000
#: Rows by which it is known what all have in common; also the rows without a prompt whose text is kept.
SAMPLED = 500
_MAX_LABELS, _MAX_LABEL_CHARS = 1000, 60
#: A beginning or an ending shared by all prompts is left out of the words from this length on.
_LEAST_SHARED_CHARS = 200
#: An answer without a prompt is a row of its own from this number of words on; two short ones are equal by chance.
_LEAST_WORDS = 4

# Scripts without spaces between words count each letter as a word.
_LETTERS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Of the signs only those count that change what a formula or a piece of code means; others change with the writer's hand.
_WORD = re.compile(rf"[{_LETTERS}]|[^\W{_LETTERS}]+|[+*/=<>%^&|~$#@{{}}\[\]]")


class Vocabulary(dict[str, int]):
    """A number for each word, in the order they were met."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_SPELLED:  # from here on only a hash, to bound the memory
            return _MAX_SPELLED + zlib.crc32(word.encode("utf-8", "replace")) % (2**32 - _MAX_SPELLED)
        number = self[word] = len(self)
        return number


@dataclass(frozen=True)
class Table:
    """N rows of a file. Rows with equal keys are equal but for case and white space; 0 is the key of no prompt at all.

    Row i of the first C has words[starts[i]:starts[i + 1]], its answer those from answers[i] on. `labels` are the texts of short answers
    by their keys, `unprompted` the first answers that nothing stands before.
    """

    lines_N: Ints
    prompt_N: Keys
    answer_N: Keys
    row_N: Keys
    #: The answer begins with its own prompt.
    repeats_N: Flags
    #: Words of the answer, signs not counted; MAX_WORDS at most.
    length_N: Ints
    words: Words
    starts: Ints
    answers_C: Ints
    labels: Mapping[int, str]
    unprompted: Sequence[str]

    def __len__(self) -> int:
        return len(self.lines_N)

    @property
    def is_prompted_N(self) -> Flags:
        """Whether anything stands before the answer."""
        return np.asarray(self.prompt_N != 0)

    @property
    def is_telling_N(self) -> Flags:
        """Whether another row like it would be a copy: it has a prompt, or a text of some words."""
        return np.asarray(self.is_prompted_N | (self.length_N >= _LEAST_WORDS))

    @property
    def num_compared(self) -> int:
        """Rows whose words are there."""
        return len(self.answers_C)

    def prompt(self, row: int) -> Words:
        """Return a row's prompt in words."""
        return self.words[self.starts[row] : self.answers_C[row]]

    def answer(self, row: int) -> Words:
        """Return a row's answer in words."""
        return self.words[self.answers_C[row] : self.starts[row + 1]]


def read(
    training: Iterable[Example], validation: Iterable[Example] | None, beat: Callable[[], None]
) -> tuple[Table, Table | None, Vocabulary]:
    """Read both files once; `beat` is called all the while."""
    rows = iter(training)
    head = list(itertools.islice(rows, SAMPLED))
    vocabulary, shared = Vocabulary(), _shared(head)
    table = _table(itertools.chain(head, rows), vocabulary, shared, beat)
    return table, None if validation is None else _table(validation, vocabulary, shared, beat), vocabulary


@dataclass(frozen=True)
class _Shared:
    """What the prompts of a file have in common, so that its words need not be kept: system messages, beginning, ending."""

    systems: frozenset[str] = frozenset()
    beginning: str = ""
    ending: str = ""

    def rest(self, context: Sequence[tuple[str, str]]) -> str:
        """Return the text of a prompt without that."""
        text = "\n".join(said for role, said in context if role not in _SYSTEM or said not in self.systems)
        return text.removeprefix(self.beginning).removesuffix(self.ending)


_SYSTEM = ("system", "developer")


def _shared(head: Sequence[Example]) -> _Shared:
    contexts = [_parts(example)[0] for example in head]
    counts = Counter(said for context in contexts for role, said in context if role in _SYSTEM)
    plain = _Shared(frozenset(said for said, count in counts.items() if count > 1))
    texts = [plain.rest(context) for context in contexts]
    beginning = _common_beginning(texts)
    ending = _common_beginning([text.removeprefix(beginning)[::-1] for text in texts])[::-1]
    long = [part if len(part) >= _LEAST_SHARED_CHARS else "" for part in (beginning, ending)]
    return _Shared(plain.systems, *long)


def _common_beginning(texts: Sequence[str]) -> str:
    """Return what all texts begin with, up to the last border between two words."""
    first, last = min(texts, default=""), max(texts, default="")
    common = "".join(letter for letter, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return common[: max(common.rfind(" "), common.rfind("\n")) + 1]


@dataclass
class _Columns:
    """A table in the making."""

    lines: array[int] = field(default_factory=lambda: array("q"))
    prompt: array[int] = field(default_factory=lambda: array("Q"))
    answer: array[int] = field(default_factory=lambda: array("Q"))
    row: array[int] = field(default_factory=lambda: array("Q"))
    repeats: array[int] = field(default_factory=lambda: array("b"))
    length: array[int] = field(default_factory=lambda: array("q"))
    words: array[int] = field(default_factory=lambda: array("I"))
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    answers: array[int] = field(default_factory=lambda: array("q"))
    labels: dict[int, str] = field(default_factory=dict)
    unprompted: list[str] = field(default_factory=list)


def _table(examples: Iterable[Example], vocabulary: Vocabulary, shared: _Shared, beat: Callable[[], None]) -> Table:
    columns = _Columns()
    for example in examples:
        beat()
        _add(columns, example, vocabulary, shared)
    # Views, no copies.
    lines, length, starts, answers = (np.asarray(column) for column in (columns.lines, columns.length, columns.starts, columns.answers))
    prompt, answer, row = (np.asarray(column) for column in (columns.prompt, columns.answer, columns.row))
    repeats, words = np.asarray(columns.repeats).astype(np.bool_), np.asarray(columns.words)
    return Table(lines, prompt, answer, row, repeats, length, words, starts, answers, columns.labels, columns.unprompted)


def _add(columns: _Columns, example: Example, vocabulary: Vocabulary, shared: _Shared) -> None:
    context, answer = _parts(example)
    is_prompted = any(said.strip() for _, said in context) or bool(example.tools)
    plain = _plain(answer)
    prompts = [_plain(said) for _, said in context]
    told = [f"{role}\x1f{said}" for (role, _), said in zip(context, prompts, strict=True)]
    tools = [_tools(example)] if example.tools else []
    prompt_key = _key("\x1e".join([*told, *tools])) if is_prompted else 0
    answer_key = _key(plain)
    columns.lines.append(example.line)
    columns.prompt.append(prompt_key)
    columns.answer.append(answer_key)
    columns.row.append(_key(f"{prompt_key}:{answer_key}"))
    columns.repeats.append(bool(prompts and prompts[-1].count(" ") >= 2 and plain.startswith(prompts[-1])))
    words = _words(answer)
    columns.length.append(sum(word[0].isalnum() for word in words))
    if len(columns.answers) < MAX_COMPARED:
        columns.words.extend(map(vocabulary.__getitem__, _words(shared.rest(context))))
        columns.answers.append(len(columns.words))
        columns.words.extend(map(vocabulary.__getitem__, words))
        columns.starts.append(len(columns.words))
    if len(plain) <= _MAX_LABEL_CHARS and len(columns.labels) < _MAX_LABELS:
        columns.labels.setdefault(answer_key, plain)
    if not is_prompted and len(columns.unprompted) < SAMPLED:
        columns.unprompted.append(answer[:_MAX_CHARS])


def _parts(example: Example) -> tuple[list[tuple[str, str]], str]:
    """Return (role, text) of what stands before the last learned answer, and the answer."""
    if not example.messages:
        return [("", example.prompt)], example.completion
    learned = [n for n, message in enumerate(example.messages) if message["role"] == "assistant" and message.get("weight", 1)]
    *before, last = example.messages[: learned[-1] + 1]
    return [(message["role"], _said(message)) for message in before], _said(last)


def _said(message: Mapping[str, Any]) -> str:
    calls = [f"{call['name']}({call['arguments']})" for call in chat.calls(message)]
    return "\n".join([chat.text(message.get("content")) or message.get("refusal") or "", *calls])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _key(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1  # 0 stands for no prompt


def _words(text: str) -> list[str]:
    if len(text) > _MAX_CHARS:
        text = f"{text[: _MAX_CHARS // 2]} {text[-_MAX_CHARS // 2 :]}"
    words = _WORD.findall(text.lower())
    return words if len(words) <= MAX_WORDS else words[: MAX_WORDS // 2] + words[-MAX_WORDS // 2 :]


def _tools(example: Example) -> str:
    try:
        return json.dumps(example.tools)
    except RecursionError:  # training refuses it, and says so
        return ""
