"""Claims, leases, crashes: each job is with one worker at a time, and none is forgotten."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, select, update

from tunesmith.domain.jobs import Event, Job
from tunesmith.errors import LeaseLost
from tunesmith.store import jobs, queue, records, schema
from tunesmith.store.database import Database

from .conftest import NewJob


def pass_time(db: Database, seconds: float) -> None:
    """Let the leases age."""
    db.write(lambda conn: conn.execute(update(schema.jobs).values(lease_until=schema.jobs.c.lease_until - seconds)))


def test_the_oldest_first_and_only_what_was_asked_for(db: Database, new_job: NewJob) -> None:
    assert queue.claim(db, "worker-1") is None
    made = [new_job(status=status).id for status in ("succeeded", "validating_files", "queued", "paused", "queued")]
    claimed = [queue.claim(db, "worker-1") for _ in range(3)]
    assert [job and (job.id, job.fence, job.crashes) for job in claimed] == [(made[2], 1, 0), (made[4], 1, 0), None]
    validating = queue.claim(db, "worker-1", ("validating_files",))
    assert validating is not None
    assert (validating.id, validating.status) == (made[1], "validating_files")
    moved = jobs.move(db, validating.id, validating.fence, "queued")
    assert queue.claim(db, "worker-2") == jobs.get(db, moved.id), "a move gives the job back for the next claim"


def test_a_lease_that_ran_out_is_a_crash_and_its_holder_is_fenced(db: Database, new_job: NewJob) -> None:
    new_job()
    first = queue.claim(db, "worker-1")
    assert first is not None
    jobs.move(db, first.id, first.fence, "running")
    assert queue.claim(db, "worker-2") is None, "the lease holds"
    pass_time(db, queue.LEASE_SECONDS)
    second = queue.claim(db, "worker-2")
    assert second is not None
    assert (second.id, second.status, second.fence, second.crashes) == (first.id, "running", 2, 1)
    with pytest.raises(LeaseLost):
        queue.heartbeat(db, first.id, first.fence)
    with pytest.raises(LeaseLost):
        jobs.record(db, first.id, first.fence, events=[Event("I am back", key="zombie")])
    assert queue.heartbeat(db, second.id, second.fence) == "run"


def test_validation_that_kills_its_worker_counts_crashes_too(db: Database, new_job: NewJob) -> None:
    new_job(status="validating_files")
    for crashes in range(3):
        job = queue.claim(db, "worker-1", ("validating_files",))
        assert job is not None
        assert job.crashes == crashes
        pass_time(db, queue.LEASE_SECONDS)


def test_heartbeats_keep_the_job(db: Database, new_job: NewJob) -> None:
    new_job()
    job = queue.claim(db, "worker-1")
    assert job is not None
    for _ in range(3):
        pass_time(db, queue.LEASE_SECONDS * 0.6)
        assert queue.claim(db, "worker-2") is None
        queue.heartbeat(db, job.id, job.fence)


def test_a_late_heartbeat_keeps_a_job_that_nobody_took(db: Database, new_job: NewJob) -> None:
    new_job()
    job = queue.claim(db, "worker-1")
    assert job is not None
    pass_time(db, queue.LEASE_SECONDS)
    queue.heartbeat(db, job.id, job.fence)
    assert queue.claim(db, "worker-2") is None


def test_release_queues_again_without_a_crash(db: Database, running: Job) -> None:
    assert queue.release(db, running.id, running.fence).status == "queued"
    with pytest.raises(LeaseLost):
        queue.heartbeat(db, running.id, running.fence)
    again = queue.claim(db, "worker-2")
    assert again is not None
    assert (again.fence, again.crashes) == (running.fence + 1, 0)
    assert queue.release(db, again.id, again.fence).status == "queued", "claimed, not yet running"


def test_release_carries_out_a_pause(db: Database, running: Job) -> None:
    jobs.request_pause(db, running.id)
    assert queue.release(db, running.id, running.fence).status == "paused"
    assert queue.claim(db, "worker-2") is None
    assert records.events(db, running.id)[-1].key == f"paused:{running.fence}"


def claims(url: str, claim: Callable[[Database, str], Job | None], workers: int) -> Counter[str]:
    """Let `workers` claim until nothing is left; return how often each job was claimed."""
    gate = threading.Barrier(workers)

    def work(number: int) -> list[str]:
        own = Database.open(url)
        gate.wait()
        taken = []
        while (job := claim(own, f"worker-{number}")) is not None:
            taken.append(job.id)
        own.close()
        return taken

    with ThreadPoolExecutor(workers) as pool:
        return Counter(job_id for taken in pool.map(work, range(workers)) for job_id in taken)


def careless(db: Database, worker_id: str) -> Job | None:
    """Claim in two transactions: what `queue.claim` must not be."""

    def look(conn: Connection) -> str | None:
        table = schema.jobs.c
        return conn.execute(select(table.id).where(table.lease_until.is_(None)).order_by(table.number).limit(1)).scalar_one_or_none()

    job_id = db.read(look)
    if job_id is None:
        return None
    db.write(lambda conn: conn.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(lease_until=2**40)))
    return jobs.get(db, job_id)


def test_no_job_is_claimed_twice(db: Database, database_url: str, new_job: NewJob) -> None:
    made = {new_job().id for _ in range(40)}
    assert claims(database_url, queue.claim, workers=8) == dict.fromkeys(made, 1)
    db.write(lambda conn: conn.execute(update(schema.jobs).values(lease_until=None)))
    assert max(claims(database_url, careless, workers=8).values()) > 1, "this drill finds a claim that is not one step"


WORKER = """
import os, random, signal, sys
from tunesmith.domain.jobs import Event
from tunesmith.errors import LeaseLost
from tunesmith.store import jobs, queue
from tunesmith.store.database import Database

dice = random.Random(int(sys.argv[2]))
db = Database.open(sys.argv[1])
mortal = sys.argv[3] == "mortal"

def risk(share):
    if mortal and dice.random() < share:
        os.kill(os.getpid(), signal.SIGKILL)

def die_inside(conn):
    conn.exec_driver_sql("UPDATE files SET bytes = bytes + 1")
    risk(1)

def run(job):
    risk(0.1)
    jobs.move(db, job.id, job.fence, "running")
    for step in range(3):
        jobs.record(db, job.id, job.fence, events=[Event("step", key=f"step:{step}")])
        risk(0.05)
    if mortal and dice.random() < 0.15:
        db.write(die_inside)
    jobs.move(db, job.id, job.fence, "failed", events=[Event("end", key=f"end:{job.fence}")])

while True:
    job = queue.claim(db, f"worker-{os.getpid()}", lease_seconds=0.3)
    if job is None:
        if set(jobs.counts(db)) == {"failed"}:
            break
        continue
    try:
        run(job)
    except LeaseLost:  # a short lease and a busy machine: another has it
        pass
"""


def test_killed_workers_lose_nothing_and_do_nothing_twice(db: Database, database_url: str, new_job: NewJob) -> None:
    made = [new_job().id for _ in range(25)]
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    kills = 0
    for generation in range(60):
        kind = "mortal" if kills < 6 else "immortal"
        arguments = [sys.executable, "-c", WORKER, database_url]
        pair = [subprocess.Popen([*arguments, str(seed + 2 * generation + n), kind]) for n in range(2)]
        codes = [process.wait(timeout=60) for process in pair]
        assert set(codes) <= {0, -9}
        kills += codes.count(-9)
        if jobs.counts(db) == {"failed": len(made)}:
            break
    assert kills >= 2, "the drill killed somebody"
    for job_id in made:
        job, said = jobs.get(db, job_id), records.events(db, job_id)
        assert [event.seq for event in said] == list(range(1, job.last_seq + 1))
        assert [event.key for event in said] == ["created", "step:0", "step:1", "step:2", f"end:{job.fence}"]
        assert job.fence == job.crashes + 1
    sizes = db.read(lambda conn: conn.execute(select(schema.files.c.bytes).distinct()).scalars().all())
    assert sizes == [2], "a transaction cut short left nothing"
