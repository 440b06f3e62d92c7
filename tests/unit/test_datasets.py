"""The check of a training file: every rule with its words, and no input that makes it fall over."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.domain import datasets
from tunesmith.errors import DataError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
GOOD: dict[str, Any] = {"messages": [USER, ANSWER]}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def lines(*rows: object) -> list[bytes]:
    """Return rows as lines; bytes stay as they are."""
    return [row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows]


def refused(*rows: object, role: datasets.Role = "training") -> DataError:
    with pytest.raises(DataError) as caught:
        datasets.check(lines(*rows), role)
    return caught.value


def chat(*messages: object, **more: object) -> dict[str, object]:
    return {"messages": list(messages), **more}


#: (a bad line, what the error says after "Example 4")
BAD_LINES: list[tuple[object, str]] = [
    (b"{oops\n", r" cannot be parsed\. Error: line contains invalid json: .*\(line 4\)"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}\n', " cannot be parsed"),
    (b'{"messages": NaN}\n', " cannot be parsed"),
    (b'{"messages": 1e999}\n', " cannot be parsed"),
    (b'{"messages": "\xff"}\n', " cannot be parsed"),
    (b"[" * 5000 + b"\n", " cannot be parsed"),
    (b'{"a":' * 5000 + b"\n", " cannot be parsed"),
    (b"[1]\n", " is not a JSON dictionary but a list"),
    (b"3\n", " is not a JSON dictionary but an integer"),
    (b"null\n", " is not a JSON dictionary but null"),
    (b"\n", " is a blank line; blank lines are only accepted at the end of the file"),
    (b'{"messages": [], "x": "' + b"y" * datasets.MAX_LINE_BYTES + b'"}\n', r" has \d+ bytes; at most 10485760 are accepted"),
    ({}, r" is missing key 'messages' \(or 'prompt' and 'completion'\); it has no keys"),
    ({"text": "a"}, " is missing key 'messages'.*it has 'text'"),
    ({"prompt": "a", "completion": "b"}, " is in the completion format, but the examples before it are in the chat format"),
    ({"input": GOOD, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]}, " is in the dpo format.*'supervised'"),
    ({"input": GOOD, "preferred_completion": [ANSWER], "non_preferred_completion": [ANSWER]}, " is in the dpo format"),
    (GOOD | {"weight": 1}, ' contains an extra "weight"; accepted keys: functions, messages, parallel_tool_calls, tools'),
    (chat(), ": 'messages' must be a non-empty list, but is an empty list"),
    ({"messages": "hi"}, ": 'messages' must be a non-empty list, but is a string"),
    ({"messages": None}, ": 'messages' must be a non-empty list, but is null"),
    (chat("hi", ANSWER), ", message 1 must be an object, but is a string"),
    (chat(USER, {"content": "a"}), ", message 2 Discriminator 'role' is missing in value"),
    (chat(USER, {"role": "robot", "content": "a"}), ", message 2 has role 'robot'; expected one of system, developer, user, assistant"),
    (chat(USER, {"role": None, "content": "a"}), ", message 2 has role None"),
    (chat(USER, {"role": ["user"], "content": "a"}), r", message 2 has role \['user'\]"),
    (chat(USER), " has no message with role 'assistant', so there is nothing to learn"),
    (chat(USER, ANSWER | {"mood": "good"}), ', message 2 contains an extra "mood"'),
    (chat(USER, {"role": "assistant"}), ", message 2 is missing key 'content'"),
    (chat({"role": "user", "content": None}, ANSWER), ", message 1 is missing key 'content'"),
    (chat({"role": "user", "content": 3}, ANSWER), ", message 1: 'content' must be a string, but is an integer"),
    (chat({"role": "user", "content": {}}, ANSWER), ", message 1: 'content' must be a string, but is an empty object"),
    (
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER),
        ", message 1: 'content' has a part that is not text",
    ),
    (chat({"role": "user", "content": [{"type": "text", "text": 1}]}, ANSWER), ", message 1: 'content' has a part that is not text"),
    (chat({"role": "user", "content": ["hi"]}, ANSWER), ", message 1: 'content' has a part that is not text"),
    (chat(USER, ANSWER | {"weight": 2}), ", message 2: 'weight' is 2 on role 'assistant'; it may be 0 or 1"),
    (chat(USER, ANSWER | {"weight": 0.5}), ", message 2: 'weight' is 0.5"),
    (chat(USER, ANSWER | {"weight": True}), ", message 2: 'weight' is True"),
    (chat(USER, ANSWER | {"weight": None}), ", message 2: 'weight' is None"),
    (chat(USER | {"weight": 1}, ANSWER), ", message 1: 'weight' is 1 on role 'user'; .*assistant messages only"),
    (chat(USER, ANSWER | {"weight": 0}), ": every assistant message has weight 0, so there is nothing to learn"),
    (chat(USER, {"role": "assistant", "tool_calls": CALL}), ", message 2: 'tool_calls' must be a list, but is an object"),
    (chat(USER, {"role": "assistant", "tool_calls": ["f"]}), ", message 2: each tool call needs a function with 'name' and 'arguments'"),
    (chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}), ", message 2: each tool call needs"),
    (chat(USER, {"role": "assistant", "function_call": {"name": "f"}}), ", message 2: each tool call needs"),
    (chat(USER, {"role": "assistant", "tool_calls": []}), ", message 2 is missing key 'content'"),
    (chat(USER, {"role": "assistant", "refusal": 5}), ", message 2: 'refusal' must be a string, but is an integer"),
    (chat(USER | {"name": {"a": 1}}, ANSWER), ", message 1: 'name' must be a string, but is an object"),
    (GOOD | {"tools": {}}, ": 'tools' must be a list of objects, but is an empty object"),
    (GOOD | {"tools": [1]}, ": 'tools' must be a list of objects"),
    (GOOD | {"tools": [{"type": "function"}]}, ": each of 'tools' needs a function with a 'name'"),
    (GOOD | {"functions": [{"description": "f"}]}, ": each of 'functions' needs a function with a 'name'"),
    (GOOD | {"parallel_tool_calls": "yes"}, ": 'parallel_tool_calls' must be true or false, but is a string"),
]


@pytest.mark.parametrize("line,words", BAD_LINES, ids=[words[:60] for _, words in BAD_LINES])
def test_a_bad_line_is_named(line: object, words: str) -> None:
    error = refused(GOOD, GOOD, GOOD, line, *[GOOD] * 10)
    assert re.match(rf"The job failed due to an invalid training file\. Invalid file format\. Example 4{words}", error.message)
    assert (error.code, error.param, error.status) == ("invalid_training_file", "training_file", 400)
    assert "errors" not in error.message and len(error.message) < 500


@pytest.mark.parametrize(
    "line,words",
    [
        ({"prompt": "a"}, "Example 2 is missing key 'completion'"),
        ({"completion": "a"}, "Example 2 is missing key 'prompt'"),
        ({"prompt": 1, "completion": "a"}, "Example 2: 'prompt' must be a string, but is an integer"),
        ({"prompt": "a", "completion": ["b"]}, "Example 2: 'completion' must be a string, but is a list"),
        ({"prompt": "a", "completion": ""}, "Example 2: 'completion' is empty"),
        ({"prompt": "a", "completion": "b", "weight": 1}, 'Example 2 contains an extra "weight"; accepted keys: completion, prompt'),
        (GOOD, "Example 2 is in the chat format, but the examples before it are in the completion format"),
    ],
)
def test_a_bad_completion_line_is_named(line: object, words: str) -> None:
    assert words in refused({"prompt": "a", "completion": "b"}, line).message


PARTS = [{"type": "text", "text": "a"}]
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "1"}
OLD_CALL = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        chat({"role": "system", "content": "s"}, USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}),
        chat({"role": "developer", "content": "s"}, USER | {"name": "Ann"}, ANSWER),
        chat({"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS}),
        chat(USER, {"role": "assistant", "tool_calls": [CALL]}, tools=[TOOL], parallel_tool_calls=False),
        chat(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT, ANSWER),
        chat(USER, OLD_CALL, {"role": "function", "name": "f", "content": "1"}, ANSWER),
        chat(USER, {"role": "assistant", "content": None, "refusal": "I will not."}),
        chat(USER, {"role": "assistant", "content": ""}),
        GOOD | {"functions": [{"name": "f"}]},
        GOOD | {"tools": None},
        {"prompt": "", "completion": "b"},
    ],
)
def test_what_is_accepted(row: dict[str, Any]) -> None:
    summary = datasets.check(lines(*[row] * 10))
    assert summary == datasets.Summary("chat" if "messages" in row else "completion", 10)
    read = list(datasets.read(lines(*[row] * 10)))
    assert [example.line for example in read] == list(range(1, 11))
    assert [dict(message) for message in read[0].messages] == row.get("messages", [])
    assert bool(read[0].tools) == bool(row.get("tools") or row.get("functions"))


def test_a_file_needs_ten_training_examples() -> None:
    error = refused(*[GOOD] * 7)
    assert error.message == "Training file has 7 example(s), but must have at least 10 examples"
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert datasets.check(lines(*[GOOD] * 10)).num_examples == 10
    assert datasets.check(lines(GOOD), "validation").num_examples == 1


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("role", ["training", "validation"])
def test_an_empty_file(content: bytes, role: datasets.Role) -> None:
    error = refused(*content.splitlines(keepends=True), role=role)
    assert (error.message, error.code) == (f"The {role} file is empty: it has no examples.", "invalid_n_examples")


def test_a_validation_file_has_words_of_its_own() -> None:
    error = refused({}, role="validation")
    assert error.message.startswith("The job failed due to an invalid validation file. ")
    assert (error.code, error.param) == ("invalid_validation_file", "validation_file")


def test_twenty_errors_are_listed_and_all_counted() -> None:
    error = refused(*[{}] * 33, GOOD, *[b"x\n"] * 2)
    assert [int(n) for n in re.findall(r"Example (\d+) ", error.message)] == list(range(1, 21))
    assert error.message.endswith("(35 errors; the first 20 are shown)")
    assert refused(*[GOOD] * 3, {}, {}, GOOD).message.endswith("(2 errors)")


def test_byte_order_mark_line_ends_and_blank_ends() -> None:
    text = [b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n", *lines(*[GOOD] * 8), json.dumps(GOOD).encode(), b"\n", b" \r\n", b"\n"]
    assert datasets.check(text).num_examples == 10
    assert len(list(datasets.read(text))) == 10
    assert "Example 2 cannot be parsed" in refused(GOOD, text[0]).message  # a mark is one at the start of the file only
    assert re.findall(r"Example (\d+) is a blank", refused(b"\n", b"\n", GOOD, b" \n", GOOD, b"\n").message) == ["1", "2", "4"]


def test_blank_lines_are_not_kept() -> None:
    """A file of line feeds costs no memory."""
    tracemalloc.start()
    with pytest.raises(DataError, match="is empty"):
        datasets.check(itertools.repeat(b"\n", 100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


def test_an_error_does_not_repeat_a_whole_line() -> None:
    for line in (chat({"role": "x" * 100_000, "content": ""}), {"y" * 100_000: 1} | GOOD, {"z" * 100_000: 1}):
        assert len(refused(line).message) < 600


def test_a_line_may_be_as_long_as_the_limit() -> None:
    frame = len(json.dumps(chat(USER, {"role": "assistant", "content": ""})))
    row = chat(USER, {"role": "assistant", "content": "a" * (datasets.MAX_LINE_BYTES - frame)})
    assert datasets.check(lines(row), "validation").num_examples == 1
    row["messages"][1]["content"] += "a"  # type: ignore[index]
    assert "at most 10485760 are accepted" in refused(row, role="validation").message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from([*datasets.ROLES, "robot"]) | JSON},
    optional={key: st.text(max_size=3) | JSON for key in ("content", "name", "weight", "tool_calls", "function_call", "refusal", "x")},
)
ROW = st.fixed_dictionaries(
    {}, optional={"messages": st.lists(MESSAGE, max_size=3) | JSON, "tools": JSON, "functions": JSON, "prompt": JSON, "completion": JSON}
)
FILES = st.lists(
    st.binary(max_size=40) | ROW.map(lambda row: json.dumps(row).encode()) | st.just(json.dumps(GOOD).encode()), max_size=14
).map(b"\n".join)


@settings(max_examples=400, deadline=None)
@given(FILES)
def test_any_bytes_are_accepted_or_refused(content: bytes) -> None:
    """Nothing but a DataError comes out, its message is short enough to show, and what is accepted can be read."""
    text = content.splitlines(keepends=True)
    for role in ("training", "validation"):
        try:
            summary = datasets.check(text, role)  # type: ignore[arg-type]
        except DataError as error:
            assert error.message and error.code and error.param == f"{role}_file"
        else:
            assert len(list(datasets.read(text))) == summary.num_examples > 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"", b" ", b"\r"]), max_size=3), st.integers(10, 30), st.sampled_from([b"\n", b"\r\n"]))
def test_line_ends_change_nothing(tail: list[bytes], count: int, end: bytes) -> None:
    text = (end.join([json.dumps(GOOD).encode()] * count + tail)).splitlines(keepends=True)
    assert datasets.check([line for line in text if line != b"\r"]).num_examples == count
