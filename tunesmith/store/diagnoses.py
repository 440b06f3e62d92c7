"""The diagnosis of each job, and the losses of its rows that it reads. Written under the fence of the job's attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update

from tunesmith.store import schema
from tunesmith.store.database import Database
from tunesmith.store.jobs import held

_row_losses, _diagnoses = schema.row_losses, schema.diagnoses


def row_losses(db: Database, job_id: str) -> list[Mapping[str, Any]]:
    """Return `RowLosses.to_dict()` of each full evaluation, oldest first, and of the training rows where they were scored."""
    query = select(_row_losses.c.data).where(_row_losses.c.job_id == job_id).order_by(_row_losses.c.step, _row_losses.c.of)
    return db.read(lambda conn: list(conn.execute(query).scalars()))


def read(db: Database, job_id: str) -> Mapping[str, Any] | None:
    """Return the newest `Diagnosis.to_dict()` with the `step` it was made at, or None before the first."""
    query = select(_diagnoses.c.data).where(_diagnoses.c.job_id == job_id)
    return db.read(lambda conn: conn.execute(query).scalar_one_or_none())


def record_row_losses(db: Database, job_id: str, fence: int, data: Mapping[str, Any]) -> None:
    """Store `RowLosses.to_dict()` of a full evaluation; what a resumed attempt says again replaces it. Raises: LeaseLost."""
    _replace(db, _row_losses, job_id, fence, data, step=data["step"], of=data["of"])


def record(db: Database, job_id: str, fence: int, data: Mapping[str, Any]) -> None:
    """Store `Diagnosis.to_dict()` with its `step` in place of the one before. Raises: LeaseLost."""
    _replace(db, _diagnoses, job_id, fence, data)


def _replace(db: Database, table: Table, job_id: str, fence: int, data: Mapping[str, Any], **key: int | str) -> None:
    """Write the row of a job and a key, under its fence."""

    def write(conn: Connection) -> None:
        held(conn, job_id, fence)
        same = [table.c.job_id == job_id, *(table.c[name] == value for name, value in key.items())]
        if not conn.execute(update(table).where(*same).values(data=data)).rowcount:
            conn.execute(insert(table).values(job_id=job_id, data=data, **key))

    db.write(write)
