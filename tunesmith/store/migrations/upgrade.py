"""Bring a database to the newest schema. The only importer of Alembic; needs no alembic.ini and no working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

from tunesmith.errors import Unavailable

#: Any fixed number: whoever migrates a PostgreSQL database holds it.
_LOCK = 8_246_517_301


def config() -> Config:
    """Return Alembic's configuration for the migrations beside this file."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return made


def run(conn: Connection, version: Callable[[Connection], str | None]) -> None:
    """Migrate in the open write transaction: all of it or nothing. Those who come at the same time wait, then find it done.

    Raises: Unavailable when the schema is one that this code does not know.
    """
    if conn.dialect.name == "postgresql":  # SQLite's write lock is held already
        conn.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    settings = config()
    found = version(conn)
    known = {script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()}
    if found is not None and found not in known:
        raise Unavailable(f"Its schema '{found}' was made by a newer version of tunesmith. Upgrade this one.")
    settings.attributes["connection"] = conn
    command.upgrade(settings, "head")
