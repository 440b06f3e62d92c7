"""What a job has left on record: its events, metrics and checkpoints, read. How they are written is in `jobs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, select

from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import MetricPoint
from tunesmith.store import jobs, schema
from tunesmith.store.database import Database
from tunesmith.store.jobs import CheckpointRow
from tunesmith.store.pages import Page, fetch

_events, _metrics, _checkpoints = schema.events, schema.metrics, schema.checkpoints


class MetricRow(NamedTuple):
    """One step's figures, `MetricPoint.to_dict()`, at their place in the job's sequence; `created_at` in Unix seconds."""

    seq: int
    created_at: float | None
    data: Mapping[str, Any]


def events(db: Database, job_id: str) -> list[Event]:
    """Return all events, oldest first."""
    query = select(_events).where(_events.c.job_id == job_id).order_by(_events.c.seq)
    return db.read(lambda conn: [schema.build(Event, row) for row in conn.execute(query)])


def events_page(db: Database, job_id: str, after: str | None = None, limit: int = 20) -> Page[Event]:
    """Return one page of events, newest first. Raises: JobNotFound; InvalidRequest when `after` is no event of the job."""

    def read(conn: Connection) -> Page[Event]:
        jobs.find(conn, job_id)
        scope = (_events.c.job_id == job_id,)
        return fetch(conn, _events, lambda row: schema.build(Event, row), order=(_events.c.seq,), after=after, limit=limit, scope=scope)

    return db.read(read)


def checkpoints(db: Database, job_id: str) -> list[CheckpointRow]:
    """Return all checkpoints that are kept, oldest first."""
    query = select(_checkpoints).where(_checkpoints.c.job_id == job_id).order_by(_checkpoints.c.step)
    return db.read(lambda conn: [schema.build(CheckpointRow, row) for row in conn.execute(query)])


def checkpoints_page(db: Database, job_id: str, after: str | None = None, limit: int = 10) -> Page[CheckpointRow]:
    """Return one page of listed checkpoints, highest step first. Raises: JobNotFound; InvalidRequest as `events_page`."""

    def read(conn: Connection) -> Page[CheckpointRow]:
        jobs.find(conn, job_id)
        scope = (_checkpoints.c.job_id == job_id, _checkpoints.c.listed)
        order = (_checkpoints.c.step,)
        return fetch(conn, _checkpoints, lambda row: schema.build(CheckpointRow, row), order=order, after=after, limit=limit, scope=scope)

    return db.read(read)


def metrics_after(db: Database, job_id: str, seq: int = 0, limit: int = 1000) -> list[MetricRow]:
    """Return the figures numbered above `seq`, oldest first."""
    query = _figures(_metrics.c.job_id == job_id, _metrics.c.seq > seq).order_by(_metrics.c.seq)
    return db.read(lambda conn: [MetricRow._make(row) for row in conn.execute(query.limit(limit))])


def metrics_between(db: Database, job_id: str, first_step: int, last_step: int) -> list[MetricRow]:
    """Return the figures of these steps, both included, by step."""
    query = _figures(_metrics.c.job_id == job_id, _metrics.c.step.between(first_step, last_step)).order_by(_metrics.c.step)
    return db.read(lambda conn: [MetricRow._make(row) for row in conn.execute(query)])


def since(db: Database, job_id: str, seq: int, limit: int = 1000) -> list[Event | MetricRow]:
    """Return what was said after number `seq`, events and figures in one order, without a gap."""

    def read(conn: Connection) -> list[Event | MetricRow]:
        events = select(_events).where(_events.c.job_id == job_id, _events.c.seq > seq).order_by(_events.c.seq).limit(limit)
        figures = _figures(_metrics.c.job_id == job_id, _metrics.c.seq > seq).order_by(_metrics.c.seq).limit(limit)
        said: list[Event | MetricRow] = [schema.build(Event, row) for row in conn.execute(events)]
        said += [MetricRow._make(row) for row in conn.execute(figures)]
        return sorted(said, key=lambda one: one.seq)[:limit]

    return db.read(read)


def _figures(*which: ColumnElement[bool]) -> Select[Any]:
    return select(_metrics.c.seq, _metrics.c.created_at, _metrics.c.data).where(*which)


def points(db: Database, job_id: str) -> list[MetricPoint]:
    """Return all figures, oldest first."""
    query = select(_metrics.c.data).where(_metrics.c.job_id == job_id).order_by(_metrics.c.seq)
    return db.read(lambda conn: [MetricPoint(**data) for data in conn.execute(query).scalars()])
