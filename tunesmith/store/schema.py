"""The tables as they are now. How they came to be so is in migrations/; a test holds the two together.

A job's events and metrics share one gapless sequence of numbers, counted in `jobs.last_seq`. `number` columns give rows
an order of arrival, for queues and pages; they never leave the store.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Row,
    Table,
    Text,
    UniqueConstraint,
)

from tunesmith.domain.jobs import Status

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)

#: The newest revision in migrations/versions.
HEAD: Final = "0003"

metadata: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_index",
        "fk": "%(table_name)s_%(column_0_N_name)s_fk",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)
_Big = BigInteger().with_variant(Integer, "sqlite")
_Json = JSON(none_as_null=True)


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, **{"nullable": False} | options)


def _integer(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, **{"nullable": False} | options)


def _number() -> Column[int]:
    return Column("number", _Big, Identity(always=True), primary_key=True)


def _job_id() -> Column[str]:
    return Column("job_id", Text, ForeignKey("jobs.id"), nullable=False)


jobs = Table(
    "jobs",
    metadata,
    _number(),
    _text("id", unique=True),
    _integer("created_at"),
    _text("status"),
    _text("model"),
    _text("training_file"),
    _text("validation_file", nullable=True),
    _text("suffix", nullable=True),
    _integer("seed"),
    Column("asked", _Json, nullable=False),
    Column("resolved", _Json),
    Column("metadata", _Json),
    _integer("finished_at", nullable=True),
    _text("fine_tuned_model", nullable=True),
    _integer("trained_tokens", nullable=True),
    Column("result_files", _Json, nullable=False),
    Column("error", _Json),
    _integer("estimated_finish", nullable=True),
    _text("request"),
    _integer("fence"),
    _integer("crashes"),
    _integer("last_seq"),
    # Who holds the job and until when, by the database's clock. A lease that ran out was not given back: its holder died.
    _text("worker_id", nullable=True),
    Column("lease_until", Double),
    _text("request_hash", nullable=True),
    Column("data_findings", _Json),
    CheckConstraint(f"status IN ({', '.join(repr(status) for status in get_args(Status))})", "status"),
    CheckConstraint("request IN ('run', 'pause', 'cancel')", "request"),
    Index(None, "created_at", "number"),
    Index(None, "status", "number"),
    Index(None, "request_hash"),
)

events = Table(
    "events",
    metadata,
    _text("id", primary_key=True),
    _job_id(),
    _integer("seq"),
    _text("key"),
    _integer("created_at"),
    _text("level"),
    _text("type"),
    _text("message"),
    Column("data", _Json, nullable=False),
    UniqueConstraint("job_id", "seq"),
    UniqueConstraint("job_id", "key"),
)

metrics = Table(
    "metrics",
    metadata,
    _job_id(),
    _integer("step"),
    _integer("seq"),
    Column("data", _Json, nullable=False),
    # When the step was first said, by the database's clock; unknown for some of the oldest.
    Column("created_at", Double),
    # Also in `data`; here for lists of jobs, which must not read every step.
    Column("full_valid_loss", Double),
    PrimaryKeyConstraint("job_id", "step"),
    UniqueConstraint("job_id", "seq"),
)
_evaluated = metrics.c.full_valid_loss.is_not(None)
Index("metrics_job_id_seq_full_index", metrics.c.job_id, metrics.c.seq, sqlite_where=_evaluated, postgresql_where=_evaluated)

row_losses = Table(
    "row_losses",
    metadata,
    _job_id(),
    _integer("step"),
    _text("of"),
    Column("data", _Json, nullable=False),
    PrimaryKeyConstraint("job_id", "step", "of"),
)

diagnoses = Table("diagnoses", metadata, _job_id(), Column("data", _Json, nullable=False), PrimaryKeyConstraint("job_id"))

checkpoints = Table(
    "checkpoints",
    metadata,
    _text("id", primary_key=True),
    _job_id(),
    _integer("step"),
    _integer("epoch", nullable=True),
    _integer("created_at"),
    _text("directory"),
    Column("metrics", _Json, nullable=False),
    _integer("tokens_seen"),
    _text("name", nullable=True, unique=True),
    Column("listed", Boolean, nullable=False),
    UniqueConstraint("job_id", "step"),
)

files = Table(
    "files",
    metadata,
    _number(),
    _text("id", unique=True),
    _integer("bytes"),
    _integer("created_at"),
    _text("filename"),
    _text("purpose"),
    _text("sha256"),
    _integer("expires_at", nullable=True),
    _text("status"),
    Index(None, "created_at", "number"),
)

models = Table(
    "models",
    metadata,
    _number(),
    _text("name", unique=True),
    _job_id(),
    _text("base"),
    _integer("step"),
    _text("directory"),
    _text("kind"),
    _integer("created_at"),
    Column("is_checkpoint", Boolean, nullable=False),
    CheckConstraint("kind IN ('lora', 'full')", "kind"),
)


def build(kind: type[D], row: Row[Any], **given: Any) -> D:
    """Return the dataclass `kind` filled from the columns of its fields' names; `given` values go before the row's."""
    return kind(**{field.name: row._mapping[field.name] for field in fields(kind) if field.name not in given}, **given)
