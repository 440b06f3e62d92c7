"""Opening, migrating, transactions, and what may be stored."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, MetaData, Text, event, exc, insert, make_url, text

from tunesmith.errors import InvalidRequest, Unavailable
from tunesmith.store import database, files, jobs, schema
from tunesmith.store.database import Database
from tunesmith.store.migrations import upgrade

from .conftest import NewJob

FILE = files.FileRow("file-1", 2, 1, "train.jsonl", "fine-tune", "00")
OPEN = """
import sys
from tunesmith.store.database import Database
sys.stdin.read()
Database.open(sys.argv[1])
print('alembic' in sys.modules)
"""


def open_in_children(url: str, count: int, directory: Path) -> list[str]:
    """Open `url` in several processes at the same moment; return what each says."""
    start = [sys.executable, "-c", OPEN, url]
    children = [
        subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=directory)
        for _ in range(count)
    ]
    time.sleep(1)  # let them all get to the gate
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
    answers = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * count, answers
    return [out.strip() for out, _ in answers]


def test_processes_may_open_an_empty_database_at_once_from_any_directory(database_url: str, tmp_path: Path) -> None:
    assert "True" in open_in_children(database_url, 3, tmp_path)
    assert open_in_children(database_url, 1, tmp_path) == ["False"], "a current database loads no Alembic"
    begun = time.monotonic()
    Database.open(database_url).close()
    assert time.monotonic() - begun < 0.3


def test_migrations_make_the_schema(db: Database) -> None:
    def differences(metadata: MetaData) -> list[object]:
        return db.read(lambda conn: compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata))

    assert differences(schema.metadata) == []
    changed = MetaData()
    for table in schema.metadata.tables.values():
        table.to_metadata(changed)
    changed.tables["jobs"].append_column(Column("forgotten", Text))
    assert differences(changed), "the comparison would notice"


def test_head_is_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(upgrade.config()).get_current_head() == schema.HEAD


def test_a_newer_schema_is_refused_and_left_alone(db: Database, database_url: str) -> None:
    db.write(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(Unavailable, match=r"9999.*newer version"):
        Database.open(database_url)
    assert db.read(lambda conn: conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one()) == "9999"


def test_who_comes_during_a_migration_waits_for_it(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Future[Database]] = []

    def migrate(conn: Connection) -> None:
        original(conn)
        if not opened:
            opened.append(pool.submit(Database.open, database_url))
            assert not wait(opened, timeout=0.3).done

    original = database._migrate
    monkeypatch.setattr(database, "_migrate", migrate)
    with ThreadPoolExecutor() as pool:
        Database.open(database_url).close()
        opened[0].result().close()


def test_a_failed_migration_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_late(conn: Connection) -> None:
        original(conn)
        raise RuntimeError("power cut")

    original = database._migrate
    monkeypatch.setattr(database, "_migrate", fail_late)
    with pytest.raises(RuntimeError):
        Database.open(database_url)
    monkeypatch.undo()
    Database.open(database_url).close()  # would find half a schema


def test_what_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Unavailable, match=r"file\.db"):
        Database.open(f"sqlite:///{tmp_path / 'file.db'}")
    for url in ("mysql://me:hunter2@host/db", "sqlite://", "nonsense"):
        with pytest.raises(InvalidRequest) as caught:
            Database.open(url)
        assert "postgresql+psycopg://" in caught.value.message
        assert "hunter2" not in caught.value.message


def test_write_ahead_log_only_where_sqlite_is_safe() -> None:
    assert [database.journal_mode(version) for version in ((3, 40, 1), (3, 51, 2), (3, 51, 3), (3, 52, 0))] == [
        "truncate", "truncate", "wal", "wal",
    ]  # fmt: skip


def test_sqlite_is_durable_checked_and_private(tmp_path: Path) -> None:
    path = tmp_path / "data" / "tunesmith.db"
    db = Database.open(f"sqlite:///{path}")

    def pragmas(conn: Connection) -> list[object]:
        return [conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert db.read(pragmas) == [database.journal_mode(sqlite3.sqlite_version_info), 2, 1]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_writers_take_the_lock_at_their_start_and_readers_never(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path / 'tunesmith.db'}")

    def lock_is_free(conn: Connection) -> bool:
        with closing(sqlite3.connect(tmp_path / "tunesmith.db", timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True

    assert (db.write(lock_is_free), db.read(lock_is_free)) == (False, True)


def test_references_are_enforced(db: Database) -> None:
    with pytest.raises(exc.IntegrityError, match=r"(?i)foreign key"):
        db.write(lambda conn: conn.execute(insert(schema.metrics).values(job_id="ftjob-none", step=1, seq=1, data={})))


@pytest.mark.parametrize("value", ["a\0b", "half \ud83d", "\udc00"])
def test_text_that_one_database_could_not_hold_is_refused_by_both(db: Database, new_job: NewJob, value: str) -> None:
    for write in (
        lambda: files.create(db, replace(FILE, filename=value)),
        lambda: files.get(db, value),
        lambda: new_job(metadata={"key": value}),
        lambda: new_job(metadata={value: "value"}),
        lambda: new_job(asked={"deep": [{"deeper": value}]}),
        lambda: jobs.list_page(db, metadata={"key": value}),
    ):
        with pytest.raises(InvalidRequest):
            write()
    assert jobs.counts(db) == {}


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, math.nan, math.inf])
def test_numbers_that_one_database_could_not_hold_are_refused_by_both(db: Database, new_job: NewJob, value: float) -> None:
    for write in (lambda: files.create(db, replace(FILE, bytes=value)), lambda: new_job(asked={"x": [value]})):
        with pytest.raises(InvalidRequest):
            write()


def test_everything_else_comes_back_as_it_was(db: Database, new_job: NewJob) -> None:
    value = "\\u0000 é 😀 \x7f \ufeff \u2028 ' \" %s :name $1 ? "
    numbers = [2**63 - 1, -(2**63), 0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, True, None]
    job = new_job(metadata={value: value}, asked={"numbers": numbers, value: {}}, suffix=value, seed=2**63 - 1)
    assert jobs.get(db, job.id) == job
    assert (job.metadata, job.suffix, job.seed) == ({value: value}, value, 2**63 - 1)
    assert repr(job.asked) == repr({"numbers": numbers, value: {}})


def test_a_write_that_raises_leaves_nothing(db: Database) -> None:
    def work(conn: Connection) -> None:
        conn.execute(insert(schema.files).values(FILE.__dict__))
        raise ValueError("after the insert")

    with pytest.raises(ValueError, match="after the insert"):
        db.write(work)
    assert files.list_page(db).items == ()


def test_a_read_sees_one_moment(db: Database) -> None:
    seen = []
    writer = threading.Thread(target=files.create, args=(db, FILE))

    def work(conn: Connection) -> None:
        seen.append(conn.execute(text("SELECT count(*) FROM files")).scalar_one())
        writer.start()
        writer.join(0.2)  # SQLite without a write-ahead log makes the writer wait, PostgreSQL does not
        seen.append(conn.execute(text("SELECT count(*) FROM files")).scalar_one())

    db.read(work)
    writer.join()
    assert seen == [0, 0]
    assert files.get(db, FILE.id) == FILE


def test_the_clock_is_the_databases_and_goes_on_within_a_transaction(db: Database) -> None:
    def work(conn: Connection) -> tuple[float, float]:
        first = database.now(conn)
        time.sleep(0.05)
        return first, database.now(conn)

    first, second = db.write(work)
    assert abs(first - time.time()) < 5
    assert second > first


def test_a_writer_waits_for_another(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    db, other = Database.open(database_url), Database.open(database_url)
    files.create(db, FILE)
    locked, done = threading.Event(), threading.Event()

    def hold(conn: Connection) -> None:
        conn.execute(text("UPDATE files SET bytes = 3"))
        locked.set()
        done.wait(10)

    if db.dialect == "postgresql":
        event.listen(db._writer, "begin", lambda conn: conn.exec_driver_sql("SET LOCAL lock_timeout = '50ms'"))
    holder = threading.Thread(target=other.write, args=(hold,))
    holder.start()
    locked.wait()
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    with pytest.raises(Unavailable):
        files.delete(db, FILE.id)
    monkeypatch.undo()
    threading.Timer(0.3, done.set).start()
    assert files.delete(db, FILE.id).bytes == 3
    holder.join()


def test_a_lost_connection_is_tried_again(postgres: object) -> None:
    db = Database.open(postgres())  # type: ignore[operator]
    tries = []

    def work(conn: Connection) -> None:
        conn.execute(insert(schema.files).values(FILE.__dict__))
        tries.append(1)
        if len(tries) == 1:
            conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        if len(tries) == 2:
            conn.execute(text("DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$"))

    db.write(work)
    assert len(tries) == 3
    assert files.list_page(db).items == (FILE,)
    with pytest.raises(exc.DBAPIError):  # what trying again cannot help is said at once
        db.write(lambda conn: conn.execute(text("SELECT no_such_function()")))


def test_postgres_is_found_under_its_short_name(postgres: object) -> None:
    url = make_url(postgres())  # type: ignore[operator]
    Database.open(url.set(drivername="postgresql").render_as_string(hide_password=False)).close()
