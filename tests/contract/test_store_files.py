"""What is known of files and models, and when it may be forgotten."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tunesmith.domain.jobs import Job
from tunesmith.errors import FileNotFound, InvalidRequest, ModelNotFound
from tunesmith.store import files, jobs, models
from tunesmith.store.database import Database
from tunesmith.store.files import FileRow
from tunesmith.store.models import ModelRow
from tunesmith.store.schema import models as models_table

from .conftest import NewJob


def row(number: int, purpose: str = "fine-tune") -> FileRow:
    return FileRow(f"file-{number}", 10 * number, number // 2, f"ü {number}.jsonl", purpose, "ab" * 32, expires_at=None)


def test_a_file_comes_back_as_it_was(db: Database) -> None:
    made = replace(row(1), expires_at=2**40)
    assert files.create(db, made) == files.create(db, made) == files.get(db, made.id) == made
    assert files.delete(db, made.id) == made
    for ask in (files.get, files.delete):
        with pytest.raises(FileNotFound):
            ask(db, made.id)


def test_a_file_is_found_by_what_is_in_it(db: Database) -> None:
    for number in (1, 2, 3):
        files.create(db, row(number))
    assert files.find(db, sha256="ab" * 32, purpose="fine-tune") == row(3)
    assert files.find(db, sha256="cd" * 32, purpose="fine-tune") is files.find(db, sha256="ab" * 32, purpose="evals") is None


def test_pages_of_files_go_both_ways_and_by_purpose(db: Database) -> None:
    for number in range(6):
        files.create(db, row(number, "fine-tune" if number % 2 else "fine-tune-results"))

    def found(**options: object) -> tuple[list[int], bool]:
        page = files.list_page(db, **options)  # type: ignore[arg-type]
        return [int(item.id.removeprefix("file-")) for item in page.items], page.has_more

    assert found() == ([5, 4, 3, 2, 1, 0], False)
    assert found(order="asc", limit=4) == ([0, 1, 2, 3], True)
    assert found(order="asc", after="file-3", limit=2) == ([4, 5], False)
    assert found(purpose="fine-tune", after="file-4") == ([3, 1], False)
    with pytest.raises(InvalidRequest) as caught:
        found(after="file-9")
    assert caught.value.param == "after"


def test_a_file_that_a_job_needs_stays(db: Database, new_job: NewJob) -> None:
    files.create(db, row(1))
    job = new_job(status="paused", validation_file="file-1")
    for file_id in (job.training_file, "file-1"):
        with pytest.raises(InvalidRequest, match=rf"{job.id} \(status 'paused'\)"):
            files.delete(db, file_id)
    jobs.request_cancel(db, job.id)
    for file_id in (job.training_file, "file-1"):
        files.delete(db, file_id)


def test_of_deleting_a_file_and_creating_its_job_one_wins(db: Database, database_url: str, new_job: NewJob) -> None:
    other = Database.open(database_url)
    template = new_job()
    for number in range(10):
        file, gate = files.create(db, row(number)), threading.Barrier(2)
        job = replace(template, id=f"ftjob-{number}", training_file=file.id)

        def create(job: Job, gate: threading.Barrier) -> None:
            gate.wait()
            jobs.create(db, job)

        def delete(job: Job, gate: threading.Barrier) -> None:
            gate.wait()
            files.delete(other, job.training_file)

        with ThreadPoolExecutor(2) as pool:
            errors = [pool.submit(create, job, gate).exception, pool.submit(delete, job, gate).exception]
            outcome = [type(error()) for error in errors]
        assert outcome in ([type(None), InvalidRequest], [FileNotFound, type(None)])
    other.close()


def test_models_are_listed_newest_first_and_kept_while_needed(db: Database, new_job: NewJob) -> None:
    job = new_job(status="succeeded")
    made = [ModelRow(f"ft:base:me::{n}", job.id, "base", n, f"d{n}", "lora", 5, is_checkpoint=n == 0) for n in range(3)]
    db.write(lambda conn: conn.execute(models_table.insert(), [item.__dict__ for item in made]))
    assert list(models.list(db)) == made[::-1]
    user = new_job(model=made[1].name)
    with pytest.raises(InvalidRequest, match=user.id):
        models.delete(db, made[1].name)
    jobs.request_cancel(db, user.id)
    assert models.delete(db, made[1].name) == made[1]
    for ask in (models.get, models.delete):
        with pytest.raises(ModelNotFound):
            ask(db, made[1].name)
