"""Answer all prompts at once with Tunesmith's engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import answering

from tunesmith.inference import chat
from tunesmith.inference.engine import Generation, Token
from tunesmith.inference.requests import Sampling


class Heard:
    """What one generation said, and when first."""

    def __init__(self) -> None:
        self.started, self.first = time.perf_counter(), 0.0
        self.ids: list[int] = []

    def prompt(self, tokens: Sequence[Token]) -> None:
        """Hear that the prompt was read."""

    def token(self, choice: int, token: Token) -> bool:
        """Note a token."""
        self.first = self.first or time.perf_counter() - self.started
        self.ids.append(token.id)
        return True

    def finished(self, choice: int, reason: str) -> None:
        """Hear the end."""

    def failed(self, error: Exception) -> None:
        """Give up."""
        raise error


def load(directory: Path) -> answering.Answer:
    """Return the engine's way to answer."""
    engine = chat.load(directory).engine

    def answer(prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], list[float]]:
        heard = [Heard() for _ in prompts]
        for prompt, listener in zip(prompts, heard, strict=True):
            engine.submit(Generation(prompt, Sampling(temperature=0.0, max_tokens=tokens), listener))
        while engine.step():
            pass
        return [listener.ids for listener in heard], [listener.first for listener in heard]

    return answer


if __name__ == "__main__":
    answering.main(load)
