"""Read a multipart/form-data body as it arrives: the fields into memory, the file to whoever takes it.

Knows the grammar of forms, not what the fields mean. However large the file, memory holds one piece of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tunesmith.errors import InvalidRequest, PayloadTooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_PIECE = 1024 * 1024
_MAX_FIELDS = 20
_MAX_FIELD_BYTES = 4096


@dataclass
class Form:
    """What a form said. `filename` is None when there was no file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def read(request: Request, file_field: str, write: Callable[[bytes], None], limit: int) -> Form:
    """Read the whole body; the bytes of the part called `file_field` go to `write`, called in a thread.

    Raises: InvalidRequest for what is not such a form, PayloadTooLarge over `limit` bytes, and whatever `write` raises.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        found = kind.decode("latin-1")
        raise InvalidRequest(f"Content-Type {found!r} is not accepted here; expected 'multipart/form-data' with a boundary.")
    parts, size = _Parts(file_field), 0
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(f"The request body has more than {limit} bytes; at most {limit} are accepted.")
            parser.write(chunk)
            if len(parts.piece) >= _PIECE:
                await run_in_threadpool(write, parts.take())
    except FormParserError as error:
        raise InvalidRequest(f"The multipart/form-data body cannot be read: {error}") from error
    if not parts.ended:
        raise InvalidRequest("The multipart/form-data body ends before its last boundary.")
    if parts.piece:
        await run_in_threadpool(write, parts.take())
    return parts.form


class _Parts:
    """Sorts what the parser finds into the form."""

    def __init__(self, file_field: str) -> None:
        self.form = Form()
        self.piece = bytearray()
        self.ended = False
        self._file_field = file_field
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._name: str | None = None

    def callbacks(self) -> MultipartCallbacks:
        """Return the functions that the parser calls."""
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }

    def take(self) -> bytes:
        """Return the bytes of the file that have come since the last call."""
        piece = bytes(self.piece)
        self.piece.clear()
        return piece

    def _part_begin(self) -> None:
        self._disposition, self._name = b"", None
        self._value.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""), "name")
        if self._name == self._file_field:
            if self.form.filename is not None:
                raise InvalidRequest(f"There is more than one part called '{self._name}'; send one file per request.", param=self._name)
            self.form.filename = options.get(b"filename", b"").decode(errors="replace")
        elif len(self.form.fields) >= _MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {_MAX_FIELDS} fields.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        target = self.piece if self._name == self._file_field else self._value
        target += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"The field '{self._name}' has more than {_MAX_FIELD_BYTES} bytes.", param=self._name)

    def _part_end(self) -> None:
        if self._name is not None and self._name != self._file_field:
            self.form.fields[self._name] = _text(bytes(self._value), self._name)

    def _end(self) -> None:
        self.ended = True


def _text(data: bytes, name: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The form's '{name}' is not valid UTF-8.", param=name) from error
    if "\0" in text:
        raise InvalidRequest(f"The form's '{name}' has a NUL character; none is accepted.", param=name)
    return text
