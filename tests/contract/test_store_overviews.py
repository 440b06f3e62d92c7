"""What lists and streams read, on both databases; and that an older database is filled in when it is migrated."""

from __future__ import annotations

from typing import Any

import pytest
from alembic import command
from sqlalchemy import text

from tunesmith.domain.jobs import Event, Job
from tunesmith.domain.runs import MetricPoint
from tunesmith.store import database, diagnoses, jobs, overviews, queue, records, schema
from tunesmith.store.database import Database
from tunesmith.store.migrations import upgrade
from tunesmith.store.records import MetricRow

from .conftest import NewJob


def curve(db: Database, job: Job, steps: int) -> list[MetricPoint]:
    points = [MetricPoint(0, steps, 0.0, full_valid_loss=2.5)]
    points += [
        MetricPoint(step, steps, 0.1, train_loss=1 / step, full_valid_loss=0.5 if step % 5 == 0 else None) for step in range(1, steps + 1)
    ]
    for point in points:
        jobs.record(db, job.id, job.fence, points=[point], events=[point.event()])
    return points


def test_an_overview_has_the_newest_of_each_job(db: Database, running: Job, new_job: NewJob) -> None:
    curve(db, running, 12)
    said = {"verdict": "It goes well.", "findings": [{"severity": "warning"}, {"severity": "info"}]}
    diagnoses.record(db, running.id, running.fence, said)
    other = new_job(suffix="other")
    page = overviews.jobs_page(db)
    assert [one.job.id for one in page.items] == [other.id, running.id] and not page.has_more
    quiet, busy = page.items
    assert (quiet.step, quiet.total_steps, list(quiet.losses), quiet.verdict, quiet.severity) == (None, None, [], None, None)
    assert (busy.step, busy.total_steps, busy.verdict, busy.severity) == (12, 12, "It goes well.", "warning")
    assert busy.losses == [(0, 2.5), (5, 0.5), (10, 0.5)]
    diagnoses.record(db, running.id, running.fence, {"verdict": "Nothing to see.", "findings": []})
    assert overviews.jobs_page(db, status="running").items[0].severity is None
    assert [one.job.id for one in overviews.jobs_page(db, words="OTHER").items] == [other.id]
    assert overviews.jobs_page(db, words="%").items == ()
    first = overviews.jobs_page(db, limit=1)
    assert first.has_more and overviews.jobs_page(db, limit=1, after=first.items[0].job.id).items[0].job.id == running.id


def test_the_queue_is_in_the_order_of_claims(db: Database, new_job: NewJob) -> None:
    ids = [new_job().id for _ in range(3)]
    assert overviews.queue(db) == ids
    claimed = queue.claim(db, "worker")
    assert claimed is not None and claimed.id == ids[0]
    jobs.move(db, claimed.id, claimed.fence, "running")
    assert overviews.queue(db) == ids[1:]


def test_who_names_a_file_or_model(db: Database, new_job: NewJob) -> None:
    job = new_job(model="ft:base:org::12345678", result_files=("file-result",))
    found = overviews.users(db, [job.training_file, job.model, "file-result", "file-res"])
    assert {name: [(role, user.id) for role, user in found[name]] for name in (job.training_file, job.model, "file-result")} == {
        job.training_file: [("training", job.id)], job.model: [("base", job.id)], "file-result": [("result", job.id)],
    }  # fmt: skip
    assert "file-res" not in found and overviews.users(db, []) == {}
    many = [f"file-{n}" for n in range(2_000)]
    assert list(overviews.users(db, [*many, job.training_file])) == [job.training_file]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_what_was_said_since_has_no_gap_whatever_the_page(db: Database, running: Job, limit: int) -> None:
    curve(db, running, 9)
    jobs.record(db, running.id, running.fence, events=[Event(str(n), f"note:{n}") for n in range(4)])
    seen: list[Event | MetricRow] = []
    while said := records.since(db, running.id, seen[-1].seq if seen else 0, limit):
        seen += said
    assert [one.seq for one in seen] == list(range(1, jobs.get(db, running.id).last_seq + 1))
    assert sum(isinstance(one, MetricRow) for one in seen) == 10


def test_a_step_said_again_keeps_its_place_and_its_time(db: Database, running: Job) -> None:
    curve(db, running, 5)
    before = records.metrics_after(db, running.id)
    jobs.record(db, running.id, running.fence, points=[MetricPoint(5, 5, 0.1, train_loss=0.25, full_valid_loss=0.75)])
    after = records.metrics_after(db, running.id)
    assert [(row.seq, row.created_at) for row in after] == [(row.seq, row.created_at) for row in before]
    assert after[-1].data["train_loss"] == 0.25 and overviews.jobs_page(db).items[0].losses[-1] == (5, 0.75)
    assert [row.data["step"] for row in records.metrics_between(db, running.id, 2, 4)] == [2, 3, 4]


def test_an_older_database_is_filled_in(db: Database, running: Job) -> None:
    curve(db, running, 6)

    def back_and_forth(conn: Any) -> None:
        settings = upgrade.config()
        settings.attributes["connection"] = conn
        for words in (
            "DROP INDEX metrics_job_id_seq_full_index",
            "ALTER TABLE metrics DROP COLUMN created_at",
            "ALTER TABLE metrics DROP COLUMN full_valid_loss",
        ):
            conn.execute(text(words))
        conn.execute(text("UPDATE alembic_version SET version_num = '0002'"))
        command.upgrade(settings, "head")

    before = records.metrics_after(db, running.id)
    db.write(back_and_forth)
    assert db.read(database._version) == schema.HEAD
    after = records.metrics_after(db, running.id)
    assert all(
        new.created_at is not None and abs(new.created_at - (old.created_at or 0)) <= 2 for new, old in zip(after, before, strict=True)
    )
    assert overviews.jobs_page(db).items[0].losses == [(0, 2.5), (5, 0.5)]
