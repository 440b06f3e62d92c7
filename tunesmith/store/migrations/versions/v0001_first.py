"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables, and the trigger that keeps a terminal status final."""
    _jobs()
    _events_and_metrics()
    _checkpoints()
    _files()
    _models()
    for statement in _TERMINAL[op.get_bind().dialect.name]:
        op.execute(statement)


def _text(name: str, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _integer(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _json(name: str, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.JSON, nullable=nullable)


def _number() -> sa.Column[int]:
    return sa.Column("number", _Big, sa.Identity(always=True), nullable=False)


def _jobs() -> None:
    op.create_table(
        "jobs",
        _number(),
        *(_text("id"), _integer("created_at"), _text("status"), _text("model")),
        *(_text("training_file"), _text("validation_file", nullable=True), _text("suffix", nullable=True), _integer("seed")),
        *(_json("asked"), _json("resolved", nullable=True), _json("metadata", nullable=True)),
        *(_integer("finished_at", nullable=True), _text("fine_tuned_model", nullable=True), _integer("trained_tokens", nullable=True)),
        *(_json("result_files"), _json("error", nullable=True), _integer("estimated_finish", nullable=True)),
        *(_text("request"), _integer("fence"), _integer("crashes"), _integer("last_seq")),
        *(_text("worker_id", nullable=True), sa.Column("lease_until", sa.Double), _text("request_hash", nullable=True)),
        sa.PrimaryKeyConstraint("number", name="jobs_pk"),
        sa.UniqueConstraint("id", name="jobs_id_key"),
        sa.CheckConstraint(
            "status IN ('validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')", name="jobs_status_check"
        ),
        sa.CheckConstraint("request IN ('run', 'pause', 'cancel')", name="jobs_request_check"),
    )
    op.create_index("jobs_created_at_number_index", "jobs", ["created_at", "number"])
    op.create_index("jobs_status_number_index", "jobs", ["status", "number"])
    op.create_index("jobs_request_hash_index", "jobs", ["request_hash"])


def _events_and_metrics() -> None:
    op.create_table(
        "events",
        *(_text("id"), _text("job_id"), _integer("seq"), _text("key"), _integer("created_at")),
        *(_text("level"), _text("type"), _text("message"), _json("data")),
        sa.PrimaryKeyConstraint("id", name="events_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="events_job_id_fk"),
        sa.UniqueConstraint("job_id", "seq", name="events_job_id_seq_key"),
        sa.UniqueConstraint("job_id", "key", name="events_job_id_key_key"),
    )
    op.create_table(
        "metrics",
        *(_text("job_id"), _integer("step"), _integer("seq"), _json("data")),
        sa.PrimaryKeyConstraint("job_id", "step", name="metrics_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="metrics_job_id_fk"),
        sa.UniqueConstraint("job_id", "seq", name="metrics_job_id_seq_key"),
    )


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        *(_text("id"), _text("job_id"), _integer("step"), _integer("epoch", nullable=True), _integer("created_at")),
        *(_text("directory"), _json("metrics"), _integer("tokens_seen"), _text("name", nullable=True)),
        sa.Column("listed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="checkpoints_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="checkpoints_job_id_fk"),
        sa.UniqueConstraint("name", name="checkpoints_name_key"),
        sa.UniqueConstraint("job_id", "step", name="checkpoints_job_id_step_key"),
    )


def _files() -> None:
    op.create_table(
        "files",
        _number(),
        *(_text("id"), _integer("bytes"), _integer("created_at"), _text("filename"), _text("purpose"), _text("sha256")),
        *(_integer("expires_at", nullable=True), _text("status")),
        sa.PrimaryKeyConstraint("number", name="files_pk"),
        sa.UniqueConstraint("id", name="files_id_key"),
    )
    op.create_index("files_created_at_number_index", "files", ["created_at", "number"])


def _models() -> None:
    op.create_table(
        "models",
        _number(),
        *(_text("name"), _text("job_id"), _text("base"), _integer("step"), _text("directory"), _text("kind")),
        *(_integer("created_at"), sa.Column("is_checkpoint", sa.Boolean, nullable=False)),
        sa.PrimaryKeyConstraint("number", name="models_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="models_job_id_fk"),
        sa.UniqueConstraint("name", name="models_name_key"),
        sa.CheckConstraint("kind IN ('lora', 'full')", name="models_kind_check"),
    )


_LEAVES = "OLD.status IN ('succeeded', 'failed', 'cancelled') AND NEW.status <> OLD.status"
_TERMINAL = {
    "sqlite": [
        f"""CREATE TRIGGER jobs_terminal BEFORE UPDATE OF status ON jobs WHEN {_LEAVES}
            BEGIN SELECT RAISE(ABORT, 'a terminal status is final'); END"""
    ],
    "postgresql": [
        """CREATE FUNCTION jobs_terminal() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''a terminal status is final'' USING ERRCODE = ''check_violation''; END'""",
        f"CREATE TRIGGER jobs_terminal BEFORE UPDATE OF status ON jobs FOR EACH ROW WHEN ({_LEAVES}) EXECUTE FUNCTION jobs_terminal()",
    ],
}
