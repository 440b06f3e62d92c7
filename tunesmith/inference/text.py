"""From token ids to text that may be shown: whole characters, cut at stop texts, tool calls taken out. Knows no model.

A text is held back as long as its next token could still make it something else: half a character, the beginning of a stop
text, a tool call.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.inference.sampling import Token

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_CALL_BEGIN = "<tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_WINDOW = 4  # tokens of the prompt that the first token is decoded with; some tokenizers drop a text's first space


@dataclass(frozen=True)
class Piece:
    """What one choice says next. The last piece of a choice has a `finish`."""

    choice: int
    text: str = ""
    tokens: tuple[tuple[int, Token], ...] = ()  # each with the place in the text where it begins
    calls: tuple[tuple[str, str], ...] = ()  # name and arguments (JSON) of the functions called
    finish: str | None = None
    num_tokens: int = 0  # of the whole choice; set on the last piece


class Vocabulary:
    """The words and pieces of words that token ids stand for. Any thread may use it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # a fast tokenizer refuses to decode while another thread encodes
        self._special = set(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; `special`: with those that the tokenizer puts around a whole text."""
        with self._lock:
            ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        with self._lock:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def bytes(self, id: int) -> bytes:
        """Return the bytes that a token stands for, which need not be whole characters."""
        with self._lock:
            word = self._tokenizer.convert_ids_to_tokens(id)
        if word is None:
            return b""
        if id in self._special:
            return str(word).encode()
        if self._byte_level and all(letter in _BYTE_OF for letter in word):
            return bytes(_BYTE_OF[letter] for letter in word)
        if re.fullmatch(r"<0x[0-9A-F]{2}>", word):
            return bytes.fromhex(word[3:5])
        return str(word).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _byte_of() -> dict[str, int]:
    """Return the byte that each letter stands for in a byte-level vocabulary (Radford et al., 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_of()


class Detokenizer:
    """Decodes a sequence that grows, a few tokens at a time."""

    def __init__(self, vocabulary: Vocabulary, before: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._ids = list(before[-_WINDOW:])
        self._start, self._shown = 0, len(self._ids)

    def push(self, id: int) -> str:
        """Return the text that is certain with one more token."""
        self._ids.append(id)
        text = self._rest()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def flush(self) -> str:
        """Return what was held back; bytes that never became a character show as U+FFFD."""
        text = self._rest()
        self._start = self._shown = len(self._ids)
        return text

    def _rest(self) -> str:
        shown = self._vocabulary.decode(self._ids[self._start : self._shown])
        return self._vocabulary.decode(self._ids[self._start :])[len(shown) :]


class Answer:
    """One choice's text as it grows."""

    def __init__(self, vocabulary: Vocabulary, choice: int, prompt: Sequence[int], stops: Sequence[str], *, parse_calls: bool) -> None:
        self.choice = choice
        self.stopped = False
        self._stops = stops
        self._marks = (*stops, _CALL_BEGIN) if parse_calls else tuple(stops)
        self._parse_calls = parse_calls
        self._detokenizer = Detokenizer(vocabulary, prompt)
        self._text = ""
        self._num_shown = 0
        self._calls_at: int | None = None
        self._pending: deque[tuple[int, Token]] = deque()
        self._num_tokens = 0

    def repeat(self, text: str, tokens: Sequence[tuple[int, Token]]) -> Piece:
        """Let the answer begin with the prompt's own text."""
        self._text, self._num_shown = text, len(text)
        return Piece(self.choice, text, tuple(tokens))

    def push(self, token: Token) -> Piece | None:
        """Take one token; return what may be shown now. `stopped` is set when a stop text was met."""
        self._num_tokens += 1
        self._pending.append((len(self._text), token))
        self._extend(self._detokenizer.push(token.id))
        if self._parse_calls and self._calls_at is None and (at := self._text.find(_CALL_BEGIN, self._num_shown)) >= 0:
            self._calls_at = at
        end = len(self._text) - self._num_held() if self._calls_at is None else self._calls_at
        if end <= self._num_shown:
            return None
        tokens = []
        while self._pending and self._pending[0][0] < end:
            tokens.append(self._pending.popleft())
        text, self._num_shown = self._text[self._num_shown : end], end
        return Piece(self.choice, text, tuple(tokens))

    def finish(self, reason: str) -> Piece:
        """Return the rest."""
        if not self.stopped:
            self._extend(self._detokenizer.flush())
        calls = () if self._calls_at is None else _parse_calls(self._text[self._calls_at :])
        text = "" if calls else self._text[self._num_shown :]
        if calls and reason == "stop":
            reason = "tool_calls"
        return Piece(self.choice, text, tuple(self._pending), calls, reason, self._num_tokens)

    def _extend(self, text: str) -> None:
        """Add text, and cut all of it at the first stop text. What was shown cannot be part of one."""
        self._text += text
        found = [at for stop in self._stops if (at := self._text.find(stop, self._num_shown)) >= 0]
        if found:
            self.stopped = True
            self._text = self._text[: min(found)]
            while self._pending and self._pending[-1][0] >= len(self._text):
                self._pending.pop()

    def _num_held(self) -> int:
        """Return how many characters at the end could be the beginning of a stop text or a tool call."""
        tail = self._text[self._num_shown :]
        if self.stopped:
            return 0
        return max((n for mark in self._marks for n in range(1, min(len(mark), len(tail) + 1)) if tail.endswith(mark[:n])), default=0)


def _parse_calls(text: str) -> tuple[tuple[str, str], ...]:
    """Return name and arguments of each <tool_call> of the Hermes format; none if one of them is malformed."""
    calls = []
    for block in _CALL.findall(text):
        try:
            call = json.loads(block)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return ()
        if not isinstance(name, str):
            return ()
        calls.append((name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)))
    return tuple(calls)
