"""Models by name: bases, aliases of bases, fine-tuned models and checkpoints. Knows no weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import InvalidRequest, ModelNotFound, PermissionDenied
from tunesmith.services import Context
from tunesmith.services import bases as base_services
from tunesmith.store import bases, jobs, models
from tunesmith.training import checkpoints

#: Who owns a base, on the wire.
BASE_OWNER = "tunesmith"


@dataclass(frozen=True)
class Entry:
    """A model as a list shows it."""

    name: str
    created_at: int
    owner: str


@dataclass(frozen=True)
class Described:
    """A model with where it comes from. `bytes` on disk; None for a base not fetched yet, or where the weights are gone."""

    name: str
    kind: Literal["base", "lora", "full"]
    base: str
    created_at: int
    bytes: int | None
    job_id: str | None = None
    training_file: str | None = None
    step: int | None = None
    is_checkpoint: bool = False


@dataclass(frozen=True)
class Target:
    """Where a model's weights are: a base directory, and an adapter's if it is not the base itself."""

    name: str
    base_name: str
    base_directory: Path
    adapter_directory: Path | None


def entries(context: Context) -> list[Entry]:
    """Return the bases and the fine-tuned models; checkpoints have names too, but are listed with their job."""
    found = [entry(context, name) for name in bases.names(context.settings.allowed_models)]
    return found + [_tuned_entry(context, row) for row in models.list(context.db) if not row.is_checkpoint]


def described(context: Context) -> list[Described]:
    """Return every model: the bases, then the fine-tuned ones, newest first, each before the checkpoints of its job."""
    settings = context.settings
    found = []
    for name in bases.names(settings.allowed_models):
        base = bases.describe(name, settings.cache_dir, settings.allowed_models)
        moment, size = (int(base.directory.stat().st_mtime), _size(base.directory)) if base.ready else (0, None)
        found.append(Described(base.name, "base", base.name, moment, size))
    rows = models.list(context.db)
    place = {row.job_id: position for position, row in reversed(list(enumerate(rows)))}
    file_of = {job_id: jobs.get(context.db, job_id).training_file for job_id in place}
    for row in sorted(rows, key=lambda row: (place[row.job_id], row.is_checkpoint, -row.step)):
        size = _size(settings.data_dir / row.directory)
        file = file_of[row.job_id]
        found.append(Described(row.name, row.kind, row.base, row.created_at, size, row.job_id, file, row.step, row.is_checkpoint))
    return found


def weight_files(context: Context, name: str) -> list[Path]:
    """Return the files of a fine-tuned model's own weights, verified; what only a resumed run needs is left out.

    Raises: ModelNotFound; InvalidRequest for a base; CheckpointDamaged when the files are not what was written.
    """
    if _base(context, name) is not None:
        raise InvalidRequest(f"The model '{name}' is a base; only fine-tuned models can be downloaded here.", param="model")
    directory = base_services.verified(context, _tuned(context, name))
    return sorted(path for path in directory.iterdir() if path.name not in {*checkpoints.FOR_RESUMING, checkpoints.NOTE})


def _size(directory: Path) -> int | None:
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return sum(sizes) if sizes else None


def entry(context: Context, name: str) -> Entry:
    """Return one model, under the name it was asked for; a base's creation is when it was fetched, 0 before that.

    Raises: ModelNotFound.
    """
    base = _base(context, name)
    if base is not None:
        return Entry(name, int(base.directory.stat().st_mtime) if base.ready else 0, BASE_OWNER)
    return _tuned_entry(context, _tuned(context, name))


def canonical(context: Context, name: str) -> str:
    """Return the real name behind `name`: an alias's base, or the model itself. Raises: ModelNotFound."""
    base = _base(context, name)
    return base.name if base is not None else _tuned(context, name).name


def resolve(context: Context, name: str) -> Target:
    """Return where the weights of `name` are, its base obtained first if need be; that may take minutes.

    Raises: ModelNotFound; CheckpointDamaged when the files of a model of ours are not what was written; Unavailable when its base cannot
    be had.
    """
    base = _base(context, name)
    if base is not None:
        return Target(base.name, base.name, base_services.ready(context.settings, base.name).directory, None)
    row = _tuned(context, name)
    start = base_services.start(context, row.name)
    return Target(row.name, start.weights, start.base, start.adapter)


def delete(context: Context, name: str) -> None:
    """Delete a fine-tuned model or checkpoint, files included.

    Raises: ModelNotFound; PermissionDenied for a base; InvalidRequest while an unfinished job starts from it.
    """
    if _base(context, name) is not None:
        raise PermissionDenied(f"The model '{name}' is a base model of this server; only fine-tuned models can be deleted.", param="model")
    row = models.delete(context.db, name)
    if all(other.directory != row.directory for other in models.list(context.db)):
        shutil.rmtree(context.settings.data_dir / row.directory, ignore_errors=True)


def _base(context: Context, name: str) -> bases.Base | None:
    settings = context.settings
    real = settings.model_aliases.get(name, name)
    try:
        return bases.describe(real, settings.cache_dir, settings.allowed_models)
    except ModelNotFound:
        return None


def _tuned(context: Context, name: str) -> models.ModelRow:
    try:
        return models.get(context.db, name)
    except ModelNotFound as error:
        raise ModelNotFound(name, f"Bases here: {', '.join(bases.names(context.settings.allowed_models))}.") from error


def _tuned_entry(context: Context, row: models.ModelRow) -> Entry:
    return Entry(row.name, row.created_at, organization_id(context))


def organization_id(context: Context) -> str:
    """Return the id under which this deployment owns jobs and models."""
    return f"org-{context.settings.organization}"
