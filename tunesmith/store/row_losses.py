"""The losses of a job's validation rows at each full evaluation. Written under the fence of the job's attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from tunesmith.store import schema
from tunesmith.store.database import Database
from tunesmith.store.jobs import held

_row_losses = schema.row_losses


def read(db: Database, job_id: str) -> list[Mapping[str, Any]]:
    """Return `RowLosses.to_dict()` of each full evaluation, oldest first."""
    query = select(_row_losses.c.data).where(_row_losses.c.job_id == job_id).order_by(_row_losses.c.step)
    return db.read(lambda conn: list(conn.execute(query).scalars()))


def record(db: Database, job_id: str, fence: int, data: Mapping[str, Any]) -> None:
    """Store `RowLosses.to_dict()` of a full evaluation; what a resumed attempt says again replaces it. Raises: LeaseLost."""

    def write(conn: Connection) -> None:
        held(conn, job_id, fence)
        same = (_row_losses.c.job_id == job_id, _row_losses.c.step == data["step"])
        if not conn.execute(update(_row_losses).where(*same).values(data=data)).rowcount:
            conn.execute(insert(_row_losses).values(job_id=job_id, step=data["step"], data=data))

    db.write(write)
