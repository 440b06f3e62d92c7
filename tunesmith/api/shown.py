"""How /api shows the store's records: each function makes one object of `views`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.api import schemas, views
from tunesmith.domain.jobs import Event, Job
from tunesmith.errors import FileNotFound
from tunesmith.services import Context
from tunesmith.services.models import Described, organization_id
from tunesmith.store import files, overviews
from tunesmith.store.files import FileRow
from tunesmith.store.overviews import JobOverview, Role, Users
from tunesmith.store.records import MetricRow


def run(context: Context, job: Job) -> views.Run:
    """Show a job with what it became, its files and its place in the queue."""
    resolved = dict(job.resolved) if job.resolved is not None else None
    reasons, plan = (resolved.pop("reasons", {}), resolved.pop("plan", None)) if resolved else ({}, None)
    waiting = overviews.queue(context.db) if job.status == "queued" else []
    return views.Run(
        id=job.id, status=job.status, asked=job.asked, resolved=resolved, reasons=reasons, plan=plan,
        job=schemas.Job.of(job, organization_id(context)), request=job.request, queue_position=_position(waiting, job),
        training_file=file_ref(context, job.training_file),
        validation_file=None if job.validation_file is None else file_ref(context, job.validation_file),
    )  # fmt: skip


def overview(found: JobOverview, waiting: Sequence[str]) -> views.JobOverview:
    """Show one line of the list of jobs; `waiting` are the queued jobs in order."""
    job, losses = found.job, list(found.losses)
    after_base = [loss for step, loss in losses if step > 0]
    return views.JobOverview(
        id=job.id, status=job.status, model=job.model, suffix=job.suffix, fine_tuned_model=job.fine_tuned_model,
        created_at=job.created_at, finished_at=job.finished_at, estimated_finish=job.estimated_finish,
        error=None if job.error is None else job.error.message, queue_position=_position(waiting, job),
        step=found.step, total_steps=found.total_steps, losses=losses,
        base_loss=losses[0][1] if losses and losses[0][0] == 0 else None, loss=after_base[-1] if after_base else None,
        verdict=found.verdict, severity=found.severity,  # type: ignore[arg-type]
    )  # fmt: skip


def metric(row: MetricRow) -> views.Metric:
    """Show one step's figures."""
    return views.Metric(seq=row.seq, created_at=row.created_at, data=views.MetricData(**row.data))


def event(said: Event) -> views.StreamEvent:
    """Show an event with its place in the job's sequence."""
    return views.StreamEvent(**schemas.Event.of(said).model_dump(), seq=said.seq)


def diagnosis(job: Job, found: Mapping[str, Any]) -> views.Diagnosis:
    """Show what is said of a job."""
    return views.Diagnosis(id=job.id, status=job.status, **found)


def file(row: FileRow, users: Users) -> views.FileOverview:
    """Show a file and who names it."""
    return views.FileOverview(**schemas.File.of(row).model_dump(), used_by=_used_by(users.get(row.id, ())))


def file_ref(context: Context, file_id: str) -> views.FileRef:
    """Show a file as a job names it, deleted or not."""
    try:
        row = files.get(context.db, file_id)
    except FileNotFound:
        return views.FileRef(id=file_id, filename=None, bytes=None)
    return views.FileRef(id=file_id, filename=row.filename, bytes=row.bytes)


def model(context: Context, found: Described, users: Users) -> views.ModelOverview:
    """Show a model and where it comes from."""
    return views.ModelOverview(
        name=found.name, kind=found.kind, base=found.base, created_at=found.created_at, job_id=found.job_id, step=found.step,
        training_file=None if found.training_file is None else file_ref(context, found.training_file),
        is_checkpoint=found.is_checkpoint, bytes=found.bytes,
        used_by=_used_by([(role, job) for role, job in users.get(found.name, ()) if role == "base"]),
    )  # fmt: skip


def _used_by(users: Sequence[tuple[Role, Job]]) -> list[views.UsedBy]:
    return [views.UsedBy(id=job.id, status=job.status, role=role) for role, job in users]


def _position(waiting: Sequence[str], job: Job) -> int | None:
    return waiting.index(job.id) + 1 if job.id in waiting else None
