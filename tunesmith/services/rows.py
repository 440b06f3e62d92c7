"""A file's lines as they are, from anywhere in it, without holding more of it than is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from tunesmith.domain import datasets
from tunesmith.services import Context
from tunesmith.store import files

#: Bytes of lines in one answer from which on no further line is added.
MAX_SHOWN_BYTES = 2 * 2**20
#: Levels of objects and lists within each other; JSON's writers give up at some number.
MAX_DEPTH = 100
_CHUNK = 2**20
_BLANK = b" \t\r\n"


@dataclass(frozen=True)
class Row:
    """A line; `data` is what it holds if it is a JSON object, else `error` says what is wrong with it."""

    line: int
    data: dict[str, Any] | None
    error: str | None


def page(context: Context, file_id: str, offset: int, limit: int) -> tuple[list[Row], int]:
    """Return up to `limit` lines after the first `offset`, and how many there are; blank ones at the end are none.

    Fewer than `limit` where they are long. Raises: FileNotFound.
    """
    with context.blobs.open(files.get(context.db, file_id).id) as file:
        start, total = find(file, offset)
        file.seek(start)
        return list(_rows(file, offset, min(offset + limit, total))), total


def find(file: BinaryIO, offset: int = 0) -> tuple[int, int]:
    """Return at which byte the line after the first `offset` begins, and the number of the last line that is not blank."""
    start = seen = total = place = 0
    while chunk := file.read(_CHUNK):
        newlines = chunk.count(b"\n")
        if seen < offset <= seen + newlines:
            end = -1
            for _ in range(offset - seen):
                end = chunk.index(b"\n", end + 1)
            start = place + end + 1
        if text := chunk.rstrip(_BLANK):
            total = seen + text.count(b"\n") + 1
        seen += newlines
        place += len(chunk)
    return start, total


def _rows(file: BinaryIO, offset: int, until: int) -> Iterator[Row]:
    shown = 0
    for number in range(offset + 1, until + 1):
        line = file.readline(datasets.MAX_LINE_BYTES + 1)
        if len(line) > datasets.MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):  # to its end, in pieces
                line = file.readline(_CHUNK)
            yield Row(number, None, f"has more than {datasets.MAX_LINE_BYTES} bytes, the most that is accepted in one line")
            continue
        shown += len(line)
        yield _row(number, line)
        if shown >= MAX_SHOWN_BYTES:
            return


def _row(number: int, line: bytes) -> Row:
    try:
        data = orjson.loads(datasets.stripped(line, number))
    except orjson.JSONDecodeError as error:
        return Row(number, None, f"is not valid JSON: {error}")
    if not isinstance(data, dict):
        return Row(number, None, "is not a JSON object")
    if _is_deep(data):
        return Row(number, None, f"is nested more than {MAX_DEPTH} levels deep and is not shown")
    return Row(number, data, None)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level if isinstance(item, (dict, list)) for child in (item.values() if isinstance(item, dict) else item)]
    return bool(level)
