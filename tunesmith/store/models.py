"""Fine-tuned models and checkpoints that can be chatted with, by name. Bases are in `bases`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, select
from sqlalchemy import delete as sql_delete

from tunesmith.domain.jobs import TERMINAL
from tunesmith.errors import InvalidRequest, ModelNotFound
from tunesmith.store import schema
from tunesmith.store.database import Database

_models, _jobs = schema.models, schema.jobs


@dataclass(frozen=True)
class ModelRow:
    """One model that a job made. `directory` is relative to the data directory."""

    name: str
    job_id: str
    #: The base; of an adapter, what it was trained on: a base or a fully tuned model.
    base: str
    #: The optimizer step whose weights it has.
    step: int
    directory: str
    kind: Literal["lora", "full"]
    created_at: int
    is_checkpoint: bool = False


def get(db: Database, name: str) -> ModelRow:
    """Return the model or checkpoint of this name. Raises: ModelNotFound."""
    return db.read(lambda conn: _get(conn, name))


def list(db: Database) -> Sequence[ModelRow]:
    """Return all models and checkpoints, newest first."""
    query = select(_models).order_by(_models.c.number.desc())
    return db.read(lambda conn: [schema.build(ModelRow, row) for row in conn.execute(query)])


def delete(db: Database, name: str) -> ModelRow:
    """Forget a model or checkpoint and return what it was; its directory is the caller's to delete.

    Raises: ModelNotFound; InvalidRequest while a job that starts from it is not over, or an adapter of ours sits on it.
    """

    def write(conn: Connection) -> ModelRow:
        row = _get(conn, name)
        query = select(_jobs.c.id, _jobs.c.status).where(_jobs.c.model == name, _jobs.c.status.not_in(TERMINAL))
        job = conn.execute(query.limit(1)).one_or_none()
        if job is not None:
            raise InvalidRequest(f"Model {name} is needed by job {job.id} (status '{job.status}'). Cancel or await it.", param="model")
        above = conn.execute(select(_models.c.name).where(_models.c.base == name).limit(1)).scalar_one_or_none()
        if above is not None:
            raise InvalidRequest(f"Model {name} is what {above} was trained on, and is needed by it. Delete that one first.", param="model")
        conn.execute(sql_delete(_models).where(_models.c.name == name))
        return row

    return db.write(write)


def _get(conn: Connection, name: str) -> ModelRow:
    row = conn.execute(select(_models).where(_models.c.name == name)).one_or_none()
    if row is None:
        raise ModelNotFound(name)
    return schema.build(ModelRow, row)
