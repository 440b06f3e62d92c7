"""Have a base model on disk before anybody needs it, and say where training starts from."""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith import processes, services
from tunesmith.errors import CheckpointDamaged, ModelNotFound, Unavailable
from tunesmith.settings import Settings
from tunesmith.store import bases, models
from tunesmith.training import checkpoints

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Start:
    """Where training starts: whole weights, and the adapter it continues from."""

    #: The catalogue's or the administrator's name of the base that all began with; new models are named after it.
    base_name: str
    #: The name of the weights in `base`: `base_name`, or a fully tuned model of ours.
    weights: str
    base: Path
    adapter: Path | None = None
    adapter_rank: int = 0
    adapter_alpha: float = 0.0


def ready(settings: Settings, name: str, heed: Callable[[], None] = lambda: None) -> bases.Base:
    """Return the base `name`, obtained first where it is not on disk; one process obtains, the others wait.

    `heed` is called about twice a second meanwhile and may raise. Call from a thread that lives as long as the process.
    Raises: ModelNotFound, InvalidRequest for a directory that is refused, Unavailable when it cannot be had.
    """
    base = bases.describe(name, settings.cache_dir, settings.allowed_models)
    if base.kind != "directory" and not base.ready:
        base.directory.parent.mkdir(parents=True, exist_ok=True)
        with (base.directory.parent / f".{base.directory.name}.lock").open("w") as lock:
            _wait_for(lock.fileno(), heed)
            if not base.ready:
                _obtain(base, heed)
    if not base.directory.is_dir():
        raise Unavailable(f"Base model {name!r}: its directory is not there. Hint: check the setting allowed_models.")
    bases.check(base.directory)
    return base


def start(context: services.Context, name: str, heed: Callable[[], None] = lambda: None) -> Start:
    """Return where training of model `name` starts: a base, or a fine-tuned model or checkpoint of ours."""
    try:
        row = models.get(context.db, name)
    except ModelNotFound:
        base = ready(context.settings, name, heed)
        return Start(base.name, base.name, base.directory)
    directory = verified(context, row)
    if row.kind == "full":
        return Start(row.base, row.name, directory)
    config = json.loads((directory / "adapter_config.json").read_bytes())
    below = start(context, row.base, heed)  # what the adapter was trained on: a base, or a fully tuned model
    return Start(below.base_name, below.weights, below.base, directory, int(config["r"]), float(config["lora_alpha"]))


def verified(context: services.Context, row: models.ModelRow) -> Path:
    """Return the directory of a model of ours once its manifest verifies; each is read whole once in a process.

    Raises: CheckpointDamaged.
    """
    directory = context.settings.data_dir / row.directory
    if directory not in _verified:
        try:
            checkpoints.verify(directory)
        except CheckpointDamaged as damaged:
            words = f"The model '{row.name}' cannot be used. {damaged.message} Hint: use another checkpoint of job {row.job_id}."
            raise CheckpointDamaged(words) from damaged
        _verified.add(directory)
    return directory


_verified: set[Path] = set()


def _wait_for(descriptor: int, heed: Callable[[], None]) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            heed()
            time.sleep(_POLL_SECONDS)


def _obtain(base: bases.Base, heed: Callable[[], None]) -> None:
    environment = processes.download_environment()
    child = processes.spawn(
        "tunesmith.training.bases", base.name, "--to", str(base.directory), stderr=subprocess.PIPE, environment=environment
    )
    try:
        while True:
            try:
                _, words = child.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                heed()
    finally:
        processes.kill_group(child)
    if child.returncode:
        last = words.decode(errors="replace").strip().splitlines()[-1:] or [f"its process ended with status {child.returncode}"]
        raise Unavailable(f"Base model {base.name!r} could not be obtained: {last[0]}")
