"""What Alembic runs: the migrations on the connection it was handed, inside the transaction that is already open there."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
