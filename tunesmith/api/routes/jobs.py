"""/v1/fine_tuning/jobs."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request

from tunesmith.api.dependencies import Services
from tunesmith.api.schemas import MAX_METADATA, Checkpoint, CheckpointList, CreateJob, Event, EventList, Job, JobList
from tunesmith.domain import jobs as domain
from tunesmith.errors import InvalidRequest
from tunesmith.services import Context
from tunesmith.services import jobs as services
from tunesmith.services.models import organization_id
from tunesmith.store import jobs, records

_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("")
def create(body: CreateJob, context: Services, x_stainless_retry_count: Annotated[str, Header()] = "0") -> Job:
    """Create a job. A request that OpenAI's clients mark as sent again finds the job it made before."""
    return _shown(context, services.create(context, asked(body), retried=x_stainless_retry_count not in ("", "0")))


def asked(body: CreateJob) -> services.NewJob:
    """Return what a request asks for. Raises: InvalidRequest for what this server does not do."""
    if body.integrations:
        words = "Integrations are not available: no W&B key is configured on this server. Hint: leave 'integrations' out."
        raise InvalidRequest(words, param="integrations")
    if body.method is not None and body.method.type != "supervised":
        words = f"Method '{body.method.type}' is not supported by this server. Accepted: 'supervised'."
        raise InvalidRequest(words, param="method.type")
    hyperparameters, prefix = _hyperparameters(body)
    return services.NewJob(
        model=body.model, training_file=body.training_file, validation_file=body.validation_file, suffix=body.suffix, seed=body.seed,
        hyperparameters=hyperparameters, metadata=body.metadata, prefix=prefix,
    )  # fmt: skip


@router.get("")
def list_jobs(request: Request, context: Services, after: str | None = None, limit: Limit = 20) -> JobList:
    """List jobs, newest first; `metadata[key]=value` filters, `metadata=null` finds those without any."""
    page = jobs.list_page(context.db, after=after, limit=limit, metadata=_metadata(request))
    return JobList(data=[_shown(context, job) for job in page.items], has_more=page.has_more)


@router.get("/{job_id}")
def retrieve(job_id: str, context: Services) -> Job:
    """Return one job."""
    return _shown(context, jobs.get(context.db, job_id))


@router.post("/{job_id}/cancel")
def cancel(job_id: str, context: Services) -> Job:
    """Cancel a job that is not over."""
    return _shown(context, jobs.request_cancel(context.db, job_id))


@router.post("/{job_id}/pause")
def pause(job_id: str, context: Services) -> Job:
    """Pause a queued or running job; a running one first writes a checkpoint."""
    return _shown(context, jobs.request_pause(context.db, job_id))


@router.post("/{job_id}/resume")
def resume(job_id: str, context: Services) -> Job:
    """Queue a paused job again."""
    return _shown(context, jobs.request_resume(context.db, job_id))


@router.get("/{job_id}/events")
def list_events(job_id: str, context: Services, after: str | None = None, limit: Limit = 20) -> EventList:
    """List a job's events, newest first."""
    page = records.events_page(context.db, job_id, after, limit)
    return EventList(data=[Event.of(event) for event in page.items], has_more=page.has_more)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(job_id: str, context: Services, after: str | None = None, limit: Limit = 10) -> CheckpointList:
    """List a job's checkpoints, highest step first, once the job has succeeded."""
    page = records.checkpoints_page(context.db, job_id, after, limit)
    data = [Checkpoint.of(row) for row in page.items]
    return CheckpointList(data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=page.has_more)


def _shown(context: Context, job: domain.Job) -> Job:
    return Job.of(job, organization_id(context))


def _hyperparameters(body: CreateJob) -> tuple[dict[str, object], str]:
    """Merge the two places where hyperparameters may be; the older one is an alias of the newer."""
    old = body.hyperparameters or {}
    supervised = body.method.supervised if body.method is not None else None
    new = (supervised.hyperparameters if supervised is not None else None) or {}
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            words = f"'{name}' is {old[name]!r} in 'hyperparameters', but {new[name]!r} in 'method.supervised.hyperparameters'."
            raise InvalidRequest(f"{words} Hint: give only the latter.", param=f"hyperparameters.{name}")
    return old | new, "method.supervised.hyperparameters." if new else "hyperparameters."


def _metadata(request: Request) -> dict[str, str] | Literal["null"] | None:
    """Read the filter. Node sends `metadata=` for null, where Python sends nothing."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value not in ("", "null"):
                raise InvalidRequest(f"Invalid value for 'metadata': {value!r}. Expected 'null' or metadata[key]=value.", param="metadata")
            return "null"
        if match := _METADATA.fullmatch(name):
            wanted[match[1]] = value
    if len(wanted) > MAX_METADATA:
        raise InvalidRequest(f"The filter has {len(wanted)} metadata; at most {MAX_METADATA} are accepted.", param="metadata")
    return wanted or None
