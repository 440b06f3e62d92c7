"""Uploads, checked line by line while they arrive, and the end of a file. Knows not how the bytes travel."""

from __future__ import annotations

import time
from typing import Self

import orjson

from tunesmith.domain import datasets, ids
from tunesmith.errors import InvalidRequest, PayloadTooLarge
from tunesmith.services import Context
from tunesmith.store import files

#: What a client may upload a file for; what a job produces is FOR_RESULTS.
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
FOR_TRAINING = "fine-tune"
FOR_RESULTS = "fine-tune-results"
#: Accepted seconds from creation to expiry.
EXPIRY_SECONDS = (3600, 2_592_000)

_MAX_FILENAME = 255
_SHOWN = 30
_BOM = b"\xef\xbb\xbf"


class Upload:
    """A file on its way in. Leaving its `with` block before `finish` leaves nothing behind."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._temp = context.blobs.new_temp()
        self._lines = _JsonLines()

    def __enter__(self) -> Self:
        self._temp.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._temp.__exit__(None, None, None)

    def write(self, data: bytes) -> None:
        """Append `data`. Raises: PayloadTooLarge over the limit of the settings."""
        limit = self._context.settings.max_file_bytes
        if self._temp.size + len(data) > limit:
            raise PayloadTooLarge(f"The file has more than {limit} bytes, the most that is accepted.", param="file")
        self._temp.write(data)
        self._lines.feed(data)

    def finish(self, *, filename: str, purpose: str, expires_after: int | None = None) -> files.FileRow:
        """Check what came, keep it for good and return what is known of it.

        `filename` is a label only; `expires_after` counts seconds.
        Raises: InvalidRequest for another purpose, an empty file, or a training file that is not JSON lines.
        """
        if purpose not in PURPOSES:
            accepted = ", ".join(map(repr, PURPOSES))
            raise InvalidRequest(f"Invalid value for 'purpose': {purpose!r}. Expected one of {accepted}.", param="purpose")
        if not self._temp.size:
            raise InvalidRequest(f"The file {_label(filename)!r} is empty.", param="file")
        if purpose == FOR_TRAINING:
            self._lines.end()
        row = files.FileRow(
            id=ids.new(ids.FILE), bytes=self._temp.size, created_at=int(time.time()), filename=_label(filename), purpose=purpose,
            sha256=self._temp.sha256, expires_at=None if expires_after is None else int(time.time()) + expires_after,
        )  # fmt: skip
        # Bytes first: what goes wrong in between leaves bytes that nothing names, never a name without bytes.
        self._context.blobs.commit(self._temp, row.id)
        return files.create(self._context.db, row)


def delete(context: Context, file_id: str) -> None:
    """Delete a file. Raises: FileNotFound; InvalidRequest while an unfinished job needs it."""
    files.delete(context.db, file_id)
    context.blobs.delete(file_id)


def _label(filename: str) -> str:
    """Return the last part of a name without control characters; it is shown, never opened."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in name if character.isprintable())[:_MAX_FILENAME] or "upload"


class _JsonLines:
    """Checks that each line of a stream is a JSON object. Holds one line at most, and remembers the first error."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._number = 0
        self._blank = 0
        self._problem = ""

    def feed(self, data: bytes) -> None:
        """Check the lines that `data` completes."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._check(bytes(self._rest) + line)
            self._rest.clear()
        if not self._problem:
            self._rest += rest
            if len(self._rest) > datasets.MAX_LINE_BYTES:
                self._check(bytes(self._rest))

    def end(self) -> None:
        """Check the last line. Raises: InvalidRequest with the first error of all."""
        if self._rest:
            self._check(bytes(self._rest))
        if self._blank == 1 and not self._problem:
            self._problem = "The file has only blank lines."
        if self._problem:
            expected = "Expected file to have JSONL format, where every line is a JSON dictionary."
            raise InvalidRequest(f"{expected} {self._problem}", param="file")

    def _check(self, line: bytes) -> None:
        if self._problem:
            return
        self._number += 1
        text = (line.removeprefix(_BOM) if self._number == 1 else line).strip(b" \t\r")
        if not text:
            self._blank = self._blank or self._number
        elif self._blank:
            self._problem = f"Line {self._blank} is blank; blank lines are only accepted at the end of the file."
        elif words := _not_an_object(text):
            start = text[:_SHOWN].decode(errors="replace")
            self._problem = f'Line {self._number} {words} (HINT: line starts with: "{start}...").'


def _not_an_object(text: bytes) -> str:
    """Return what keeps `text` from being a JSON object, or nothing."""
    if len(text) > datasets.MAX_LINE_BYTES:
        return f"has more than {datasets.MAX_LINE_BYTES} bytes, the most that is accepted in one line"
    try:
        return "" if isinstance(orjson.loads(text), dict) else "is not a dictionary"
    except orjson.JSONDecodeError as error:
        return f"is not valid JSON: {error}"
