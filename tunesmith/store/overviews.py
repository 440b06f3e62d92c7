"""What lists show of jobs, files and models, in few queries whatever their size. Reads only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sqlalchemy import ColumnElement, Connection, Text, cast, func, or_, select, tuple_

from tunesmith.domain.jobs import Job, Status
from tunesmith.store import jobs, schema
from tunesmith.store.database import Database
from tunesmith.store.pages import Page, fetch

_jobs, _metrics, _diagnoses = schema.jobs, schema.metrics, schema.diagnoses
#: What a file or a model is to a job.
Role = Literal["training", "validation", "result", "base"]
#: File or model -> the jobs that name it, and as what.
Users = Mapping[str, Sequence[tuple[Role, Job]]]
#: Names looked up at once; a condition of a thousand parts is too deep for SQLite.
_NAMES = 200


@dataclass(frozen=True)
class JobOverview:
    """A job with how far it is and what is said of it. `losses` are its full validation losses by step, the base model's first."""

    job: Job
    step: int | None
    total_steps: int | None
    losses: Sequence[tuple[int, float]]
    verdict: str | None
    severity: str | None


def jobs_page(
    db: Database, *, after: str | None = None, limit: int = 50, status: Status | None = None, words: str = ""
) -> Page[JobOverview]:
    """Return one page of jobs, newest first, of one status and with `words` in their id, models or suffix.

    Raises: InvalidRequest when `after` is no job's id.
    """
    named = (_jobs.c.id, _jobs.c.model, _jobs.c.suffix, _jobs.c.fine_tuned_model)
    filters: list[ColumnElement[bool]] = [] if status is None else [_jobs.c.status == status]
    if words:
        filters.append(or_(*(column.icontains(words, autoescape=True) for column in named)))

    def read(conn: Connection) -> Page[JobOverview]:
        page = fetch(conn, _jobs, jobs.build, order=(_jobs.c.created_at, _jobs.c.number), after=after, limit=limit, filters=filters)
        ids = [job.id for job in page.items]
        losses, steps, said = _losses(conn, ids), _steps(conn, ids), _said(conn, ids)
        overviews = []
        for job in page.items:
            (step, total), (verdict, severity) = steps.get(job.id, (None, None)), said.get(job.id, (None, None))
            overviews.append(JobOverview(job, step, total, losses[job.id], verdict, severity))
        return Page(tuple(overviews), page.has_more)

    return db.read(read)


def queue(db: Database) -> list[str]:
    """Return the ids of the queued jobs in the order in which they will run."""
    query = select(_jobs.c.id).where(_jobs.c.status == "queued").order_by(_jobs.c.number)
    return db.read(lambda conn: list(conn.execute(query).scalars()))


def users(db: Database, names: Sequence[str]) -> Users:
    """Return, for each of these files and models, the jobs that name it and as what, newest first."""
    found: dict[str, list[tuple[Role, Job]]] = defaultdict(list)
    for start in range(0, len(names), _NAMES):
        some = set(names[start : start + _NAMES])
        for job in db.read(partial(_naming, names=some)):
            roles: list[tuple[Role, str | None]] = [
                ("training", job.training_file),
                ("validation", job.validation_file),
                ("base", job.model),
            ]
            roles += [("result", result) for result in job.result_files]
            for role, name in roles:
                if name is not None and name in some:
                    found[name].append((role, job))
    return found


def _naming(conn: Connection, names: Collection[str]) -> list[Job]:
    results = cast(_jobs.c.result_files, Text)
    where = or_(
        _jobs.c.training_file.in_(names), _jobs.c.validation_file.in_(names), _jobs.c.model.in_(names),
        *(results.contains(name, autoescape=True) for name in names),
    )  # fmt: skip
    return [jobs.build(row) for row in conn.execute(select(_jobs).where(where).order_by(_jobs.c.number.desc()))]


def _losses(conn: Connection, ids: Sequence[str]) -> Mapping[str, list[tuple[int, float]]]:
    query = select(_metrics.c.job_id, _metrics.c.step, _metrics.c.full_valid_loss)
    rows = conn.execute(query.where(_metrics.c.job_id.in_(ids), _metrics.c.full_valid_loss.is_not(None)).order_by(_metrics.c.seq))
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for job_id, step, loss in rows:
        found[job_id].append((step, loss))
    return found


def _steps(conn: Connection, ids: Sequence[str]) -> Mapping[str, tuple[int, int]]:
    last = select(func.max(_metrics.c.step)).where(_metrics.c.job_id == _jobs.c.id).scalar_subquery()
    newest = [(job_id, step) for job_id, step in conn.execute(select(_jobs.c.id, last).where(_jobs.c.id.in_(ids))) if step is not None]
    query = select(_metrics.c.job_id, _metrics.c.step, _metrics.c.data).where(tuple_(_metrics.c.job_id, _metrics.c.step).in_(newest))
    return {job_id: (step, data["total_steps"]) for job_id, step, data in conn.execute(query)}


def _said(conn: Connection, ids: Sequence[str]) -> Mapping[str, tuple[str, str | None]]:
    data = _diagnoses.c.data
    query = select(_diagnoses.c.job_id, data["verdict"].as_string(), data[("findings", 0, "severity")].as_string())
    return {job_id: (verdict, severity) for job_id, verdict, severity in conn.execute(query.where(_diagnoses.c.job_id.in_(ids)))}
