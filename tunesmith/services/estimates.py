"""What a job would become if it were created now, and what it would take. Makes nothing and fetches nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.domain import models as domain
from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import ResolvedSpec, training_rows
from tunesmith.errors import ModelNotFound, Unavailable
from tunesmith.services import Context, bases, rows
from tunesmith.services import jobs as job_services
from tunesmith.store import bases as base_store
from tunesmith.store import models
from tunesmith.training import defaults


@dataclass(frozen=True)
class Estimate:
    """What a job will take, and what that is reckoned from. None where nothing is known to reckon from."""

    seconds: float | None
    seconds_basis: str
    memory_bytes: int | None
    memory_basis: str


@dataclass(frozen=True)
class Resolution:
    """What a job would become."""

    spec: ResolvedSpec
    warnings: list[str]
    num_training: int
    num_validation: int
    total_steps: int
    estimate: Estimate


def resolve(context: Context, new: job_services.NewJob) -> Resolution:
    """Check and resolve a job as its creation and its validation would, but for the files' content.

    Raises: InvalidRequest with the parameter that is wrong; Unavailable for a base that is not on disk yet and not in the catalogue.
    """
    asked, seed = job_services.check(context, new)
    known = facts(context, asked.model)
    if known is None:
        words = f"The weights of '{asked.model}' are not on this server yet, so nothing can be said of a job on it."
        raise Unavailable(f"{words} Hint: they are fetched when it is first used; create the job, or ask the model something.")
    about, adapter = known
    num_rows, num_validation = (_num_rows(context, file) for file in (new.training_file, new.validation_file))
    spec = defaults.resolve(asked, about, defaults.DataFacts(num_rows, num_validation), adapter, seed=seed)
    num_training = num_rows
    if spec.training_split is not None and not new.validation_file and num_rows > 1:
        num_training = training_rows(num_rows, spec.training_split)
        num_validation = num_rows - num_training
    estimate = Estimate(None, "not reckoned yet", None, "not reckoned yet")
    return Resolution(spec, defaults.warnings(spec, about), num_training, num_validation, spec.total_steps(num_training), estimate)


def _num_rows(context: Context, file_id: str | None) -> int:
    if file_id is None:
        return 0
    with context.blobs.open(file_id) as file:
        return rows.find(file)[1]


def facts(context: Context, name: str) -> tuple[ModelFacts, defaults.AdapterFacts | None] | None:
    """Return what is known of a model, and of its adapter if it has one; None for a base neither on disk nor in the catalogue."""
    if _is_here(context, name):
        start = bases.start(context, name)
        adapter = defaults.AdapterFacts(name, start.adapter_rank, start.adapter_alpha) if start.adapter else None
        return base_store.facts(start.base), adapter
    return (domain.CATALOGUE[name].facts, None) if name in domain.CATALOGUE else None


def _is_here(context: Context, name: str) -> bool:
    """Say whether all that training of `name` starts from is on disk, or never will be."""
    try:
        row = models.get(context.db, name)
    except ModelNotFound:
        base = base_store.describe(name, context.settings.cache_dir, context.settings.allowed_models)
        return base.ready or base.kind == "directory"
    return row.kind == "full" or _is_here(context, row.base)
