"""`tunesmith doctor`: what this machine can do and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.domain import models
from tunesmith.errors import TunesmithError
from tunesmith.settings import Settings
from tunesmith.store import bases
from tunesmith.store.database import Database

_MIN_FREE_GB, _MIN_MEMORY_GB = 2, 3


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it will do, and what was found."""

    name: str
    ok: bool
    found: str


def examine(settings: Settings) -> list[Check]:
    """Look at everything that serving and training need."""
    return [Check(name, *look(settings)) for name, look in _LOOKS.items()]


def _python(settings: Settings) -> tuple[bool, str]:
    return True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _torch(settings: Settings) -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return False, "not installed. Hint: make install"
    from tunesmith.training import plan as planning  # noqa: PLC0415 - torch takes seconds to import

    plan, reasons = planning.draft("lora")
    where = f"trains on {plan.device} ({plan.processor}) in {plan.dtype}: {reasons['dtype']}"
    return True, f"{plan.torch}; {where}; {plan.threads} threads; {reasons['kernels']}"


def _memory(settings: Settings) -> tuple[bool, str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return total >= _MIN_MEMORY_GB, f"{total:.1f} GB in all; training SmolLM2-135M takes about {_MIN_MEMORY_GB} GB"


def _disk(settings: Settings) -> tuple[bool, str]:
    directory = _existing(settings.data_dir)
    free = shutil.disk_usage(directory).free / 1e9
    return free >= _MIN_FREE_GB and os.access(directory, os.W_OK), f"{free:.1f} GB free for {settings.data_dir}"


def _database(settings: Settings) -> tuple[bool, str]:
    if settings.database_url is None and not (settings.data_dir / "tunesmith.db").exists():
        return True, f"SQLite {sqlite3.sqlite_version}; made at first start"
    try:
        db = Database.open(settings.database)
    except TunesmithError as error:
        return False, error.message
    try:
        return True, f"{db.dialect}{' ' + sqlite3.sqlite_version if db.dialect == 'sqlite' else ''}; opens"
    finally:
        db.close()


def _bases(settings: Settings) -> tuple[bool, str]:
    states = []
    ok = True
    for name in bases.names(settings.allowed_models):
        base = bases.describe(name, settings.cache_dir, settings.allowed_models)
        entry = models.CATALOGUE.get(name)
        if base.ready:
            states.append(f"{name} ready")
        elif entry and importlib.util.find_spec(entry.module):
            states.append(f"{name} made from its wheel when first used")
        elif base.kind == "directory":
            ok = False
            states.append(f"{name} is not there")
        else:
            states.append(f"{name} downloaded when first used")
    return ok, "; ".join(states)


def _existing(path: Path) -> Path:
    return next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())


_LOOKS: dict[str, Callable[[Settings], tuple[bool, str]]] = {
    "python": _python,
    "torch": _torch,
    "memory": _memory,
    "disk": _disk,
    "database": _database,
    "base models": _bases,
}
