"""/api/jobs: what OpenAI's API does not show of jobs. Ours, for the dashboard and scripts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from tunesmith.api import shown
from tunesmith.api.dependencies import Services
from tunesmith.api.live import Live
from tunesmith.api.views import Diagnosis, JobOverviewList, MetricList, Run, Streamed
from tunesmith.domain.jobs import Status
from tunesmith.errors import InvalidRequest, NotFound
from tunesmith.services import curves
from tunesmith.store import diagnoses, jobs, overviews, records

router = APIRouter(prefix="/api/jobs", tags=["Runs"])
Seq = Annotated[int, Query(ge=0, lt=2**63)]
_LAST_STEP = 2**63 - 1


@router.get("")
def list_jobs(
    context: Services,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    status: Status | None = None,
    q: Annotated[str, Query(max_length=200)] = "",
) -> JobOverviewList:
    """List jobs with how they go, newest first; `q` is looked for in ids, model names and suffixes."""
    page = overviews.jobs_page(context.db, after=after, limit=limit, status=status, words=q)
    waiting = overviews.queue(context.db)
    data = [shown.overview(found, waiting) for found in page.items]
    return JobOverviewList(data=data, has_more=page.has_more, counts=jobs.counts(context.db))


@router.get("/{job_id}")
def retrieve(job_id: str, context: Services) -> Run:
    """Return what was asked, what it became and why, the execution plan, and the job itself."""
    return shown.run(context, jobs.get(context.db, job_id))


@router.get("/{job_id}/diagnosis")
def retrieve_diagnosis(job_id: str, context: Services) -> Diagnosis:
    """Return what is to be said of the job: while it runs as of its last evaluation, then for good."""
    job = jobs.get(context.db, job_id)
    found = diagnoses.read(context.db, job_id)
    if found is None:
        raise NotFound(
            f"Job '{job_id}' is {job.status} and has no diagnosis yet. Hint: the first is made with the first evaluation after step 0; "
            "what was found in its data is among its events."
        )
    return shown.diagnosis(job, found)


@router.get("/{job_id}/metrics", response_model_exclude_none=True)
def list_metrics(
    job_id: str,
    request: Request,
    context: Services,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    max_points: Annotated[int | None, Query(ge=curves.MIN_POINTS, le=10_000)] = None,
    first_step: Seq = 0,
    last_step: Seq = _LAST_STEP,
) -> MetricList:
    """List the figures of each step, oldest first.

    Without `max_points` as pages: `after` is the last sequence number already seen. With it, all steps from `first_step` to `last_step`
    thinned to at most so many, no peak or dip of a curve lost; `next` is then where a stream goes on.
    """
    job = jobs.get(context.db, job_id)
    if max_points is None:
        if (first_step, last_step) != (0, _LAST_STEP):
            words = "'first_step' and 'last_step' choose what is thinned. Hint: give 'max_points' too."
            raise InvalidRequest(words, param="first_step" if first_step else "last_step")
        rows = records.metrics_after(context.db, job_id, after, limit + 1)
        data = [shown.metric(row) for row in rows[:limit]]
        return MetricList(data=data, next=data[-1].seq if data else after, has_more=len(rows) > limit)
    if after:
        raise InvalidRequest("'after' continues pages, which 'max_points' does not make. Hint: leave one of them out.", param="after")
    if (first_step, last_step) == (0, _LAST_STEP):
        kept, newest = request.app.state.curves.read(job, max_points)
    else:
        kept = curves.between(context.db, job_id, first_step, last_step, max_points)
        newest = kept[-1].seq if kept else 0
    return MetricList(data=[shown.metric(row) for row in kept], next=newest, has_more=False)


@router.get("/{job_id}/stream", response_class=StreamingResponse, responses={200: {"model": Streamed}})
def stream(
    job_id: str, request: Request, context: Services, after: Seq = 0, last_event_id: Annotated[str, Header()] = ""
) -> StreamingResponse:
    """Send the job as it goes, as server-sent events.

    `metric` and `event` carry their sequence number as id, without a gap after `after` or the header Last-Event-ID; `job` and `diagnosis`
    come whole, at first and whenever they change; `end` comes once the job is over.
    """
    jobs.get(context.db, job_id)
    if last_event_id.isascii() and last_event_id.isdigit():
        after = max(after, int(last_event_id[:18]))
    live: Live = request.app.state.live
    return StreamingResponse(live.follow(job_id, after), media_type="text/event-stream")
