"""Jobs, their events, metrics and checkpoints; what clients may ask; what an attempt may still write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, get_args

import pytest
from sqlalchemy import exc, select, text, update

from tunesmith.domain.jobs import MOVES, TERMINAL, Event, Job, JobError, Status
from tunesmith.domain.runs import MetricPoint
from tunesmith.errors import FileNotFound, InvalidRequest, JobNotFound, LeaseLost, ModelNotFound
from tunesmith.store import diagnoses, files, jobs, models, queue, records, schema
from tunesmith.store.database import Database
from tunesmith.store.files import FileRow
from tunesmith.store.models import ModelRow

from .conftest import NewJob


def point(step: int, loss: float = 1.5) -> MetricPoint:
    return MetricPoint(step=step, total_steps=10, epoch=step / 10, train_loss=loss, train_mean_token_accuracy=0.5)


def checkpoint(job: Job, step: int, **fields: Any) -> jobs.CheckpointRow:
    given = {"epoch": None, "created_at": 100 + step, "directory": f"jobs/{job.id}/checkpoints/step-{step}", "metrics": {"train_loss": 0.1}}
    return jobs.CheckpointRow(
        **{"id": f"ftckpt_{job.id}_{step}", "job_id": job.id, "step": step, "tokens_seen": 10 * step, **given, **fields}
    )


def ending(job: Job) -> dict[str, Any]:
    """Make what `finish_succeeded` needs, for a job with checkpoints at steps 5 and 10."""
    name = f"ft:base:personal::{job.id[-8:]}"
    return {
        "model": ModelRow(name, job.id, "base", 10, "jobs/x/checkpoints/step-10", "lora", 110),
        "checkpoints": [checkpoint(job, 5, name=f"{name}:ckpt-step-5"), checkpoint(job, 10, name=name)],
        "result_file": FileRow(f"file-{job.id}", 10, 110, "step_metrics.csv", "fine-tune-results", "00"),
        "events": [
            Event(f"New fine-tuned model created: {name}", key="model"),
            Event("The job has successfully completed", key="completed"),
        ],
        "trained_tokens": 100,
    }


def numbers(db: Database, job_id: str) -> list[int]:
    return sorted([event.seq for event in records.events(db, job_id)] + [row.seq for row in records.metrics_after(db, job_id, 0, 100_000)])


def everything(db: Database) -> dict[str, list[Any]]:
    return db.read(lambda conn: {table.name: conn.execute(select(table)).all() for table in schema.metadata.sorted_tables})


# --- creating and listing ---


def test_a_new_job_is_what_was_asked_with_its_first_event(db: Database, new_job: NewJob) -> None:
    job = new_job(status="validating_files", asked={"n_epochs": 3, "batch_size": "auto"}, metadata={"team": "a"}, suffix="s", created_at=77)
    assert jobs.get(db, job.id) == job
    assert (job.created_at, job.status, job.last_seq, job.fence, job.request) == (77, "validating_files", 1, 0, "run")
    (event,) = records.events(db, job.id)
    assert (event.message, event.key, event.seq, event.data) == (f"Created fine-tuning job: {job.id}", "created", 1, {})
    assert event.id.startswith("ftevent-")
    assert event.created_at > 0
    with pytest.raises(JobNotFound):
        jobs.get(db, "ftjob-none")


def test_creating_again_after_a_lost_commit_makes_no_second_job(db: Database, new_job: NewJob) -> None:
    job = new_job()
    assert jobs.create(db, job) == job
    assert len(records.events(db, job.id)) == 1


def test_a_job_needs_its_files(db: Database, new_job: NewJob) -> None:
    job = new_job()
    with pytest.raises(FileNotFound) as caught:
        jobs.create(db, replace(job, id="ftjob-2", validation_file="file-none"))
    assert caught.value.param == "validation_file"
    assert jobs.counts(db) == {"queued": 1}


def test_pages_are_newest_first_and_hold_still(db: Database, new_job: NewJob) -> None:
    made = [new_job(created_at=5 if n < 4 else 6).id for n in range(7)]
    seen: list[str] = []
    while True:
        page = jobs.list_page(db, after=seen[-1] if seen else None, limit=3)
        seen += [job.id for job in page.items]
        if not page.has_more:
            break
        new_job(created_at=7)  # arrives between two pages
    assert seen == made[::-1]
    exactly = jobs.list_page(db, after=made[3], limit=3)
    assert ([job.id for job in exactly.items], exactly.has_more) == ([made[2], made[1], made[0]], False)


def test_an_unknown_cursor_is_refused(db: Database, new_job: NewJob) -> None:
    job, other = new_job(), new_job()
    foreign = records.events(db, other.id)[0].id
    for ask in (
        lambda: jobs.list_page(db, after="ftjob-none"),
        lambda: records.events_page(db, job.id, after=foreign),
        lambda: records.checkpoints_page(db, job.id, after="x"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            ask()
        assert caught.value.param == "after"
    for page in (records.events_page, records.checkpoints_page):
        with pytest.raises(JobNotFound):
            page(db, "ftjob-none")


def test_metadata_filters_by_exact_key_and_value(db: Database, new_job: NewJob) -> None:
    odd = """a"b.c$[0]' é😀\\"""
    first, second, bare = new_job(metadata={odd: odd, "team": "a"}), new_job(metadata={"team": "a", "x": "1"}), new_job()

    def found(metadata: Any) -> list[str]:
        return [job.id for job in jobs.list_page(db, metadata=metadata).items]

    assert found({odd: odd}) == [first.id]
    assert found({"team": "a"}) == [second.id, first.id]
    assert found({"team": "a", "x": "1"}) == [second.id]
    assert found({"team": "A"}) == found({"a": "team"}) == found({"te%": "a"}) == found({"team": "a", "x": "2"}) == []
    assert found("null") == [bare.id]
    assert found(None) == found({}) == [bare.id, second.id, first.id]
    assert [job.id for job in jobs.list_page(db, metadata={"team": "a"}, after=second.id).items] == [first.id]


def test_a_request_sent_again_finds_its_job(db: Database, new_job: NewJob) -> None:
    template = new_job()
    for name, moment in (("ftjob-old", 100), ("ftjob-new", 200)):
        jobs.create(db, replace(template, id=name, created_at=moment), request_hash="h")
    newest = jobs.find_by_request_hash(db, "h", since=150)
    assert newest is not None
    assert newest.id == "ftjob-new"
    assert jobs.find_by_request_hash(db, "h", since=201) is None
    assert jobs.find_by_request_hash(db, "other", since=0) is None


def test_counts(db: Database, new_job: NewJob) -> None:
    for status in ("queued", "queued", "failed"):
        new_job(status=status)
    assert jobs.counts(db) == {"queued": 2, "failed": 1}


# --- what an attempt reports ---


def test_events_and_metrics_share_one_sequence_that_a_replay_does_not_disturb(db: Database, running: Job) -> None:
    def attempt(job: Job, steps: range) -> None:
        for step in steps:
            jobs.record(db, job.id, job.fence, events=[point(step).event()], points=[point(step)])

    attempt(running, range(1, 6))
    before = everything(db)
    attempt(running, range(3, 6))
    assert everything(db) == before, "said twice, changed nothing"
    attempt(running, range(4, 8))
    assert numbers(db, running.id) == list(range(1, 16))
    assert jobs.get(db, running.id).last_seq == 15
    assert [row.data["step"] for row in records.metrics_after(db, running.id)] == [1, 2, 3, 4, 5, 6, 7]
    assert [row.seq for row in records.metrics_after(db, running.id, seq=5, limit=2)] == [7, 9]
    assert records.metrics_after(db, running.id)[0].data == point(1).to_dict()
    assert [found.to_dict() for found in records.points(db, running.id)] == [row.data for row in records.metrics_after(db, running.id)]


def test_what_is_said_anew_replaces_in_place(db: Database, running: Job) -> None:
    jobs.record(db, running.id, running.fence, events=[Event("first", key="k"), Event("second", key="l")], points=[point(1, loss=2.0)])
    was = records.events(db, running.id)[1]
    again = [Event("unused", key="k"), Event("changed", key="k", level="warn", data={"a": [1]})]
    jobs.record(db, running.id, running.fence, events=again, points=[point(1, loss=3.0)])
    assert records.events(db, running.id)[1] == replace(was, message="changed", level="warn", data={"a": [1]})
    assert [row.data["train_loss"] for row in records.metrics_after(db, running.id)] == [3.0]
    assert numbers(db, running.id) == [1, 2, 3, 4]


def test_a_record_is_stored_whole_or_not_at_all(db: Database, running: Job) -> None:
    with pytest.raises(InvalidRequest):
        jobs.record(db, running.id, running.fence, events=[Event("said before", key="k")], points=[point(1), point(2, loss=float("nan"))])
    assert numbers(db, running.id) == [1]
    assert jobs.record(db, running.id, running.fence, points=[point(1)]).last_seq == 2


def test_concurrent_writers_leave_no_gap_at_any_moment(db: Database, database_url: str, running: Job) -> None:
    writers, each = 8, 12
    done = threading.Event()

    def write(writer: int) -> None:
        own = Database.open(database_url)
        for n in range(each):
            said = [Event("said", key=f"{writer}:{n}"), Event("said by all", key=f"shared:{n}")]
            jobs.record(own, running.id, running.fence, events=said, points=[point(1000 * writer + n)])
        own.close()

    def watch() -> int:
        looks = 0
        while not done.is_set():
            seen = db.read(
                lambda conn: conn.execute(text("SELECT seq FROM events UNION ALL SELECT seq FROM metrics ORDER BY seq")).scalars().all()
            )
            assert seen == list(range(1, len(seen) + 1))
            looks += 1
        return looks

    with ThreadPoolExecutor(writers + 1) as pool:
        watcher = pool.submit(watch)
        writing = [pool.submit(write, writer) for writer in range(writers)]
        wait(writing)
        done.set()
        assert [future.result() for future in writing] == [None] * writers
        assert watcher.result() > 3
    total = 1 + writers * each * 2 + each
    assert numbers(db, running.id) == list(range(1, total + 1))
    assert jobs.get(db, running.id).last_seq == total


FENCED: dict[str, Callable[[Database, Job, int], object]] = {
    "record": lambda db, job, fence: jobs.record(db, job.id, fence, events=[Event("late", key="late")], points=[point(11)]),
    "add_checkpoint": lambda db, job, fence: jobs.add_checkpoint(db, job.id, fence, checkpoint(job, 11)),
    "drop_checkpoints": lambda db, job, fence: jobs.drop_checkpoints(db, job.id, fence, [checkpoint(job, 5).id]),
    "move": lambda db, job, fence: jobs.move(db, job.id, fence, "failed", error=JobError("c", "m"), events=[Event("late", key="late")]),
    "finish_succeeded": lambda db, job, fence: jobs.finish_succeeded(db, job.id, fence, **ending(job)),
    "diagnoses.record_row_losses": lambda db, job, fence: diagnoses.record_row_losses(db, job.id, fence, rows_of(5, 0.5)),
    "diagnoses.record": lambda db, job, fence: diagnoses.record(db, job.id, fence, {"step": 5, "verdict": "sound"}),
    "heartbeat": lambda db, job, fence: queue.heartbeat(db, job.id, fence),
    "release": lambda db, job, fence: queue.release(db, job.id, fence),
}


@pytest.mark.parametrize("name", FENCED)
def test_a_stale_fence_writes_nothing(db: Database, running: Job, name: str) -> None:
    for step in (5, 10):
        jobs.add_checkpoint(db, running.id, running.fence, checkpoint(running, step))
    before = everything(db)
    for fence in (running.fence - 1, running.fence + 1):
        with pytest.raises(LeaseLost):
            FENCED[name](db, running, fence)
    assert everything(db) == before
    FENCED[name](db, running, running.fence)
    assert everything(db) != before, "the right fence writes"


def rows_of(step: int, loss: float, of: str = "validation") -> dict[str, Any]:
    return {"step": step, "of": of, "loss": [loss]}


def test_row_losses_that_are_said_again_are_replaced(db: Database, running: Job) -> None:
    assert diagnoses.row_losses(db, running.id) == []
    for loss in (0.5, 0.4):
        for step in (5, 0):
            diagnoses.record_row_losses(db, running.id, running.fence, rows_of(step, loss + step))
    diagnoses.record_row_losses(db, running.id, running.fence, rows_of(5, 0.1, "training"))
    assert diagnoses.row_losses(db, running.id) == [rows_of(0, 0.4), rows_of(5, 0.1, "training"), rows_of(5, 5.4)]


def test_a_job_has_one_diagnosis_the_newest(db: Database, running: Job) -> None:
    assert diagnoses.read(db, running.id) is None
    for step in (5, 10):
        diagnoses.record(db, running.id, running.fence, {"step": step, "verdict": "sound"})
    assert diagnoses.read(db, running.id) == {"step": 10, "verdict": "sound"}


def test_checkpoints_are_listed_highest_step_first_once_they_have_names(db: Database, running: Job) -> None:
    for step in (10, 5, 20, 15):
        jobs.add_checkpoint(
            db, running.id, running.fence, checkpoint(running, step, name=f"ckpt-{step}" if step != 15 else None, listed=step != 15)
        )
    assert [row.step for row in records.checkpoints(db, running.id)] == [5, 10, 15, 20]
    page = records.checkpoints_page(db, running.id, limit=2)
    assert ([row.step for row in page.items], page.has_more) == ([20, 10], True)
    assert records.checkpoints_page(db, running.id, after=page.items[-1].id) == jobs.Page((records.checkpoints(db, running.id)[0],), False)
    jobs.drop_checkpoints(db, running.id, running.fence, [checkpoint(running, step).id for step in (5, 15)])
    assert [row.step for row in records.checkpoints(db, running.id)] == [10, 20]
    assert records.checkpoints(db, running.id)[0] == checkpoint(running, 10, name="ckpt-10", listed=True)


def test_only_a_new_step_proves_progress(db: Database, running: Job) -> None:
    def crashed() -> int:
        db.write(lambda conn: conn.execute(update(schema.jobs).values(crashes=2)))
        return running.fence

    jobs.add_checkpoint(db, running.id, crashed(), checkpoint(running, 5))
    assert jobs.get(db, running.id).crashes == 0
    stored = jobs.add_checkpoint(
        db, running.id, crashed(), checkpoint(running, 5, id="ftckpt_again", created_at=999, directory="elsewhere")
    )
    assert jobs.get(db, running.id).crashes == 2
    assert records.checkpoints(db, running.id) == [stored] == [checkpoint(running, 5, directory="elsewhere")]


# --- statuses ---


def test_only_legal_moves(db: Database, new_job: NewJob) -> None:
    for source in get_args(Status):
        for target in get_args(Status):
            job = new_job(status=source, request="pause" if source == "running" else "run")
            if target in MOVES[source] or target == source:
                assert jobs.move(db, job.id, 0, target).status == target
            else:
                with pytest.raises(InvalidRequest, match=f"'{source}' to '{target}'"):
                    jobs.move(db, job.id, 0, target)
                assert jobs.get(db, job.id) == job


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_the_database_itself_keeps_a_terminal_status(db: Database, new_job: NewJob, status: Status) -> None:
    job = new_job(status=status)
    revive = update(schema.jobs).where(schema.jobs.c.id == job.id).values(status="running")
    with pytest.raises(exc.IntegrityError, match="a terminal status is final"):
        db.write(lambda conn: conn.execute(revive))
    assert jobs.get(db, job.id).status == status
    db.write(lambda conn: conn.execute(text("DROP TRIGGER jobs_terminal" + (" ON jobs" if db.dialect == "postgresql" else ""))))
    db.write(lambda conn: conn.execute(revive))
    assert jobs.get(db, job.id).status == "running", "it was the trigger that refused"


def test_a_move_sets_what_it_is_given_and_gives_the_job_back(db: Database, running: Job) -> None:
    going = jobs.move(db, running.id, running.fence, "running", resolved={"n_steps": 3}, estimated_finish=99, trained_tokens=7)
    assert going == replace(running, resolved={"n_steps": 3}, estimated_finish=99, trained_tokens=7)
    assert queue.heartbeat(db, running.id, running.fence) == "run", "still held"
    with pytest.raises(TypeError, match="fence"):
        jobs.move(db, running.id, running.fence, "running", fence=9)
    event = Event("it failed", key="failed", level="error")
    for _ in range(2):  # the second time, because the first answer was lost
        failed = jobs.move(db, running.id, running.fence, "failed", error=JobError("bad", "It is bad.", "training_file"), events=[event])
        assert failed == jobs.get(db, running.id)
        assert (failed.status, failed.error, failed.estimated_finish) == ("failed", JobError("bad", "It is bad.", "training_file"), None)
    assert [e.message for e in records.events(db, running.id)][1:] == ["it failed"]
    with pytest.raises(LeaseLost):
        queue.heartbeat(db, running.id, running.fence)


# --- what clients ask ---


@pytest.mark.parametrize("status", sorted(set(get_args(Status)) - TERMINAL))
def test_cancel_ends_a_job_at_once(db: Database, new_job: NewJob, status: Status) -> None:
    job = new_job(status=status)
    cancelled = jobs.request_cancel(db, job.id)
    assert cancelled == jobs.get(db, job.id)
    assert (cancelled.status, cancelled.request, cancelled.finished_at) == ("cancelled", "run", None)
    assert records.events(db, job.id)[-1].key == "cancelled"


def test_cancel_takes_the_job_from_its_holder(db: Database, running: Job) -> None:
    jobs.request_cancel(db, running.id)
    for write in FENCED.values():
        with pytest.raises(LeaseLost):
            write(db, running, running.fence)
    assert queue.claim(db, "worker-2") is None


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_what_is_over_is_over(db: Database, new_job: NewJob, status: Status) -> None:
    job = new_job(status=status)
    for ask in (jobs.request_cancel, jobs.request_pause, jobs.request_resume):
        with pytest.raises(InvalidRequest, match=rf"Job has already completed: {job.id} \(status '{status}'\)"):
            ask(db, job.id)
        with pytest.raises(JobNotFound):
            ask(db, "ftjob-none")
    assert jobs.get(db, job.id) == job


def test_a_queued_job_pauses_at_once_and_resumes(db: Database, new_job: NewJob) -> None:
    job = new_job()
    held = queue.claim(db, "worker-1")
    assert held is not None
    assert jobs.request_pause(db, job.id).status == "paused"
    with pytest.raises(LeaseLost):  # the worker that had just claimed it
        jobs.move(db, job.id, held.fence, "running")
    assert queue.claim(db, "worker-1") is None
    assert jobs.request_pause(db, job.id).status == "paused"
    assert jobs.request_resume(db, job.id).status == "queued"
    jobs.request_pause(db, job.id)
    assert [event.key.split(":")[0] for event in records.events(db, job.id)] == ["created", "paused", "resumed", "paused"]
    with pytest.raises(InvalidRequest, match="not paused"):
        jobs.request_resume(db, new_job().id)


def test_a_running_job_pauses_when_its_worker_says_so(db: Database, running: Job) -> None:
    asked = jobs.request_pause(db, running.id)
    assert (asked.status, asked.request) == ("running", "pause")
    assert queue.heartbeat(db, running.id, running.fence) == "pause"
    paused = jobs.move(db, running.id, running.fence, "paused", events=[jobs.paused(running.fence)])
    assert (paused.status, paused.request) == ("paused", "run")
    again = jobs.move(db, running.id, running.fence, "paused", events=[jobs.paused(running.fence)])
    assert again == paused, "the answer was lost and the move made again"


def test_a_pause_taken_back_while_the_worker_carries_it_out_queues_the_job(db: Database, running: Job) -> None:
    jobs.request_pause(db, running.id)
    assert queue.heartbeat(db, running.id, running.fence) == "pause"
    assert jobs.request_resume(db, running.id).request == "run"
    assert jobs.move(db, running.id, running.fence, "paused", events=[jobs.paused(running.fence)]).status == "queued"
    assert len(records.events(db, running.id)) == 1
    assert queue.claim(db, "worker-2") is not None


def test_no_pause_while_validating(db: Database, new_job: NewJob) -> None:
    with pytest.raises(InvalidRequest, match="validating_files"):
        jobs.request_pause(db, new_job(status="validating_files").id)


# --- the end ---


def with_checkpoints(db: Database, job: Job) -> Job:
    for step in (5, 10):
        jobs.add_checkpoint(db, job.id, job.fence, checkpoint(job, step))
    return job


def test_success_is_there_all_at_once(db: Database, running: Job) -> None:
    end = ending(with_checkpoints(db, running))
    done = jobs.finish_succeeded(db, running.id, running.fence, **end)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", end["model"].name, 100)
    assert done.result_files == (end["result_file"].id,)
    assert done.finished_at is not None
    assert files.get(db, done.result_files[0]) == end["result_file"]
    assert models.get(db, end["model"].name) == end["model"]
    at_five = end["checkpoints"][0]
    assert models.get(db, at_five.name) == replace(
        end["model"], name=at_five.name, step=5, directory=at_five.directory, created_at=at_five.created_at, is_checkpoint=True
    )
    assert [row.name for row in records.checkpoints_page(db, running.id).items] == [end["model"].name, at_five.name]
    before = everything(db)
    assert jobs.finish_succeeded(db, running.id, running.fence, **end) == done
    assert everything(db) == before


def test_success_is_there_not_at_all_when_any_part_fails(db: Database, running: Job) -> None:
    end = ending(with_checkpoints(db, running))
    before = everything(db)
    for part in (
        {"result_file": replace(end["result_file"], id=running.training_file)},
        {"model": replace(end["model"], job_id="ftjob-none")},
        {"checkpoints": [*end["checkpoints"], checkpoint(running, 7, name="x")]},
        {"events": [Event("half \ud83d", key="k")]},
    ):
        with pytest.raises((exc.IntegrityError, InvalidRequest)):
            jobs.finish_succeeded(db, running.id, running.fence, **end | part)
        assert everything(db) == before


def test_of_cancel_and_success_one_wins_whole(db: Database, database_url: str, new_job: NewJob) -> None:
    other = Database.open(database_url)
    for _ in range(8):
        new_job()
        claimed = queue.claim(db, "worker-1")
        assert claimed is not None
        job = with_checkpoints(db, jobs.move(db, claimed.id, claimed.fence, "running"))
        gate = threading.Barrier(2)

        def cancel(job: Job, gate: threading.Barrier) -> object:
            gate.wait()
            return jobs.request_cancel(other, job.id)

        def finish(job: Job, gate: threading.Barrier) -> object:
            gate.wait()
            return jobs.finish_succeeded(db, job.id, job.fence, **ending(job))

        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(cancel, job, gate), pool.submit(finish, job, gate)]
            errors = [future.exception() for future in futures]
        name = ending(job)["model"].name
        if jobs.get(db, job.id).status == "cancelled":
            assert (errors[0], type(errors[1])) == (None, LeaseLost)
            with pytest.raises(ModelNotFound):
                models.get(db, name)
        else:
            assert (type(errors[0]), errors[1]) == (InvalidRequest, None)
            assert models.get(db, name).job_id == job.id
    other.close()
