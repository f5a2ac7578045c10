"""Curves keyed by Optuna's trial id, as databases had them before the tables had a version."""

from __future__ import annotations

revision, down_revision = "1", None


def upgrade() -> None:
    """Nothing to do: such a database has the table."""
