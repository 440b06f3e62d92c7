"""Which worker runs which job: claims, leases, heartbeats. The job table is the queue. Knows not how a job is run.

A claim gives a worker the job until its lease runs out, and a fence: a number that grows with each claim and that every
write of the attempt must carry. A worker that sleeps through its lease wakes to find its fence refused, whatever it
believes. A lease that ran out, rather than being given back, counts as a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, and_, case, or_, select, update

from tunesmith.domain.jobs import Job, Request, Status
from tunesmith.errors import LeaseLost
from tunesmith.store import jobs, schema
from tunesmith.store.database import Database, clock

#: Seconds that a job stays with a worker nobody hears from.
LEASE_SECONDS: Final = 15.0

_jobs = schema.jobs


def claim(db: Database, worker_id: str, statuses: Sequence[Status] = ("queued",), lease_seconds: float = LEASE_SECONDS) -> Job | None:
    """Take the oldest job in one of `statuses` that nobody holds, or None when there is none.

    Whoever claims queued jobs also inherits running ones whose holder died; such a claim counts a crash, and the job
    keeps its status. The caller gives up a job with `domain.jobs.MAX_CRASHES`.
    """
    wanted = (*statuses, "running") if "queued" in statuses else tuple(statuses)
    free = or_(_jobs.c.lease_until.is_(None), _jobs.c.lease_until < clock())
    # SKIP LOCKED: claimants on PostgreSQL pass each other's candidates by. SQLite has one writer and needs no such words.
    oldest = select(_jobs.c.number).where(_jobs.c.status.in_(wanted), free).order_by(_jobs.c.number).limit(1)
    statement = (
        update(_jobs)
        .where(_jobs.c.number == oldest.with_for_update(skip_locked=True).scalar_subquery())
        .values(
            fence=_jobs.c.fence + 1,
            crashes=_jobs.c.crashes + case((_jobs.c.lease_until.is_(None), 0), else_=1),
            worker_id=worker_id,
            lease_until=clock() + lease_seconds,
        )
        .returning(*_jobs.c)
    )

    def write(conn: Connection) -> Job | None:
        row = conn.execute(statement).one_or_none()
        return None if row is None else jobs.build(row)

    return db.write(write)


def heartbeat(db: Database, job_id: str, fence: int, lease_seconds: float = LEASE_SECONDS) -> Request:
    """Prolong the lease and return what clients want of the job.

    Raises: LeaseLost when the job was given back, claimed by another or cancelled.
    """
    mine = and_(_jobs.c.id == job_id, _jobs.c.fence == fence, _jobs.c.lease_until.is_not(None))
    statement = update(_jobs).where(mine).values(lease_until=clock() + lease_seconds).returning(_jobs.c.request)
    request: Request | None = db.write(lambda conn: conn.execute(statement).scalar_one_or_none())
    if request is None:
        raise LeaseLost(f"Job {job_id} is no longer held under fence {fence}.")
    return request


def release(db: Database, job_id: str, fence: int) -> Job:
    """Give the job back without counting a crash: a running one is queued again, or paused if that was asked for.

    Raises: LeaseLost.
    """

    def write(conn: Connection) -> Job:
        job = jobs.held(conn, job_id, fence)
        if job.status == "running" and job.request == "pause":
            return jobs.change(conn, job, "paused", [jobs.paused(fence)])
        return jobs.change(conn, job, "queued" if job.status == "running" else job.status)

    return db.write(write)


def abandon(db: Database, job_id: str, fence: int) -> None:
    """End the lease as a crash ends it: the next claim takes the job at once and counts one. Raises: LeaseLost."""
    mine = and_(_jobs.c.id == job_id, _jobs.c.fence == fence, _jobs.c.lease_until.is_not(None))
    if db.write(lambda conn: conn.execute(update(_jobs).where(mine).values(lease_until=0)).rowcount) != 1:
        raise LeaseLost(f"Job {job_id} is no longer held under fence {fence}.")
