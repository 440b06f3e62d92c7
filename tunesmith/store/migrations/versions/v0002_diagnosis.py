"""Each job's diagnosis, and what it reads besides metrics: the loss of single rows, and what was found in the data."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the tables and the column."""
    op.create_table(
        "row_losses",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("of", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step", "of", name="row_losses_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="row_losses_job_id_fk"),
    )
    op.create_table(
        "diagnoses",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="diagnoses_pk"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="diagnoses_job_id_fk"),
    )
    op.add_column("jobs", sa.Column("data_findings", sa.JSON, nullable=True))
