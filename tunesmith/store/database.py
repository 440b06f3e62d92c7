"""The database: opening and migrating it, one way to read, one way to write, one clock. Knows no table.

SQLite serves one host, PostgreSQL any number; the rest of the store is the same code on both. Three rules make that so:
every write is one short transaction that takes the write lock at its start and is tried again when another got in the
way; leases are measured by the database's clock, never by a host's; text or numbers that one of the two could not hold
are refused on both.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from json import dumps
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
from sqlalchemy import URL, Connection, Double, Engine, column, create_engine, event, exc, inspect, make_url, select, table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from tunesmith.errors import DatabaseUnavailable, InvalidRequest, TunesmithError
from tunesmith.store import schema

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: Seconds for which a transaction is tried again before the caller hears that the database is unavailable.
PATIENCE: Final = 30.0
#: The first SQLite whose write-ahead log cannot be corrupted by two connections resetting it at once (3.7.0 to 3.51.2 can).
_SAFE_WAL: Final = (3, 51, 3)
#: Serialization failure, deadlock, a lock or a transaction timed out, too many connections, three ways of a server to go.
_TRANSIENT_STATES: Final = frozenset({"40001", "40P01", "55P03", "25P03", "53300", "57P01", "57P02", "57P03"})
_LARGEST: Final = 2**63 - 1
_BAD_TEXT: Final = re.compile("[\0\ud800-\udfff]")


class Database:
    """One database, shared by the threads of a process."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        # On PostgreSQL a read of several statements sees one moment, as it does in any SQLite transaction.
        snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}
        self._reader = engine.execution_options(reading=True, **snapshot)

    @classmethod
    def open(cls, url: str) -> Database:
        """Open the database at `url`, made or migrated first if need be; safe when several processes do so at once.

        Raises: InvalidRequest for another kind of database, DatabaseUnavailable when it cannot be opened or is of a newer version.
        """
        target = _target(url)
        db = cls(_engine(target))
        try:
            if db.read(_version) != schema.HEAD:
                db.write(_migrate)
        except exc.DBAPIError as error:
            db.close()
            raise DatabaseUnavailable(f"Cannot open the database {target.render_as_string(hide_password=True)}: {error.orig}") from error
        except TunesmithError as error:
            db.close()
            raise DatabaseUnavailable(f"Cannot open the database {target.render_as_string(hide_password=True)}: {error.message}") from error
        return db

    @property
    def dialect(self) -> str:
        """Which of the two it is: sqlite or postgresql."""
        return self._writer.dialect.name

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one write transaction and return what it returns.

        It is run again from its start when another writer was in the way or the connection was lost, at most for
        `PATIENCE` seconds. A connection lost during COMMIT leaves it open whether the first run counted, so `work` must
        mean the same when it has been done already.
        Raises: DatabaseUnavailable when it never got through.
        """
        return _persist(self._writer, work)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one read transaction, a snapshot, and return what it returns."""
        return _persist(self._reader, work)

    def close(self) -> None:
        """Close the idle connections."""
        self._writer.dispose()


class clock(FunctionElement[float]):
    """The database's time in Unix seconds, as an SQL expression."""

    type = Double()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: object, **options: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgresql_clock(element: clock, compiler: object, **options: object) -> str:
    # now() stands still within a transaction; a lease must not begin in the past because its writer had to wait.
    return "extract(epoch from clock_timestamp())::double precision"


def now(conn: Connection) -> float:
    """Return the database's time in Unix seconds."""
    return float(conn.execute(select(clock())).scalar_one())


def refuse_unstorable(value: object) -> None:
    """Let `value` and everything in it pass if both databases can hold it.

    Raises: InvalidRequest for NUL characters, lone surrogates, integers beyond 64 bits, NaN and infinities.
    """
    if isinstance(value, Mapping):
        value = (*value.keys(), *value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            refuse_unstorable(inner)
    elif isinstance(value, str) and _BAD_TEXT.search(value):
        raise InvalidRequest(f"Text with a NUL character or half a surrogate pair cannot be stored: {value[:80]!r}. Remove it.")
    elif isinstance(value, int) and not -_LARGEST - 1 <= value <= _LARGEST:
        raise InvalidRequest("An integer is out of range. Accepted: -2^63 to 2^63 - 1.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{value} cannot be stored. Expected a finite number.")


def _to_json(value: object) -> str:
    refuse_unstorable(value)
    return dumps(value, ensure_ascii=False, separators=(",", ":"))


def _target(url: str) -> URL:
    try:
        target = make_url(url)
    except exc.ArgumentError as error:
        raise InvalidRequest("The database URL cannot be read. Expected postgresql+psycopg://user@host/name or sqlite:////path.") from error
    if target.drivername in ("postgres", "postgresql"):
        target = target.set(drivername="postgresql+psycopg")
    if target.drivername == "sqlite" and target.database not in (None, "", ":memory:"):
        return target
    if target.drivername == "postgresql+psycopg":
        return target
    shown = target.render_as_string(hide_password=True)
    raise InvalidRequest(f"No such kind of database: {shown}. Expected postgresql+psycopg://user@host/name or sqlite:////path.")


def _engine(target: URL) -> Engine:
    json: dict[str, Any] = {"json_serializer": _to_json, "json_deserializer": orjson.loads}
    if target.drivername == "sqlite":
        _make_private(Path(str(target.database)))
        # SQLite's own busy handler starves writers (seconds, measured); it only bridges a COMMIT waiting for its readers.
        arguments = {"timeout": 0.02, "check_same_thread": False}
        engine = create_engine(target, connect_args=arguments, **json, max_overflow=-1)
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin)
    else:
        engine = create_engine(target, connect_args={"connect_timeout": 5}, **json, max_overflow=15)
        event.listen(engine, "connect", _set_timeouts)
    event.listen(engine, "before_cursor_execute", _check_parameters)
    return engine


def _make_private(path: Path) -> None:
    """Make the file before SQLite does, for its owner only; the journal takes the file's mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise DatabaseUnavailable(f"Cannot open the database {path}: {error.strerror}. Check the directory and who owns it.") from error


def journal_mode(version: tuple[int, ...]) -> str:
    """Return the journal mode that is safe with this version of SQLite: write-ahead log only where it cannot corrupt."""
    return "wal" if version >= _SAFE_WAL else "truncate"


def _set_pragmas(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # no transaction but those that _begin begins
    wanted = journal_mode(sqlite3.sqlite_version_info)
    got = connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0]
    if got != wanted:
        raise DatabaseUnavailable(
            f"The database is in journal mode '{got}', set by another SQLite than this one ({sqlite3.sqlite_version}), which needs"
            f" '{wanted}'. Stop the other processes first."
        )
    connection.execute("PRAGMA synchronous=FULL")  # what was acknowledged outlives a power cut
    connection.execute("PRAGMA foreign_keys=ON")


def _set_timeouts(connection: Any, record: object) -> None:
    # A host that vanishes in mid-transaction must not keep its locks until TCP notices; transactions here take milliseconds.
    connection.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.execute("SET lock_timeout = '5s'")
    connection.commit()


def _begin(conn: Connection) -> None:
    # A transaction that began as a reader and then writes could only fail when another writer is there: never upgrade.
    conn.exec_driver_sql("BEGIN" if conn.get_execution_options().get("reading") else "BEGIN IMMEDIATE")


def _check_parameters(conn: Connection, cursor: object, statement: str, parameters: object, context: object, many: bool) -> None:
    refuse_unstorable(parameters)


def _persist(engine: Engine, work: Callable[[Connection], T]) -> T:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with engine.begin() as conn:
                return work(conn)
        except exc.TimeoutError as error:
            raise DatabaseUnavailable("All connections to the database are in use. Try again later.") from error
        except exc.StatementError as error:
            if isinstance(error.orig, TunesmithError):
                raise error.orig from None
            pause = _pause(error)
            if pause is None:
                raise
            if time.monotonic() + pause > deadline:
                raise DatabaseUnavailable(f"The database was busy or out of reach for {PATIENCE:.0f} s. Try again later.") from error
            _log.debug("trying a transaction again: %s", error.orig)
        time.sleep(pause)


def _pause(error: exc.StatementError) -> float | None:
    """Return the seconds to wait before trying again, or None where that would not help."""
    if isinstance(error.orig, sqlite3.Error):
        busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        return random.uniform(0.0005, 0.004) if busy else None
    state: str | None = getattr(error.orig, "sqlstate", None)
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    unreachable = isinstance(error, exc.OperationalError) and state is None
    if lost or unreachable or (state is not None and (state in _TRANSIENT_STATES or state.startswith("08"))):
        return random.uniform(0.01, 0.2)
    return None


def _version(conn: Connection) -> str | None:
    if not inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar_one_or_none()


def _migrate(conn: Connection) -> None:
    from tunesmith.store.migrations import upgrade  # noqa: PLC0415 (a current database needs no Alembic; it loads in 0.1 s)

    upgrade.run(conn, _version)
