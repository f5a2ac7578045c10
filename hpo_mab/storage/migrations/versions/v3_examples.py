"""A table for the record of examples of each study."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "3", "2"


def upgrade() -> None:
    """Make the table, unless a process that was killed here has made it."""
    if "hpo_mab_examples" in sa.inspect(op.get_bind()).get_table_names():
        return
    op.create_table(
        "hpo_mab_examples",
        sa.Column("record", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("labels", sa.String(64), nullable=False),
        sa.Column("trials", sa.Integer, nullable=False),
        sa.Column("columns", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary(2**24 - 1), nullable=False),
    )
