"""Blobs: whole or absent, under names that cannot leave their directory."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from tunesmith.errors import FileNotFound, InvalidRequest
from tunesmith.store.blobs import Blobs


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_blob_appears_whole_under_its_id(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "files")
    with blobs.new_temp() as temp:
        for part in (b"one ", b"", b"two"):
            temp.write(part)
        assert not blobs.path("file-1").exists()
        blobs.commit(temp, "file-1")
    with blobs.open("file-1") as file:
        assert file.read() == b"one two"
    assert (temp.size, temp.sha256) == (7, hashlib.sha256(b"one two").hexdigest())
    assert names(tmp_path / "files") == ["file-1"]
    assert ((tmp_path / "files").stat().st_mode & 0o777, blobs.path("file-1").stat().st_mode & 0o777) == (0o700, 0o600)
    blobs.delete("file-1")
    blobs.delete("file-1")
    with pytest.raises(FileNotFound):
        blobs.open("file-1")


def test_what_was_not_committed_leaves_nothing(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with pytest.raises(ValueError, match="the client went away"), blobs.new_temp() as temp:
        temp.write(b"half")
        raise ValueError("the client went away")
    with pytest.raises(InvalidRequest), blobs.new_temp() as temp:
        blobs.commit(temp, "../escape")
    assert names(tmp_path) == []


def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename
    blobs = Blobs(tmp_path)
    with blobs.new_temp() as temp:
        temp.write(b"x")
        monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync " + os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
        monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), rename(a, b)))
        blobs.commit(temp, "file-1")
    assert calls == [f"fsync {temp.path}", "rename", f"fsync {tmp_path}"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "a\0", "a.b", "a b", "é", "%2e%2e", "a\n", "x" * 129, ".temp-0"],
)
def test_only_ids_name_blobs(tmp_path: Path, name: str) -> None:
    blobs = Blobs(tmp_path)
    for ask in (blobs.path, blobs.open, blobs.delete):
        with pytest.raises(InvalidRequest):
            ask(name)


def test_sweep_takes_old_temporary_files_only(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with blobs.new_temp() as temp:
        blobs.commit(temp, "file-1")
    old, fresh = blobs.new_temp(), blobs.new_temp()
    for path in (old.path, blobs.path("file-1")):
        os.utime(path, (time.time() - 100, time.time() - 100))
    assert blobs.sweep(older_than=50) == 1
    assert names(tmp_path) == sorted(["file-1", fresh.path.name])
