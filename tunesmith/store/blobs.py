"""The bytes of files, in one local directory. Knows no database: what a blob is for is said there.

A blob is written under a temporary name, made durable, and then renamed to its id, so that an id names either nothing or
all of its bytes. Ids are made by the server; they are the only part of a path that varies.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from tunesmith.errors import FileNotFound, InvalidRequest

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
#: No id begins with a dot, so a temporary file can never be asked for.
_TEMP: Final = ".temp-"


class TempBlob:
    """A blob being written. Leaving its `with` block deletes it unless it was committed."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{_TEMP}{secrets.token_hex(16)}"
        self.size = 0
        self._hash = hashlib.sha256()
        self._file = os.fdopen(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")

    @property
    def sha256(self) -> str:
        """The digest of what has been written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def seal(self) -> None:
        """Make what was written durable and close the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()  # may flush, and fail on a full disk
        finally:
            self.path.unlink(missing_ok=True)  # after a commit the name is gone already


class Blobs:
    """The blobs in the directory `root`, which is made if need be, for its owner only."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = root

    def new_temp(self) -> TempBlob:
        """Begin a blob; use it in a `with` block."""
        return TempBlob(self._root)

    def commit(self, temp: TempBlob, blob_id: str) -> Path:
        """Give the blob its id and return its path; when this returns it outlives a power cut."""
        path = self.path(blob_id)
        temp.seal()
        os.rename(temp.path, path)
        _sync_directory(self._root)
        return path

    def path(self, blob_id: str) -> Path:
        """Return where the blob is or would be. Raises: InvalidRequest for what cannot be an id."""
        if not _ID.fullmatch(blob_id):
            raise InvalidRequest(f"Invalid id: {blob_id[:80]!r}. Expected letters, digits, '_' and '-'.", param="id")
        return self._root / blob_id

    def open(self, blob_id: str) -> BinaryIO:
        """Open the blob for reading. Raises: FileNotFound."""
        try:
            return self.path(blob_id).open("rb")
        except FileNotFoundError:
            raise FileNotFound(blob_id) from None

    def delete(self, blob_id: str) -> None:
        """Delete the blob if it is there."""
        self.path(blob_id).unlink(missing_ok=True)

    def sweep(self, older_than: float = 86_400) -> int:
        """Delete temporary files not written to for `older_than` seconds, left by processes that died; return how many."""
        limit = time.time() - older_than
        swept = 0
        for path in self._root.glob(f"{_TEMP}*"):
            try:
                if path.stat().st_mtime < limit:
                    path.unlink()
                    swept += 1
            except FileNotFoundError:  # committed, or swept by another process
                continue
        return swept


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
