"""Rows to measure on: seeded chats in OpenAI's format whose lengths are those of ordinary instruction data. Knows no tokenizer.

    python benchmarks/rows.py chat --count 96 > rows.jsonl

`chat` rows are a question of a dozen words and an answer of one word to some hundred: with SmolLM2's template about 220 tokens,
three quarters of them answer. `shared-prefix` rows begin with the same long system message and have short answers: about 300 of
345 tokens are shared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Row = dict[str, list[dict[str, str]]]
Random = np.random.Generator

#: What may stand in a sentence's places, by the place's name.
_CHOICES = {
    place: words.split("/")
    for place, words in {
        "action": (
            "plan/build/repair/clean/measure/describe/compare/choose/improve/organise/prepare/store/paint/move/check/teach/record/"
            "test/replace/review/protect/share/collect/draw/light/cool/heat/balance/finish/design"
        ),
        "thing": (
            "garden/bicycle/kitchen/library/budget/letter/recipe/lesson/schedule/window/bridge/camera/market/story/engine/river/"
            "forest/song/website/contract/kettle/blanket/lamp/database/battery/museum/village/harvest/ladder/compass/notebook/team/"
            "interview/path/roof/table/program/painting/orchard/survey/harbour/menu/costume/speech/shelf/journey"
        ),
        "quality": (
            "small/quiet/reliable/simple/large/bright/cheap/modern/plain/careful/warm/heavy/useful/common/gentle/strong/narrow/"
            "public/private/seasonal/local/clear/steady/fresh/wooden/digital/portable/friendly/balanced/colourful"
        ),
        "place": (
            "at home/in the office/near the station/on the coast/in a small town/during winter/before breakfast/after a long day/"
            "in early spring/with a group of friends/on a limited budget/without special tools/in the mountains/at short notice/"
            "over a weekend"
        ),
        "reason": (
            "it saves time/people notice the difference/mistakes are easier to see/nothing has to be done twice/"
            "the result lasts longer/everyone can follow it/small problems stay small/it costs less in the end/"
            "there is less to carry/the work stays safe"
        ),
    }.items()
}
QUESTIONS = (
    "How do I {action} a {quality} {thing}?",
    "Explain why one should {action} a {thing} {place}.",
    "Give me {number} tips to {action} the {quality} {thing} {place}.",
    "Write a short paragraph about a {quality} {thing} and a {quality2} {thing2}.",
    "What is the difference between a {thing} and a {thing2}?",
    "Rewrite this sentence in the past tense: They {action} the {thing} {place}.",
    "Suggest a name for a {quality} {thing}.",
    "Which of the two is more {quality}, the {thing} or the {thing2}?",
)
SENTENCES = (
    "First, {action} the {thing}, because {reason}.",
    "A {quality} {thing} is easier to {action} than a {quality2} {thing2}.",
    "Many people {action} their {thing} {place}, and {reason}.",
    "If the {thing} is not {quality}, {action2} it before you {action} the {thing2}.",
    "The {quality} {thing} and the {quality2} {thing2} should be kept apart.",
    "Finally, {action} everything once more {place}, so that {reason}.",
    "For example, {number} {quality} parts of the {thing} can be changed {place}.",
    "It helps to {action} the {thing2} every {number} days.",
)
#: Words at these shares of the rows, in steps of the list; straight lines between. Measured on public instruction data.
SHARES = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1)
QUESTION_WORDS = (3, 5, 6, 8, 12, 18, 26, 34, 110)
ANSWER_WORDS = (1, 7, 10, 22, 94, 228, 318, 352, 520)
SYSTEM_WORDS = 218
LABELS = ("billing", "delivery", "returns", "account", "technical", "praise", "complaint", "other")


def chat(count: int, seed: int = 0) -> list[Row]:
    """Return `count` rows of one question and one answer."""
    random = np.random.default_rng([seed, 0])
    rows = []
    for _ in range(count):  # one after the other, so that more rows begin with the same ones
        question = _question(random, _words(random, QUESTION_WORDS))
        rows.append(_row(question, _prose(random, _words(random, ANSWER_WORDS))))
    return rows


def shared_prefix(count: int, seed: int = 0) -> list[Row]:
    """Return `count` rows that all begin with the same system message and end with a short answer."""
    random = np.random.default_rng([seed, 1])
    system = f"You sort letters into {', '.join(LABELS)}. These are the rules of the house. {_prose(random, SYSTEM_WORDS)}"
    rows = []
    for _ in range(count):
        label, reason = random.choice(LABELS), _fill(random, "the {thing} is not {quality}")
        rows.append(_row(_prose(random, 18), f"{label}: {reason}", system))
    return rows


KINDS: dict[str, Callable[[int, int], list[Row]]] = {"chat": chat, "shared-prefix": shared_prefix}


def lines(rows: list[Any]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _row(question: str, answer: str, system: str = "") -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def _words(random: Random, quantiles: tuple[int, ...]) -> int:
    return round(float(np.interp(random.random(), SHARES, quantiles)))


def _question(random: Random, words: int) -> str:
    question = _fill(random, str(random.choice(QUESTIONS)))
    missing = words - len(question.split())
    return f"{question} {_prose(random, missing)}" if missing > 4 else question


def _prose(random: Random, words: int) -> str:
    """Return exactly `words` words (at least one) in paragraphs of some sentences."""
    text: list[str] = []
    while len(text) < words:
        text += _fill(random, str(random.choice(SENTENCES))).split()
        if random.random() < 0.2:
            text[-1] += "\n\n"
    prose = " ".join(text[: max(words, 1)]).replace("\n\n ", "\n\n").rstrip(" ,\n")
    return prose if prose.endswith(".") else f"{prose}."


def _fill(random: Random, template: str) -> str:
    """Put a choice at every place; a place's second name, with a 2, is drawn on its own."""
    drawn = {f"{place}{turn}": choices[random.integers(len(choices))] for turn in ("", "2") for place, choices in _CHOICES.items()}
    return template.format(number=random.integers(2, 12), **drawn)


def main() -> None:
    """Print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(lines(KINDS[arguments.kind](arguments.count, arguments.seed)), end="")


if __name__ == "__main__":
    main()
