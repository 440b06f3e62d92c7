"""Checkpoints that are whole or not there. Knows no model: tensors and JSON in, tensors and JSON out.

Write into a temporary directory, fsync every file, write a manifest with the SHA-256 of each, fsync it and the directory,
rename, fsync the parent. A directory is loaded only if its manifest verifies. safetensors and JSON, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import CheckpointDamaged

MANIFEST = "manifest.json"
STATE, OPTIMIZER, RNG = "state.json", "optimizer.safetensors", "rng.safetensors"
#: Files that only a resumed run reads; the rest are the weights.
FOR_RESUMING = frozenset({STATE, OPTIMIZER, RNG, MANIFEST})
#: What a sink may add to a checkpoint afterwards: its metrics. Not part of what was written, and nothing is computed from it.
NOTE = "checkpoint.json"


def directory_name(step: int) -> str:
    """Return the name of the checkpoint of one step; up to step 999999 names sort as steps do."""
    return f"step-{step:06d}"


def write(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the checkpoint directory `target`: `fill` writes its files into the temporary directory it is given."""
    temp = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True, mode=0o700)
    fill(temp)
    files = {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(temp.iterdir())}
    for name in files:
        fsync(temp / name)
    (temp / MANIFEST).write_text(json.dumps({"version": 1, "files": files}, indent=2) + "\n")
    fsync(temp / MANIFEST)
    fsync(temp)
    if target.exists():  # written by an attempt that was cut off before it could say so
        shutil.rmtree(target)
    temp.rename(target)
    fsync(target.parent)


def verify(directory: Path) -> None:
    """Check that a checkpoint has exactly the files that were written, byte for byte.

    Raises: CheckpointDamaged naming the file and what is wrong with it.
    """
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
        files = {name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()}
        if manifest["version"] != 1:
            raise ValueError(f"version {manifest['version']!r}, expected 1")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = error.strerror if isinstance(error, OSError) else error  # an OSError's text has the path in it
        raise CheckpointDamaged(f"Checkpoint {directory.name}: its manifest cannot be read ({why}).") from error
    for name, written in files.items():
        path = directory / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise CheckpointDamaged(f"Checkpoint {directory.name}: {name} is missing.")
        if (_sha256(path), path.stat().st_size) != written:
            raise CheckpointDamaged(f"Checkpoint {directory.name}: {name} is not what was written (size or SHA-256 differs).")
    here = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    if extra := sorted(here - files.keys() - {MANIFEST, NOTE}):
        raise CheckpointDamaged(f"Checkpoint {directory.name}: {extra[0]} was not written with it.")


def newest(parent: Path) -> Path | None:
    """Return the newest whole checkpoint under `parent`, passing over damaged ones."""
    for directory in sorted(parent.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True):
        try:
            verify(directory)
        except CheckpointDamaged:
            continue
        return directory
    return None


def fsync(path: Path) -> None:
    """Force a file's or a directory's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
