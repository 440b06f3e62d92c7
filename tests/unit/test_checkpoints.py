"""A checkpoint is whole or not there: every damage is seen, and a crash at any moment leaves the old one or none."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import CheckpointDamaged
from tunesmith.training import checkpoints

FILES = {"adapter.safetensors": b"\x00\x01weights\xff" * 3, "state.json": b'{"step": 7}', "empty": b""}


def fill(directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).write_bytes(content)


def make(parent: Path, step: int = 7) -> Path:
    target = parent / checkpoints.directory_name(step)
    checkpoints.write(target, fill)
    return target


def whole(directory: Path) -> bool:
    try:
        checkpoints.verify(directory)
    except CheckpointDamaged as damaged:
        assert directory.name in damaged.message
        return False
    return True


def test_what_is_written_verifies(tmp_path: Path) -> None:
    target = make(tmp_path)
    checkpoints.verify(target)
    assert target.name == "step-000007" and target.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.name != checkpoints.MANIFEST} == FILES
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    (target / checkpoints.NOTE).write_text("{}")  # the only thing that may be added
    checkpoints.verify(target)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("original"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_changed_byte_is_seen(original: Path, choice: st.DataObject) -> None:
    """In any file, the manifest too: what still verifies has the very files that were written."""
    with tempfile.TemporaryDirectory() as temp:
        copy = Path(temp) / original.name
        shutil.copytree(original, copy)
        name = choice.draw(st.sampled_from(["adapter.safetensors", "state.json", checkpoints.MANIFEST]))
        content = bytearray((copy / name).read_bytes())
        position = choice.draw(st.integers(0, len(content) - 1))
        content[position] ^= choice.draw(st.integers(1, 255))
        (copy / name).write_bytes(content)
        if whole(copy):  # white space in the manifest, at most
            assert json.loads((copy / checkpoints.MANIFEST).read_bytes()) == json.loads((original / checkpoints.MANIFEST).read_bytes())
            assert {n: (copy / n).read_bytes() for n in FILES} == FILES
        else:
            assert checkpoints.newest(Path(temp)) is None


def edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        manifest = json.loads((directory / checkpoints.MANIFEST).read_bytes())
        (directory / checkpoints.MANIFEST).write_text(json.dumps(change(manifest)))

    return damage


def swap(directory: Path) -> None:
    a, b = directory / "state.json", directory / "adapter.safetensors"
    a.rename(directory / "other")
    b.rename(a)
    (directory / "other").rename(b)


def link(directory: Path) -> None:
    """Put a link to the same bytes, outside of the checkpoint, in a file's place."""
    outside = directory.parent / "outside"
    (directory / "state.json").rename(outside)
    (directory / "state.json").symlink_to(outside)


def become_folder(directory: Path) -> None:
    (directory / "state.json").unlink()
    (directory / "state.json").mkdir()


def naming(name: str) -> Callable[[Path], None]:
    """Let the manifest vouch for a file of another name, which is there with the right bytes."""

    def damage(directory: Path) -> None:
        path = directory / name
        if not path.exists():
            path.write_bytes(FILES["state.json"])
        manifest = json.loads((directory / checkpoints.MANIFEST).read_bytes())
        manifest["files"][name] = manifest["files"]["state.json"]
        (directory / checkpoints.MANIFEST).write_text(json.dumps(manifest))

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda d: os.truncate(d / "adapter.safetensors", 5),
    "emptied": lambda d: os.truncate(d / "state.json", 0),
    "longer": lambda d: (d / "empty").write_bytes(b"x"),
    "missing": lambda d: (d / "state.json").unlink(),
    "missing empty file": lambda d: (d / "empty").unlink(),
    "added": lambda d: (d / "model-2.safetensors").write_bytes(b"x"),
    "swapped": swap,
    "link": link,
    "folder": become_folder,
    "no manifest": lambda d: (d / checkpoints.MANIFEST).unlink(),
    "empty manifest": lambda d: os.truncate(d / checkpoints.MANIFEST, 0),
    "cut manifest": lambda d: os.truncate(d / checkpoints.MANIFEST, 60),
    "binary manifest": lambda d: (d / checkpoints.MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "manifest is a list": edit_manifest(lambda m: [m]),
    "manifest is null": edit_manifest(lambda m: None),
    "no files": edit_manifest(lambda m: {"version": 1}),
    "files is a list": edit_manifest(lambda m: m | {"files": list(FILES)}),
    "files is empty": edit_manifest(lambda m: m | {"files": {}}),
    "entry without hash": edit_manifest(lambda m: m | {"files": {name: {"bytes": 1} for name in FILES}}),
    "entry is null": edit_manifest(lambda m: m | {"files": dict.fromkeys(FILES)}),
    "another version": edit_manifest(lambda m: m | {"version": 2}),
    "path above": naming("../outside"),
    "path below": naming("./state.json"),
    "absolute path": naming("/etc/hostname"),
    "no name": naming(""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_seen_and_passed_over(tmp_path: Path, kind: str) -> None:
    older, newer = make(tmp_path, 5), make(tmp_path, 7)
    assert checkpoints.newest(tmp_path) == newer
    DAMAGE[kind](newer)
    assert not whole(newer)
    assert checkpoints.newest(tmp_path) == older
    DAMAGE[kind](older)
    assert checkpoints.newest(tmp_path) is None


def test_newest(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "nowhere") is None and checkpoints.newest(tmp_path) is None
    for step in (9, 10, 99, 100_000):
        make(tmp_path, step)
    assert checkpoints.newest(tmp_path) == tmp_path / "step-100000"
    make(tmp_path, 999_999)
    million = make(tmp_path, 1_000_000)  # its name is longer and, read as text, sorts before the others
    assert checkpoints.newest(tmp_path) == million
    (tmp_path / "step-9999999").write_bytes(b"a file")
    (tmp_path / ".step-8888888.tmp").mkdir()
    assert checkpoints.newest(tmp_path) == million


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("had_one", [False, True], ids=["new", "again"])
def test_a_crash_at_any_moment_leaves_the_old_or_nothing(tmp_path: Path, had_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at each call that reaches the disk in turn; what a reader then finds is whole, and writing again works."""
    calls = {"mkdir": Path, "rename": Path, "write_text": Path, "fsync": checkpoints}
    real = {name: getattr(owner, name) for name, owner in calls.items()}
    remove = shutil.rmtree
    for moment in range(1, 100):
        room = tmp_path / str(moment)
        room.mkdir()
        older = make(room, 5)
        if had_one:
            make(room, 7)
        left = moment

        def stop(function: Callable[..., object]) -> Callable[..., object]:
            def step(*arguments: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Crash
                return function(*arguments, **named)

            return step

        with monkeypatch.context() as patch:
            for name, owner in calls.items():
                patch.setattr(owner, name, stop(real[name]))
            patch.setattr(shutil, "rmtree", stop(remove))
            try:
                checkpoints.write(room / "step-000007", fill)
                crashed = False
            except Crash:
                crashed = True
        found = checkpoints.newest(room)
        assert found in (older, room / "step-000007") and whole(found)
        if crashed:
            assert checkpoints.newest(room) is not None
            assert whole(make(room, 7)) and not list(room.glob(".*"))  # and nothing of the crash is left
        else:
            assert moment > 6, "the moments above were not reached"
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("had_one", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("written", range(len(FILES) + 1))
def test_a_full_disk_while_filling(tmp_path: Path, had_one: bool, written: int) -> None:
    if had_one:
        make(tmp_path, 7)

    def fail(directory: Path) -> None:
        for name, content in list(FILES.items())[:written]:
            (directory / name).write_bytes(content)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.write(tmp_path / "step-000007", fail)
    assert checkpoints.newest(tmp_path) == (tmp_path / "step-000007" if had_one else None)
    assert whole(make(tmp_path, 7))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]
