"""Jobs, and how they come to say something: `records` reads it. Knows not who runs a job (`queue`) or how.

Two kinds of writers meet here. Clients ask (`request_*`); an attempt reports under its fence, and once another attempt,
or a client's cancel, has raised the fence its writes raise LeaseLost and change nothing. Events and metrics of a job
share one gapless sequence, taken in the writing transaction, so a reader that has seen number n has seen everything up
to n. Both are known by a key (a metric by its step): what a resumed attempt says again replaces, it does not repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sqlalchemy import Column, ColumnElement, Connection, Row, Table, delete, exists, func, insert, select, update

from tunesmith.domain import ids
from tunesmith.domain.jobs import MOVES, TERMINAL, Event, Job, JobError, Status
from tunesmith.domain.runs import MetricPoint
from tunesmith.errors import InvalidRequest, JobNotFound, LeaseLost
from tunesmith.store import files, schema
from tunesmith.store.database import Database, now
from tunesmith.store.files import FileRow
from tunesmith.store.models import ModelRow
from tunesmith.store.pages import Page as Page
from tunesmith.store.pages import fetch

_jobs, _events, _metrics, _checkpoints = schema.jobs, schema.events, schema.metrics, schema.checkpoints

#: What `move` may set besides the status.
_CHANGES = frozenset({"seed", "resolved", "data_findings", "crashes", "error"}) | {
    "trained_tokens", "estimated_finish", "finished_at", "fine_tuned_model"
}  # fmt: skip


@dataclass(frozen=True)
class CheckpointRow:
    """One published checkpoint. `directory` is relative to the data directory; it has a name once it is listed."""

    id: str
    job_id: str
    step: int
    epoch: int | None
    created_at: int
    directory: str
    metrics: Mapping[str, Any]
    tokens_seen: int
    name: str | None = None
    listed: bool = False


# --- reading ---


def get(db: Database, job_id: str) -> Job:
    """Return the job. Raises: JobNotFound."""
    return db.read(lambda conn: find(conn, job_id))


def list_page(
    db: Database, *, after: str | None = None, limit: int = 20, metadata: Mapping[str, str] | Literal["null"] | None = None
) -> Page[Job]:
    """Return one page of jobs, newest first: all, those with all these metadata, or ("null") those with none."""
    filters: list[ColumnElement[bool]] = []
    if metadata == "null":
        filters.append(_jobs.c.metadata.is_(None))
    elif metadata:
        filters.extend(_has(db, key, value) for key, value in metadata.items())
    order = (_jobs.c.created_at, _jobs.c.number)
    return db.read(lambda conn: fetch(conn, _jobs, build, order=order, after=after, limit=limit, filters=filters))


def find_by_request_hash(db: Database, request_hash: str, since: float) -> Job | None:
    """Return the newest job created from this request at or after `since`, for a client that sends it again."""
    query = select(_jobs).where(_jobs.c.request_hash == request_hash, _jobs.c.created_at >= since).order_by(_jobs.c.number.desc()).limit(1)
    row = db.read(lambda conn: conn.execute(query).one_or_none())
    return None if row is None else build(row)


def counts(db: Database) -> dict[Status, int]:
    """Return how many jobs there are in each status that has any."""
    query = select(_jobs.c.status, func.count().label("jobs")).group_by(_jobs.c.status)
    return db.read(lambda conn: {row.status: row.jobs for row in conn.execute(query)})


# --- what clients ask ---


def create(db: Database, job: Job, *, request_hash: str | None = None) -> Job:
    """Store a new job with its first event and return it; created_at 0 means now.

    Raises: FileNotFound when one of its files is gone.
    """

    def write(conn: Connection) -> Job:
        if conn.execute(select(_jobs.c.id).where(_jobs.c.id == job.id)).first() is not None:
            return find(conn, job.id)
        files.require(conn, job.training_file, "training_file")
        if job.validation_file is not None:
            files.require(conn, job.validation_file, "validation_file")
        values = asdict(job) | {"created_at": job.created_at or int(now(conn)), "request_hash": request_hash}
        row = conn.execute(insert(_jobs).values(values).returning(*_jobs.c)).one()
        return _say(conn, build(row), [Event(f"Created fine-tuning job: {job.id}", key="created")])

    return db.write(write)


def request_cancel(db: Database, job_id: str) -> Job:
    """Cancel the job at once; who runs it hears at its next heartbeat. Raises: JobNotFound; InvalidRequest if it is over."""

    def write(conn: Connection) -> Job:
        job = _open(find(conn, job_id, lock=True))
        event = Event("The job was cancelled", key="cancelled")
        return change(conn, job, "cancelled", [event], fence=job.fence + 1)

    return db.write(write)


def request_pause(db: Database, job_id: str) -> Job:
    """Pause the job: a queued one at once, a running one after its next checkpoint.

    Raises: JobNotFound; InvalidRequest if it is over or its files are still being validated.
    """

    def write(conn: Connection) -> Job:
        job = _open(find(conn, job_id, lock=True))
        if job.status == "paused":
            return job
        if job.status == "running":
            return _set(conn, job, request="pause")
        if job.status == "queued":
            # The fence also stops a worker that claimed the job a moment ago.
            return change(conn, job, "paused", [paused(job.fence + 1)], fence=job.fence + 1)
        raise InvalidRequest(f"Job {job_id} cannot be paused now (status '{job.status}'). It can once it is queued or running.")

    return db.write(write)


def request_resume(db: Database, job_id: str) -> Job:
    """Queue a paused job again, or take back a pause not yet carried out. Raises: JobNotFound; InvalidRequest otherwise."""

    def write(conn: Connection) -> Job:
        job = _open(find(conn, job_id, lock=True))
        if job.status == "paused":
            event = Event("Fine-tuning job resumed", key=f"resumed:{job.fence + 1}")
            return change(conn, job, "queued", [event], fence=job.fence + 1)
        if job.request == "pause":
            return _set(conn, job, request="run")
        raise InvalidRequest(f"Job {job_id} is not paused (status '{job.status}').")

    return db.write(write)


# --- what an attempt reports, under its fence ---


def record(db: Database, job_id: str, fence: int, *, events: Sequence[Event] = (), points: Sequence[MetricPoint] = ()) -> Job:
    """Store events and metrics, and return the job with its last number. Raises: LeaseLost."""
    return db.write(lambda conn: _say(conn, held(conn, job_id, fence), events, points))


def add_checkpoint(db: Database, job_id: str, fence: int, row: CheckpointRow) -> CheckpointRow:
    """Store a published checkpoint and return it as stored. A new step proves progress: crashes count from 0 again.

    For a step that is known already the row takes the new directory and figures and keeps its id and time.
    Raises: LeaseLost.
    """

    def write(conn: Connection) -> CheckpointRow:
        job = held(conn, job_id, fence)
        same_step = (_checkpoints.c.job_id == job_id, _checkpoints.c.step == row.step)
        known = conn.execute(select(_checkpoints).where(*same_step)).one_or_none()
        if known is None:
            _set(conn, job, crashes=0)
            stored = replace(row, created_at=row.created_at or int(now(conn)))
            conn.execute(insert(_checkpoints).values(asdict(stored)))
        else:
            stored = replace(row, id=known.id, created_at=known.created_at)
            conn.execute(update(_checkpoints).where(*same_step).values(asdict(stored)))
        return stored

    return db.write(write)


def drop_checkpoints(db: Database, job_id: str, fence: int, checkpoint_ids: Sequence[str]) -> None:
    """Forget checkpoints; their directories are the caller's to delete. Raises: LeaseLost."""

    def write(conn: Connection) -> None:
        held(conn, job_id, fence)
        conn.execute(delete(_checkpoints).where(_checkpoints.c.job_id == job_id, _checkpoints.c.id.in_(checkpoint_ids)))

    db.write(write)


def move(db: Database, job_id: str, fence: int, status: Status, *, events: Sequence[Event] = (), **changes: Any) -> Job:
    """Move the job to `status`; any but "running" gives it back. `changes` are fields of the job.

    A pause that a client took back meanwhile queues the job instead, and says nothing.
    Raises: LeaseLost; InvalidRequest when there is no such move.
    """
    if unknown := changes.keys() - _CHANGES:
        raise TypeError(f"move() cannot change {', '.join(sorted(unknown))}")

    def write(conn: Connection) -> Job:
        job = held(conn, job_id, fence)
        if status == "paused" and job.status == "running" and job.request == "run":
            return change(conn, job, "queued", (), **changes)
        return change(conn, job, status, events, **changes)

    return db.write(write)


def finish_succeeded(
    db: Database,
    job_id: str,
    fence: int,
    *,
    model: ModelRow,
    checkpoints: Sequence[CheckpointRow],
    result_file: FileRow,
    events: Sequence[Event],
    trained_tokens: int,
) -> Job:
    """End the job with its model, in one transaction: there is no moment at which only part of it is there.

    `checkpoints` are those to list, with their names; each becomes a model unless it is the model itself.
    Raises: LeaseLost; InvalidRequest when the job is not running.
    """

    def write(conn: Connection) -> Job:
        job = held(conn, job_id, fence)
        if job.status == "succeeded":  # an earlier try was committed after all
            return job
        for row in checkpoints:
            listed = update(_checkpoints).where(_checkpoints.c.job_id == job_id, _checkpoints.c.id == row.id)
            if conn.execute(listed.values(name=row.name, listed=True)).rowcount != 1:
                raise InvalidRequest(f"Job {job_id} has no checkpoint {row.id}.")
        named = [
            replace(model, name=row.name, step=row.step, directory=row.directory, created_at=row.created_at, is_checkpoint=True)
            for row in checkpoints
            if row.name is not None and row.name != model.name
        ]
        conn.execute(insert(schema.models), [asdict(row) for row in (*named, model)])
        conn.execute(insert(schema.files).values(asdict(result_file)))
        return change(
            conn, job, "succeeded", events,
            fine_tuned_model=model.name, trained_tokens=trained_tokens, result_files=[result_file.id], finished_at=int(now(conn)),
        )  # fmt: skip

    return db.write(write)


def paused(fence: int) -> Event:
    """Return the event of a pause; a job may be paused many times, but once per fence."""
    return Event("Fine-tuning job paused", key=f"paused:{fence}")


# --- inside a transaction, for this module and `queue` ---


def build(row: Row[Any]) -> Job:
    """Return the job in a row of the jobs table."""
    error = None if row.error is None else JobError(**row.error)
    return schema.build(Job, row, error=error, result_files=tuple(row.result_files))


def held(conn: Connection, job_id: str, fence: int) -> Job:
    """Return the job, locked until the transaction ends. Raises: LeaseLost when `fence` is not the newest."""
    job = find(conn, job_id, lock=True)
    if job.fence != fence:
        raise LeaseLost(f"Job {job_id} is at fence {job.fence}; this attempt has {fence}.")
    return job


def change(conn: Connection, job: Job, status: Status, events: Sequence[Event] = (), **changes: Any) -> Job:
    """Move a locked job to `status`, where it is now or a legal move away, and say `events`."""
    if status != job.status and status not in MOVES[job.status]:
        raise InvalidRequest(f"Job {job.id} cannot go from '{job.status}' to '{status}'.")
    values: dict[str, Any] = {"status": status}
    if status != "running":
        values |= {"worker_id": None, "lease_until": None, "estimated_finish": None}
    if status == "paused" or status in TERMINAL:
        values["request"] = "run"
    if isinstance(changes.get("error"), JobError):
        changes["error"] = asdict(changes["error"])
    return _say(conn, _set(conn, job, **values | changes), events)


def find(conn: Connection, job_id: str, *, lock: bool = False) -> Job:
    """Return the job in a transaction, locked if it is to be changed. Raises: JobNotFound."""
    query = select(_jobs).where(_jobs.c.id == job_id)
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return build(row)


def _open(job: Job) -> Job:
    if job.status in TERMINAL:
        raise InvalidRequest(f"Job has already completed: {job.id} (status '{job.status}').")
    return job


def _set(conn: Connection, job: Job, **values: Any) -> Job:
    return build(conn.execute(update(_jobs).where(_jobs.c.id == job.id).values(**values).returning(*_jobs.c)).one())


def _has(db: Database, key: str, value: str) -> ColumnElement[bool]:
    # By key and value as data: a path expression would give quotes and dots in a key a meaning, another on each database.
    each = func.json_each if db.dialect == "sqlite" else func.json_each_text
    pairs = each(_jobs.c.metadata).table_valued("key", "value")
    return exists().where(pairs.c.key == key, pairs.c.value == value)


def _say(conn: Connection, job: Job, events: Sequence[Event], points: Sequence[MetricPoint] = ()) -> Job:
    """Number what is new and replace what is known, on a locked job."""
    said = {event.key: {"level": event.level, "type": event.type, "message": event.message, "data": dict(event.data)} for event in events}
    measured = {point.step: {"data": point.to_dict(), "full_valid_loss": point.full_valid_loss} for point in points}
    if not said and not measured:
        return job
    moment = now(conn)
    first = {event.key: {"id": event.id or ids.new(ids.EVENT), "created_at": event.created_at or int(moment)} for event in events}
    seq = _merge(conn, _events, _events.c.key, job.id, job.last_seq, said, first)
    seq = _merge(conn, _metrics, _metrics.c.step, job.id, seq, measured, {step: {"created_at": moment} for step in measured})
    return job if seq == job.last_seq else _set(conn, job, last_seq=seq)


def _merge(
    conn: Connection,
    table: Table,
    key: Column[Any],
    job_id: str,
    seq: int,
    contents: Mapping[Any, Mapping[str, Any]],
    first: Mapping[Any, Mapping[str, Any]],
) -> int:
    """Insert the rows whose key is new, with numbers after `seq` and their `first` columns; return the last number."""
    known = {row._mapping[key.name]: row for row in conn.execute(select(table).where(table.c.job_id == job_id, key.in_(contents)))}
    new = []
    for value, content in contents.items():
        if value not in known:
            seq += 1
            new.append({"job_id": job_id, key.name: value, "seq": seq, **content, **first.get(value, {})})
        elif any(known[value]._mapping[name] != item for name, item in content.items()):
            conn.execute(update(table).where(table.c.job_id == job_id, key == value).values(**content))
    if new:
        conn.execute(insert(table), new)
    return seq
