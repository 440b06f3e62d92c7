"""What a job would become if it were created now, and what it would take. Makes nothing and fetches nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith import hardware
from tunesmith.domain import models as domain
from tunesmith.domain.jobs import Event, Job
from tunesmith.domain.models import ModelFacts
from tunesmith.domain.specs import ResolvedSpec, training_rows
from tunesmith.errors import ModelNotFound, Unavailable
from tunesmith.services import Context, bases, rows
from tunesmith.services import jobs as job_services
from tunesmith.store import bases as base_store
from tunesmith.store import files, jobs, models, records
from tunesmith.training import defaults, outlook
from tunesmith.training.outlook import Work

#: Newest jobs among which one on the same base is looked for, and numbers of its sequence that are read from either end.
_LOOKED_AT = 100
_READ = 400
#: Steps from which a speed is known.
_FEWEST_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """What a job will take, and what that is reckoned from. None where there is nothing to reckon from."""

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


def resolve(context: Context, new: job_services.NewJob, tokens_per_pass: int | None = None, num_usable: int | None = None) -> Resolution:
    """Check and resolve a job as its creation and its validation would, but for the content of the files.

    `tokens_per_pass` are those of the training file, where they were counted; else the file's size tells. `num_usable` are its rows with
    target tokens, where that is known: the others will be left out.
    Raises: InvalidRequest with the parameter that is wrong; Unavailable for a base neither on disk nor in the catalogue.
    """
    asked, seed = job_services.check(context, new)
    known = facts(context, asked.model)
    if known is None:
        words = f"The weights of '{asked.model}' are not on this server yet, so nothing can be said of a job on it."
        raise Unavailable(f"{words} Hint: they are fetched when it is first used; create the job, or ask the model something.")
    about, adapter = known
    training, validation = (_File.find(context, file_id) for file_id in (new.training_file, new.validation_file))
    spec = defaults.resolve(asked, about, defaults.DataFacts(training.rows, validation.rows), adapter, seed=seed)
    num_training, num_validation = min(training.rows, training.rows if num_usable is None else num_usable), validation.rows
    if spec.training_split is not None and not new.validation_file and num_training > 1:
        num_rows, num_training = num_training, training_rows(num_training, spec.training_split)
        num_validation = num_rows - num_training
    tokens = training.bytes / outlook.BYTES_PER_TOKEN if tokens_per_pass is None else tokens_per_pass
    density = tokens / max(training.bytes, 1)
    row_tokens, validation_tokens = (min(file.row_bytes * density, spec.max_length) for file in (training, validation))
    work = outlook.work(spec, num_training, num_validation, row_tokens, validation_tokens if new.validation_file else row_tokens)
    counted = "" if tokens_per_pass is not None else f"; tokens not counted yet but reckoned at {outlook.BYTES_PER_TOKEN} bytes each"
    estimate = _estimate(context, new, spec, about, work, counted)
    return Resolution(spec, defaults.warnings(spec, about), num_training, num_validation, spec.total_steps(num_training), estimate)


@dataclass(frozen=True)
class _File:
    rows: int = 0
    bytes: int = 0

    @classmethod
    def find(cls, context: Context, file_id: str | None) -> _File:
        if file_id is None:
            return cls()
        with context.blobs.open(file_id) as file:
            return cls(rows.find(file)[1], files.get(context.db, file_id).bytes)

    @property
    def row_bytes(self) -> float:
        return self.bytes / max(self.rows, 1)


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


# --- time and memory ---


def _estimate(context: Context, new: job_services.NewJob, spec: ResolvedSpec, about: ModelFacts, work: Work, counted: str) -> Estimate:
    earlier = list(_earlier(context, new, spec))
    seconds, basis = _seconds(context, earlier, spec, about, work)
    memory, memory_basis = _memory(context, earlier, spec, about, work)
    return Estimate(seconds, basis + (counted if seconds else ""), None if memory is None else round(memory), memory_basis)


def _earlier(context: Context, new: job_services.NewJob, spec: ResolvedSpec) -> Iterator[Job]:
    """Yield the jobs that ran here on the same model or one made from it, tuned likewise: those on the same file first, then the newest."""
    made_from_it = f"ft:{domain.label(spec.model)}:"
    found = [
        job for job in jobs.list_page(context.db, limit=_LOOKED_AT).items
        if job.resolved and job.resolved["tuning"] == spec.tuning and (job.model == spec.model or job.model.startswith(made_from_it))
    ]  # fmt: skip
    yield from sorted(found, key=lambda job: job.training_file != new.training_file)


def _seconds(context: Context, earlier: list[Job], spec: ResolvedSpec, about: ModelFacts, work: Work) -> tuple[float | None, str]:
    for job in earlier:
        newest = records.metrics_after(context.db, job.id, max(0, job.last_seq - _READ), _READ)
        speeds = [row.data["tokens_per_second"] for row in newest if row.data.get("tokens_per_second")]
        if len(speeds) >= _FEWEST_STEPS:
            rate = statistics.median(speeds)
            return outlook.seconds(work, spec.tuning, rate), f"{rate:,.0f} tokens/s, as in job {job.id}"
    if hardware.has_gpu():
        return None, "no job on this model has run on this graphics processor yet"
    rate, why = outlook.tokens_per_second(about, spec.tuning)
    return outlook.seconds(work, spec.tuning, rate), f"rough, may be off by a factor of 3: no job on this model has run here yet; {why}"


def _memory(context: Context, earlier: list[Job], spec: ResolvedSpec, about: ModelFacts, work: Work) -> tuple[float | None, str]:
    for job in earlier:
        said = next((one for one in records.since(context.db, job.id, 0) if isinstance(one, Event) and one.key == "memory"), None)
        if said and said.data and job.resolved:
            return _as_before(said.data, job.resolved, spec, about, work), f"what job {job.id} found its parts to take"
    if hardware.has_gpu():
        return None, "no job on this model has run on this graphics processor yet"
    if not about.width:
        return None, "the shapes of this model's weights are not known"
    return outlook.peak_bytes(about, spec, work.step), "rough: weights, what is trained with gradients and moments, activations of a step"


def _as_before(told: Mapping[str, Any], resolved: Mapping[str, Any], spec: ResolvedSpec, about: ModelFacts, work: Work) -> float:
    more = outlook.adapter_bytes(about, spec.lora_rank - resolved["lora_rank"]) if spec.tuning == "lora" else 0.0
    return float(told["now"] + told["fixed"] + more + told["per_token"] * min(work.step, told["most_tokens"]))
