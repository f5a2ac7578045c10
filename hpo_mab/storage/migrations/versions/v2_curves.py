"""Curves keyed by a number of their own, with a column for averaged weights.

MySQL commits at each change of a table, and so does SQLite at the first. So every step here can be
repeated after the process was killed in it.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision, down_revision = "2", "1"

_KEY = "hpo_mab:curve"
_FIGURES = (
    "index",
    "steps",
    "examples",
    "seconds",
    "sampler_seconds",
    "accuracy",
    "loss",
    "train_loss",
    "learning_rate",
    "reward_rate",
    "concentration",
)
_old = sa.table("hpo_mab_evaluations", *map(sa.column, ("trial_id", *_FIGURES)))
_new = sa.table("hpo_mab_curves", *map(sa.column, ("curve", *_FIGURES, "averaged")))
# Optuna's own tables.
_attributes = sa.table(
    "trial_system_attributes", *map(sa.column, ("trial_id", "key", "value_json"))
)
_reports = sa.table("trial_intermediate_values", sa.column("trial_id"))


def upgrade() -> None:
    """Move the curves into a table of their own numbers; leave out those of deleted trials."""
    connection = op.get_bind()
    tables = sa.inspect(connection).get_table_names()
    if "hpo_mab_curves" not in tables:
        op.create_table(
            "hpo_mab_curves",
            sa.Column("curve", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("steps", sa.BigInteger, nullable=False),
            sa.Column("examples", sa.BigInteger, nullable=False),
            *(sa.Column(name, sa.Double, nullable=True) for name in _FIGURES[3:]),
            sa.Column("averaged", sa.Boolean, nullable=True),
        )
    if "hpo_mab_evaluations" in tables:
        _move(connection)
        op.drop_table("hpo_mab_evaluations")
    # On servers; locks are the server's own now.
    if "hpo_mab_locks" in tables:
        op.drop_table("hpo_mab_locks")


def _move(connection: sa.Connection) -> None:
    connection.execute(_new.delete())
    connection.execute(_attributes.delete().where(_attributes.c.key == _KEY))
    # A trial without a report has no curve: what is there is of a deleted trial of its id.
    trials = connection.scalars(
        sa.select(_old.c.trial_id).where(_old.c.trial_id.in_(sa.select(_reports.c.trial_id)))
    )
    rows = [
        {"trial_id": trial_id, "key": _KEY, "value_json": str(secrets.randbits(62))}
        for trial_id in sorted(set(trials))
    ]
    if not rows:
        return
    connection.execute(_attributes.insert(), rows)
    number = sa.cast(_attributes.c.value_json, sa.BigInteger)
    connection.execute(
        _new.insert().from_select(
            ["curve", *_FIGURES],
            sa.select(number, *(_old.c[name] for name in _FIGURES)).join(
                _attributes,
                sa.and_(_attributes.c.trial_id == _old.c.trial_id, _attributes.c.key == _KEY),
            ),
        )
    )
