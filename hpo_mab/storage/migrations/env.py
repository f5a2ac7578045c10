"""Where Alembic finds the connection and the table of our revision."""

from __future__ import annotations

from alembic import context

from hpo_mab.storage._tables import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
