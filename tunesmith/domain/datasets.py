"""Training files: what a line may be, and the whole-file check before training. Knows no tokenizer and no disk.

Codes and wording follow OpenAI's: "Example N" is the line's number, "message M" the message's, both from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from tunesmith.errors import DataError

Format = Literal["chat", "completion"]
Role = Literal["training", "validation"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MIN_TRAINING_EXAMPLES = 10
#: How many errors of a file are listed; all are counted.
MAX_LISTED_ERRORS = 20
MAX_LINE_BYTES = 10 * 2**20
#: Longest description of one error in characters; what it quotes may be a whole line.
_MAX_WORDS = 400

_CHAT_KEYS = {"messages", "tools", "parallel_tool_calls", "functions"}
_COMPLETION_KEYS = {"prompt", "completion"}
_MESSAGE_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal"}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Example:
    """One line of a file: a conversation, or a prompt and its completion."""

    line: int
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""


@dataclass(frozen=True)
class Summary:
    """What the whole-file check found in a good file."""

    format: Format
    num_examples: int


@dataclass
class Inspection:
    """What was found in a file's lines so far: (line, what is wrong with it) of the first lines that are wrong, and how many are."""

    format: Format | None = None
    num_examples: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)
    num_errors: int = 0


def inspect(lines: Iterable[bytes], most_listed: int, first: int = 1) -> Inspection:
    """Check every line of a file, or of a part from line `first` on, and list the errors of up to `most_listed`."""
    found = Inspection()
    for number, line in _numbered(lines, first):
        found.num_examples += 1
        try:
            row = _parse(line, number)
            kind = _format(row, number)
            found.format = found.format or kind
            _check_row(row, number, kind, found.format)
        except _Bad as bad:
            found.num_errors += 1
            if len(found.errors) < most_listed:
                found.errors.append((number, bad.words))
    return found


def check(lines: Iterable[bytes], role: Role = "training") -> Summary:
    """Check every line of a file.

    Raises: DataError (code, param and words as OpenAI's) listing up to 20 errors and their number.
    """
    found = inspect(lines, MAX_LISTED_ERRORS)
    if found.errors:
        raise invalid([words for _, words in found.errors], found.num_errors, role)
    check_size(found.num_examples, role)
    assert found.format is not None
    return Summary(found.format, found.num_examples)


def check_size(num_examples: int, role: Role) -> None:
    """Raises: DataError for a file of too few examples."""
    if num_examples == 0:
        raise _error(f"The {role} file is empty: it has no examples.", "invalid_n_examples", role)
    if role == "training" and num_examples < MIN_TRAINING_EXAMPLES:
        words = f"Training file has {num_examples} example(s), but must have at least {MIN_TRAINING_EXAMPLES} examples"
        raise _error(words, "invalid_n_examples", role)


def read(lines: Iterable[bytes], first: int = 1) -> Iterator[Example]:
    """Yield the examples of a file that `check` accepted, or of a part from line `first` on."""
    for number, line in _numbered(lines, first):
        row = _parse(line, number)
        if "messages" in row:
            tools = row.get("tools") or [{"type": "function", "function": function} for function in row.get("functions") or []]
            yield Example(number, messages=tuple(row["messages"]), tools=tuple(tools))
        else:
            yield Example(number, prompt=row["prompt"], completion=row["completion"])


class _Bad(Exception):
    """One line is wrong; `words` say how."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words if len(words) <= _MAX_WORDS else words[:_MAX_WORDS] + "..."


def _error(words: str, code: str, role: Role) -> DataError:
    return DataError(words, code=code, param=f"{role}_file")


def invalid(errors: Sequence[str], total: int, role: Role, code: str = "", cause: str = "") -> DataError:
    """Return the error that lists `errors`, the first of `total`."""
    counted = "" if total == 1 else f" ({total} errors" + (f"; the first {len(errors)} are shown)" if total > len(errors) else ")")
    cause = cause or f"an invalid {role} file"
    words = f"The job failed due to {cause}. Invalid file format. " + "; ".join(errors) + counted
    return _error(words, code or f"invalid_{role}_file", role)


def stripped(line: bytes, number: int) -> bytes:
    """Return line `number` (1 is the first) without a byte order mark and the white space around it."""
    return (line.removeprefix(_BOM) if number == 1 else line).strip(b" \t\r\n")


def _check_row(row: Mapping[str, Any], number: int, kind: Format, expected: Format) -> None:
    if kind != expected:
        raise _Bad(f"Example {number} is in the {kind} format, but the examples before it are in the {expected} format")
    if kind == "chat":
        _check_chat(row, number)
    else:
        _check_completion(row, number)


def _numbered(lines: Iterable[bytes], first: int) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) without a leading byte order mark and without blank lines at the end."""
    blanks = range(0)
    for number, line in enumerate(lines, first):
        text = stripped(line, number)
        if not text:
            blanks = range(blanks.start if blanks else number, number + 1)
            continue
        yield from ((blank, b"") for blank in blanks)
        blanks = range(0)
        yield number, text


def _parse(line: bytes, number: int) -> dict[str, Any]:
    if not line:
        raise _Bad(f"Example {number} is a blank line; blank lines are only accepted at the end of the file")
    if len(line) > MAX_LINE_BYTES:
        raise _Bad(f"Example {number} has {len(line)} bytes; at most {MAX_LINE_BYTES} are accepted in one line")
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _Bad(f"Example {number} cannot be parsed. Error: line contains invalid json: {error} (line {number})") from error
    if not isinstance(row, dict):
        raise _Bad(f"Example {number} is not a JSON dictionary but {_kind(row)}")
    return row


def _format(row: Mapping[str, Any], number: int) -> Format:
    if "messages" in row:
        return "chat"
    if _COMPLETION_KEYS & row.keys():
        return "completion"
    if {"preferred_output", "preferred_completion", "non_preferred_output"} & row.keys():
        raise _Bad(f"Example {number} is in the dpo format, but the specified fine-tuning job is using 'supervised' as the training method")
    raise _Bad(f"Example {number} is missing key 'messages' (or 'prompt' and 'completion'); it has {_listed(row)}")


def _check_completion(row: Mapping[str, Any], number: int) -> None:
    for key in sorted(_COMPLETION_KEYS):
        if key not in row:
            raise _Bad(f"Example {number} is missing key '{key}'")
        if not isinstance(row[key], str):
            raise _Bad(f"Example {number}: '{key}' must be a string, but is {_kind(row[key])}")
    if not row["completion"]:
        raise _Bad(f"Example {number}: 'completion' is empty, so there is nothing to learn")
    _no_extra(row, _COMPLETION_KEYS, f"Example {number}")


def _check_chat(row: Mapping[str, Any], number: int) -> None:
    _no_extra(row, _CHAT_KEYS, f"Example {number}")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Bad(f"Example {number}: 'messages' must be a non-empty list, but is {_kind(messages)}")
    for position, message in enumerate(messages, 1):
        _check_message(message, f"Example {number}, message {position}")
    for key in ("tools", "functions"):
        _check_tools(row.get(key), key, number)
    if "parallel_tool_calls" in row and not isinstance(row["parallel_tool_calls"], bool):
        raise _Bad(f"Example {number}: 'parallel_tool_calls' must be true or false, but is {_kind(row['parallel_tool_calls'])}")
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise _Bad(f"Example {number} has no message with role 'assistant', so there is nothing to learn")
    if all(message.get("weight") == 0 for message in answers):
        raise _Bad(f"Example {number}: every assistant message has weight 0, so there is nothing to learn")


def _check_tools(tools: Any, key: str, number: int) -> None:
    if tools is None:
        return
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _Bad(f"Example {number}: '{key}' must be a list of objects, but is {_kind(tools)}")
    for tool in tools:
        function = tool.get("function") if key == "tools" else tool
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _Bad(f"Example {number}: each of '{key}' needs a function with a 'name'")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise _Bad(f"{where} must be an object, but is {_kind(message)}")
    if "role" not in message:
        raise _Bad(f"{where} Discriminator 'role' is missing in value")
    role = message["role"]
    if role not in ROLES:
        raise _Bad(f"{where} has role {role!r}; expected one of {', '.join(ROLES)}")
    _no_extra(message, _MESSAGE_KEYS, where)
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1) or isinstance(message["weight"], bool)):
        raise _Bad(f"{where}: 'weight' is {message['weight']!r} on role '{role}'; it may be 0 or 1, on assistant messages only")
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    _check_calls(calls, where)
    for key in ("name", "tool_call_id", "refusal"):
        if not isinstance(message.get(key) or "", str):
            raise _Bad(f"{where}: '{key}' must be a string, but is {_kind(message[key])}")
    _check_content(message.get("content"), optional=role == "assistant" and bool(calls or message.get("refusal")), where=where)


def _check_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list):
        raise _Bad(f"{where}: 'tool_calls' must be a list, but is {_kind(calls)}")
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(function.get("arguments"), str):
            raise _Bad(f"{where}: each tool call needs a function with 'name' and 'arguments', both strings")


def _check_content(content: Any, *, optional: bool, where: str) -> None:
    if content is None:
        if not optional:
            raise _Bad(f"{where} is missing key 'content'")
    elif isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _Bad(f'{where}: \'content\' has a part that is not text; only {{"type": "text", "text": ...}} is accepted')
    elif not isinstance(content, str):
        raise _Bad(f"{where}: 'content' must be a string, but is {_kind(content)}")


def _no_extra(row: Mapping[str, Any], accepted: set[str], where: str) -> None:
    if extra := sorted(row.keys() - accepted):
        raise _Bad(f'{where} contains an extra "{extra[0]}"; accepted keys: {", ".join(sorted(accepted))}')


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return ("an empty " + names[type(value)].split()[-1]) if value in ([], "", {}) else names[type(value)]


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(f"'{key}'" for key in list(row)[:5]) or "no keys"
