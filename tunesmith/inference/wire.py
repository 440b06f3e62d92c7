"""Answers in OpenAI's words: chat completions and legacy completions, whole or in chunks. Knows no HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.domain import ids
from tunesmith.inference.requests import Request
from tunesmith.inference.sampling import Token
from tunesmith.inference.text import Piece, Vocabulary

_CALL = "call_"


class Wire:
    """One request's answer on its way out. Both endpoints differ only in what a choice looks like."""

    prefix = ""
    kind = chunk_kind = ""

    def __init__(self, request: Request, model: str, vocabulary: Vocabulary, num_prompt_tokens: int) -> None:
        self._request = request
        self._vocabulary = vocabulary
        self._head = {"id": ids.new(self.prefix), "created": int(time.time()), "model": model}
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._logprobs = request.sampling.top_logprobs is not None
        self._begun: set[int] = set()

    def chunks(self, piece: Piece) -> Iterable[dict[str, Any]]:
        """Yield the chunks that carry a piece."""
        self._num_tokens += piece.num_tokens
        usage = {"usage": None} if self._request.include_usage else {}
        for choice in self._deltas(piece):
            yield {**self._head, "object": self.chunk_kind, "choices": [{"index": piece.choice, **choice}], **usage}

    def last_chunk(self) -> dict[str, Any] | None:
        """Return the chunk with the usage, if it was asked for."""
        if not self._request.include_usage:
            return None
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": self._usage()}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return the answer in one object."""
        by_choice: dict[int, list[Piece]] = {}
        for piece in pieces:
            self._num_tokens += piece.num_tokens
            by_choice.setdefault(piece.choice, []).append(piece)
        choices = [{"index": index, **self._choice(_joined(by_choice[index]))} for index in sorted(by_choice)]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._num_prompt_tokens, self._num_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _token(self, id: int) -> str:
        """Return a token as text; bytes that are not whole characters as OpenAI shows them: \\xe2\\x80."""
        return self._vocabulary.bytes(id).decode("utf-8", errors="backslashreplace")

    def _choice(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _deltas(self, piece: Piece) -> Iterable[dict[str, Any]]:
        raise NotImplementedError


class ChatWire(Wire):
    """chat.completion and chat.completion.chunk."""

    prefix = ids.CHAT_COMPLETION
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
        if piece.calls:
            message |= {"content": piece.text.strip() or None, "tool_calls": _calls(piece)}
        return {"message": message, "logprobs": self._content(piece), "finish_reason": piece.finish}

    def _deltas(self, piece: Piece) -> Iterable[dict[str, Any]]:
        if piece.choice not in self._begun:
            self._begun.add(piece.choice)
            yield {"delta": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None, "finish_reason": None}
        if piece.text or piece.tokens:
            yield {"delta": {"content": piece.text}, "logprobs": self._content(piece), "finish_reason": None}
        if piece.calls:
            calls = [{"index": index, **call} for index, call in enumerate(_calls(piece))]
            yield {"delta": {"tool_calls": calls}, "logprobs": None, "finish_reason": None}
        if piece.finish is not None:
            yield {"delta": {}, "logprobs": None, "finish_reason": piece.finish}

    def _content(self, piece: Piece) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = []
        for _, token in piece.tokens:
            top = [self._measured(id, logprob) for id, logprob in token.top]
            content.append(self._measured(token.id, token.logprob or 0.0) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _measured(self, id: int, logprob: float) -> dict[str, Any]:
        return {"token": self._token(id), "logprob": logprob, "bytes": list(self._vocabulary.bytes(id))}


class CompletionWire(Wire):
    """text_completion, the same kind for chunks."""

    prefix = ids.COMPLETION
    kind = chunk_kind = "text_completion"

    def _choice(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text, "logprobs": self._columns(piece), "finish_reason": piece.finish}

    def _deltas(self, piece: Piece) -> Iterable[dict[str, Any]]:
        yield self._choice(piece)

    def _columns(self, piece: Piece) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {
            "tokens": [self._token(token.id) for _, token in piece.tokens],
            "token_logprobs": [token.logprob for _, token in piece.tokens],
            "top_logprobs": [self._top(token) for _, token in piece.tokens] if self._request.sampling.top_logprobs else None,
            "text_offset": [place for place, _ in piece.tokens],
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """Return the likeliest tokens and the drawn one; nothing predicts a prompt's first token."""
        if token.logprob is None:
            return None
        return {self._token(id): logprob for id, logprob in ((token.id, token.logprob), *token.top)}


def _calls(piece: Piece) -> list[dict[str, Any]]:
    return [
        {"id": ids.new(_CALL), "type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in piece.calls
    ]


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Return one choice's pieces as one."""
    last = pieces[-1]
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(last.choice, "".join(piece.text for piece in pieces), tokens, last.calls, last.finish, last.num_tokens)
