"""Files as text, within bounds: sizes, encodings, base64, JSON. Knows nothing of what they say."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from tunesmith.errors import InvalidRequest

MAX_BYTES = 256 * 2**20
#: A JSON document takes many times its size in memory; the longest trainer states have some 20 MB.
MAX_JSON = 64 * 2**20
#: Rows of a table, or objects in JSON lines.
MAX_ROWS = 1_000_000

_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")
#: Control characters that no text has.
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; a path that cannot be is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def text(path: Path) -> str:
    """Return a file's text; what is in base64 is decoded.

    Raises: InvalidRequest for a file that is missing, unreadable, empty, too big, or no text.
    """
    try:
        if not path.is_file():
            raise InvalidRequest(f"There is no file {str(path)!r}. Hint: give a log file, or a folder that holds one.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{str(path)!r} cannot be read: {error}.") from None
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"{str(path)!r} is over {MAX_BYTES >> 20} MB, the most that is read. Hint: keep every tenth row.")
    content = _decoded(data)
    if content is None:
        raise InvalidRequest(f"{str(path)!r} is no text. Hint: give a CSV, JSON or Markdown file; pickles and archives are never opened.")
    if not content.strip():
        raise InvalidRequest(f"{str(path)!r} is empty.")
    return _unwrapped(content)


def newest(folder: Path, name: str) -> Path | None:
    """Return the file of that name; where `*` stands for a number, the one with the highest."""
    if "*" not in name:
        return folder / name if (folder / name).is_file() else None
    before, _, after = name.partition("*")
    paths = (folder / f"{before}{at}{after}" for at in reversed(numbers(folder, before)))
    return next((path for path in paths if path.is_file()), None)


def numbers(folder: Path, before: str) -> list[int]:
    """Return the numbers of the folders named `before` and a number, in order."""
    found = (number(path.name, before) for path in folder.glob(f"{before}*") if path.is_dir())
    return sorted({at for at in found if at is not None})


def number(name: str, before: str) -> int | None:
    """Return the number behind `before`, or None."""
    rest = name.removeprefix(before)
    return int(rest) if name.startswith(before) and rest.isascii() and rest.isdigit() and len(rest) <= 12 else None


def listing(folder: Path, most: int = 8) -> list[str]:
    """Return the first names in a folder."""
    names = sorted(path.name for path in folder.iterdir())
    return [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]


def beginning(content: str) -> str:
    """Return the first characters, quoted, for an error."""
    start = " ".join(content.lstrip()[:200].split())
    return repr(start if len(start) <= 60 else start[:60] + "…")


def document(path: Path, content: str) -> Any:
    """Return a JSON document; NaN and Infinity are read as such.

    Raises: InvalidRequest for what is no JSON, is nested too deeply or is too big.
    """
    if len(content) > MAX_JSON:
        raise InvalidRequest(f"{str(path)!r} is over {MAX_JSON >> 20} MB, the most for one JSON document. Hint: JSON lines may be longer.")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{str(path)!r} is no whole JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting
        raise InvalidRequest(f"{str(path)!r} is no JSON that can be read: {error}.") from None


def _decoded(data: bytes) -> str | None:
    """Return the text, or None for what is none."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        content = data.decode(encoding)
    except UnicodeDecodeError:
        if encoding == "utf-16":
            return None
        content = data.decode("latin-1")  # names with accents, from old spreadsheets
    return None if _BINARY.search(content) else content


def _unwrapped(content: str) -> str:
    """Return what base64 holds, where that is a table or JSON; else the content as it is.

    Quotation marks around it, as `print(content)` leaves them, count for nothing.
    """
    if "," in content or "{" in content:
        return content
    letters = "".join(content.replace("\\n", "").split())
    if letters[-1:] in ("'", '"'):
        letters = letters.removeprefix("b").strip("'\"")
    if not _BASE64.fullmatch(letters):
        return content
    try:
        inner = _decoded(base64.b64decode(letters.rstrip("=") + "=" * (-len(letters.rstrip("=")) % 4), validate=True))
    except (binascii.Error, ValueError):
        return content
    return inner if inner is not None and ("," in inner or "{" in inner) else content
