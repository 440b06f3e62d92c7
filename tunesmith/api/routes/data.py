"""/api: files looked into, and jobs before they are created. Ours, for the dashboard and scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from tunesmith.api.dependencies import Services
from tunesmith.api.routes.chat import while_connected
from tunesmith.api.routes.jobs import asked
from tunesmith.api.schemas import CreateJob, Job
from tunesmith.api.views import DataReport, Estimate, FileRow, FileRows, HyperparameterInfo, RenderedRows, Resolution
from tunesmith.domain.specs import HYPERPARAMETERS
from tunesmith.services import estimates, example, reports, rows
from tunesmith.services.models import organization_id

router = APIRouter(prefix="/api", tags=["Data"])
Offset = Annotated[int, Query(ge=0, lt=2**31)]
MaxLength = Annotated[int | None, Query(ge=8, le=2**20)]


class Lines(StreamingResponse):
    """One JSON object a line, as they come."""

    media_type = "application/x-ndjson"


#: As the schema has it; FastAPI takes every answer that is not one JSON value for a string.
_REPORTS: dict[int | str, dict[str, Any]] = {200: {"model": DataReport, "content": {Lines.media_type: {"schema": {"type": "object"}}}}}


@router.get("/hyperparameters")
def list_hyperparameters() -> list[HyperparameterInfo]:
    """List the hyperparameters: what each means, accepts, and is when it is not asked for."""
    told = [
        asdict(h) | {"kind": h.kind.__name__, "accepted": h.accepted, "default": h.api_default, "nullable": h.none} for h in HYPERPARAMETERS
    ]
    return [HyperparameterInfo.model_validate(row) for row in told]


@router.get("/files/{file_id}/rows")
def list_rows(file_id: str, context: Services, offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> FileRows:
    """List a file's lines as they are; fewer than `limit` where they are long."""
    shown, total = rows.page(context, file_id, offset, limit)
    return FileRows(data=[FileRow(**asdict(row)) for row in shown], total=total)


@router.get("/files/{file_id}/rendered")
async def list_rendered(
    file_id: str,
    model: str,
    request: Request,
    context: Services,
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
    max_length: MaxLength = None,
) -> RenderedRows:
    """List a training file's rows as a model will see them, target tokens marked."""
    order = await run_in_threadpool(reports.order, context, file_id, model=model, max_length=max_length)
    return RenderedRows.model_validate(await while_connected(request, reports.rendered(context, order, offset, limit)))


@router.get("/files/{file_id}/report", response_class=Lines, responses=_REPORTS)
async def report(
    file_id: str, context: Services, model: str | None = None, validation_file: str | None = None, max_length: MaxLength = None
) -> Lines:
    """Look through a training file; each line of the answer is a report that replaces the one before."""
    order = await run_in_threadpool(reports.order, context, file_id, model=model, validation_file=validation_file, max_length=max_length)

    async def lines() -> AsyncIterator[bytes]:
        async with aclosing(reports.report(context, order)) as found:
            async for told in found:
                yield orjson.dumps(told) + b"\n"

    return Lines(lines())


@router.post("/jobs/resolve")
def resolve(
    body: CreateJob,
    context: Services,
    tokens_per_pass: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
    num_usable: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
) -> Resolution:
    """Return what a job would become if it were created now.

    What a report has found makes it exact: `tokens_per_pass`, and `num_usable`, the training file's rows that have target tokens.
    """
    found = estimates.resolve(context, asked(body), tokens_per_pass, num_usable)
    return Resolution(
        model=found.spec.model, resolved=found.spec.hyperparameters(), reasons=found.spec.reasons, warnings=found.warnings,
        num_training=found.num_training, num_validation=found.num_validation, total_steps=found.total_steps,
        estimate=Estimate(**asdict(found.estimate)),
    )  # fmt: skip


@router.post("/example")
def try_example(context: Services) -> Job:
    """Create a job on the bundled example, its files uploaded first where they are not here."""
    return Job.of(example.create(context), organization_id(context))
