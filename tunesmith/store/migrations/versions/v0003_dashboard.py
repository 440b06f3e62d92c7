"""What lists and charts ask of each step without reading its figures: when it was, and its full validation loss if it has one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns, filled for the steps there are; when these were is only known to a second, by their events."""
    op.add_column("metrics", sa.Column("created_at", sa.Double, nullable=True))
    op.add_column("metrics", sa.Column("full_valid_loss", sa.Double, nullable=True))
    postgresql = op.get_bind().dialect.name == "postgresql"
    loss = "(data ->> 'full_valid_loss')::double precision" if postgresql else "json_extract(data, '$.full_valid_loss')"
    said = "SELECT created_at FROM events WHERE events.job_id = metrics.job_id AND events.key = 'step:' || metrics.step"
    op.execute(f"UPDATE metrics SET full_valid_loss = {loss}, created_at = ({said})")
    op.create_index(
        "metrics_job_id_seq_full_index", "metrics", ["job_id", "seq"],
        sqlite_where=sa.text("full_valid_loss IS NOT NULL"), postgresql_where=sa.text("full_valid_loss IS NOT NULL"),
    )  # fmt: skip
