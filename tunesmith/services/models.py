"""Models by name: bases, aliases of bases, fine-tuned models and checkpoints. Knows no weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelNotFound, PermissionDenied
from tunesmith.services import Context
from tunesmith.services import bases as base_services
from tunesmith.store import bases, models

#: Who owns a base, on the wire.
BASE_OWNER = "tunesmith"


@dataclass(frozen=True)
class Entry:
    """A model as a list shows it."""

    name: str
    created_at: int
    owner: str


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
