"""The bundled support-triage example: every line is well formed, every label is possible, and the splits share no near-duplicates."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = Path(__file__).resolve().parents[2] / "examples" / "support-triage"
LEAST_EXAMPLES = {"train": 440, "valid": 90, "test": 130}
QUEUES = {"billing", "orders", "support", "sales"}
ROLES = ["system", "user", "assistant"]
SAME_ENOUGH = 0.4


def rows(split: str) -> list[dict[str, Any]]:
    text = (DIRECTORY / f"{split}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def content(row: dict[str, Any], role: str) -> str:
    return str(row["messages"][ROLES.index(role)]["content"])


def label(row: dict[str, Any]) -> dict[str, Any]:
    parsed = json.loads(content(row, "assistant"))
    assert isinstance(parsed, dict)
    return parsed


def words(message: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", message.lower().replace("'", ""))


def trigrams(message: str) -> set[tuple[str, ...]]:
    found = words(message)
    return {tuple(found[start : start + 3]) for start in range(max(1, len(found) - 2))}


def jaccard(left: set[tuple[str, ...]], right: set[tuple[str, ...]]) -> float:
    return len(left & right) / len(left | right)


EVERY_ROW = [row for split in LEAST_EXAMPLES for row in rows(split)]


@pytest.mark.parametrize(("split", "least"), LEAST_EXAMPLES.items())
def test_each_split_is_large_enough(split: str, least: int) -> None:
    assert len(rows(split)) >= least


def test_every_line_is_one_chat_under_the_same_short_system_message() -> None:
    for row in EVERY_ROW:
        assert list(row) == ["messages"]
        assert [message["role"] for message in row["messages"]] == ROLES
        assert all(
            set(message) == {"role", "content"} and message["content"].strip() == message["content"] != "" for message in row["messages"]
        )
    assert len({content(row, "system") for row in EVERY_ROW}) == 1


def test_every_answer_is_the_one_spelling_of_a_valid_label() -> None:
    for row in EVERY_ROW:
        answer = label(row)
        assert list(answer) == ["queue", "order", "urgent"]
        assert answer["queue"] in QUEUES
        assert answer["order"] is None or (isinstance(answer["order"], str) and re.fullmatch(r"[0-9]{4,5}", answer["order"]))
        assert isinstance(answer["urgent"], bool)
        assert content(row, "assistant") == json.dumps(answer, separators=(",", ":"))


def test_every_order_number_stands_in_its_message_and_belongs_to_that_message_alone() -> None:
    numbered = [(label(row)["order"], content(row, "user")) for row in EVERY_ROW if label(row)["order"] is not None]
    for order, message in numbered:
        assert re.search(rf"(?<![0-9]){order}(?![0-9])", message), f"order {order} is not in: {message}"
    assert [order for order, times in Counter(order for order, _ in numbered).items() if times > 1] == []


@pytest.mark.parametrize("split", LEAST_EXAMPLES)
def test_labels_are_balanced(split: str) -> None:
    labels = [label(row) for row in rows(split)]
    queues = Counter(answer["queue"] for answer in labels)
    assert set(queues) == QUEUES
    assert all(0.17 <= count / len(labels) <= 0.33 for count in queues.values()), queues
    assert 0.22 <= sum(answer["urgent"] for answer in labels) / len(labels) <= 0.40
    assert 0.35 <= sum(answer["order"] is None for answer in labels) / len(labels) <= 0.47


def test_no_two_messages_are_the_same_or_nearly_so_within_or_across_the_splits() -> None:
    messages = [content(row, "user") for row in EVERY_ROW]
    assert len({" ".join(words(message)) for message in messages}) == len(messages)
    grams = [trigrams(message) for message in messages]
    alike = [
        (messages[left], messages[right])
        for left, right in combinations(range(len(messages)), 2)
        if jaccard(grams[left], grams[right]) >= SAME_ENOUGH
    ]
    assert alike == []


def test_the_measure_of_likeness_sees_a_filled_in_template() -> None:
    first = trigrams("Order 48213 has not arrived yet, can you please tell me where it is?")
    second = trigrams("Order 59120 has not arrived yet, can you please tell me where it is?")
    other = trigrams("My blender smells of burnt plastic and I would like my money back.")
    assert jaccard(first, second) >= SAME_ENOUGH > jaccard(first, other)


def test_nothing_in_the_messages_could_belong_to_a_real_person() -> None:
    for row in EVERY_ROW:
        message = content(row, "user")
        assert all(address.endswith("@example.com") for address in re.findall(r"\S+@[\w.]*\w", message)), message
        assert all(phone.startswith("555-01") for phone in re.findall(r"\b[0-9]{3}-[0-9]{4}\b", message)), message
        assert "http" not in message, message
