"""/api/jobs: what OpenAI's API does not show of a job. Ours, for the dashboard and scripts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from tunesmith.api.dependencies import Services
from tunesmith.api.views import Diagnosis, Metric, MetricList, Run
from tunesmith.errors import NotFound
from tunesmith.store import diagnoses, jobs, records

router = APIRouter(prefix="/api/jobs", tags=["Runs"])


@router.get("/{job_id}")
def retrieve(job_id: str, context: Services) -> Run:
    """Return what was asked, what it became and why, and the execution plan."""
    job = jobs.get(context.db, job_id)
    resolved = dict(job.resolved) if job.resolved is not None else None
    reasons, plan = (resolved.pop("reasons", {}), resolved.pop("plan", None)) if resolved else ({}, None)
    return Run(id=job.id, status=job.status, asked=job.asked, resolved=resolved, reasons=reasons, plan=plan)


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
    return Diagnosis(id=job.id, status=job.status, **found)


@router.get("/{job_id}/metrics")
def list_metrics(
    job_id: str,
    context: Services,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> MetricList:
    """List the figures of each step, oldest first; `after` is the last sequence number already seen."""
    jobs.get(context.db, job_id)
    rows = records.metrics_after(context.db, job_id, after, limit + 1)
    shown = rows[:limit]
    data = [Metric(seq=row.seq, data=row.data) for row in shown]
    return MetricList(data=data, next=shown[-1].seq if shown else after, has_more=len(rows) > limit)
