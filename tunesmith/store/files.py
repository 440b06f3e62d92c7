"""Uploaded and produced files: what is known of each. The bytes are in `blobs`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Connection, insert, or_, select
from sqlalchemy import delete as sql_delete

from tunesmith.domain.jobs import TERMINAL
from tunesmith.errors import FileNotFound, InvalidRequest
from tunesmith.store import schema
from tunesmith.store.database import Database
from tunesmith.store.pages import Page, fetch

_files, _jobs = schema.files, schema.jobs


@dataclass(frozen=True)
class FileRow:
    """One file. Times are Unix seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    sha256: str
    expires_at: int | None = None
    status: str = "processed"


def create(db: Database, row: FileRow) -> FileRow:
    """Remember a file whose bytes are stored."""

    def write(conn: Connection) -> FileRow:
        if conn.execute(select(_files.c.id).where(_files.c.id == row.id)).first() is None:
            conn.execute(insert(_files).values(asdict(row)))
        return row

    return db.write(write)


def get(db: Database, file_id: str) -> FileRow:
    """Return the file. Raises: FileNotFound."""
    return db.read(lambda conn: _get(conn, file_id))


def find(db: Database, *, sha256: str, purpose: str) -> FileRow | None:
    """Return the newest file with this content, or None."""
    query = select(_files).where(_files.c.sha256 == sha256, _files.c.purpose == purpose).order_by(_files.c.number.desc()).limit(1)
    row = db.read(lambda conn: conn.execute(query).one_or_none())
    return None if row is None else schema.build(FileRow, row)


def list_page(
    db: Database,
    *,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = 10_000,
    order: Literal["asc", "desc"] = "desc",
    words: str = "",
) -> Page[FileRow]:
    """Return one page of files by creation, with `words` in their id or name. Raises: InvalidRequest when `after` is no file's id."""
    filters: list[ColumnElement[bool]] = [] if purpose is None else [_files.c.purpose == purpose]
    if words:
        filters.append(or_(_files.c.id.icontains(words, autoescape=True), _files.c.filename.icontains(words, autoescape=True)))
    return db.read(
        lambda conn: fetch(
            conn,
            _files,
            lambda row: schema.build(FileRow, row),
            order=(_files.c.created_at, _files.c.number),
            after=after,
            limit=limit,
            filters=filters,
            ascending=order == "asc",
        )
    )


def delete(db: Database, file_id: str) -> FileRow:
    """Forget a file and return what it was; its bytes are the caller's to delete.

    Raises: FileNotFound; InvalidRequest while a job that is not over needs it.
    """

    def write(conn: Connection) -> FileRow:
        row = _get(conn, file_id, lock=True)
        needs_it = or_(_jobs.c.training_file == file_id, _jobs.c.validation_file == file_id)
        job = conn.execute(select(_jobs.c.id, _jobs.c.status).where(needs_it, _jobs.c.status.not_in(TERMINAL)).limit(1)).one_or_none()
        if job is not None:
            raise InvalidRequest(f"File {file_id} is needed by job {job.id} (status '{job.status}'). Cancel or await it.", param="id")
        conn.execute(sql_delete(_files).where(_files.c.id == file_id))
        return row

    return db.write(write)


def require(conn: Connection, file_id: str, param: str) -> None:
    """Hold the file in place until the transaction ends. Raises: FileNotFound naming `param`."""
    query = select(_files.c.id).where(_files.c.id == file_id).with_for_update(read=True, key_share=True)
    if conn.execute(query).one_or_none() is None:
        raise FileNotFound(file_id, param=param)


def _get(conn: Connection, file_id: str, *, lock: bool = False) -> FileRow:
    query = select(_files).where(_files.c.id == file_id)
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise FileNotFound(file_id)
    return schema.build(FileRow, row)
