"""Our tables in a study's database, and the version they have there.

A table changes in two places: here, which is what a new database gets, and as one revision in
``migrations/versions``, which changes databases that exist. The curves have a column for each field
of `Evaluation`; the revision of a new one is::

    revision, down_revision = "4", "3"

    def upgrade() -> None:
        op.add_column("hpo_mab_curves", sa.Column("name", sa.Double, nullable=True))

Revisions are numbered by their files, ``v3_name.py``; `HEAD` is the newest. A process that finds an
older number upgrades the database, with its lock held, when it opens it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import sqlalchemy as sa

from hpo_mab._errors import StorageError, hide_passwords
from hpo_mab.storage._process import Locks
from hpo_mab.training import Evaluation

_MIGRATIONS = Path(__file__).with_name("migrations")
#: The revision that the tables below have.
HEAD = str(
    max(int(path.stem.partition("_")[0][1:]) for path in _MIGRATIONS.glob("versions/v*_*.py"))
)
#: Of a database that was made before the tables had a version.
_UNVERSIONED = "1"
_UNVERSIONED_TABLE = "hpo_mab_evaluations"

_metadata = sa.MetaData()
# Named and made as Alembic makes it; Optuna's is a separate one.
VERSION_TABLE = "hpo_mab_schema"
_versions = sa.Table(
    VERSION_TABLE, _metadata, sa.Column("version_num", sa.String(32), primary_key=True)
)

#: An evaluation a row. ``curve`` is a number that no other curve ever has: databases give ids of
#: deleted trials out again. A trial holds it as a system attribute, see `CurveStore`.
CURVES = sa.Table(
    "hpo_mab_curves",
    _metadata,
    sa.Column("curve", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("steps", sa.BigInteger, nullable=False),
    sa.Column("examples", sa.BigInteger, nullable=False),
    *(
        sa.Column(field.name, sa.Double, nullable=True)
        for field in dataclasses.fields(Evaluation)
        if field.name not in {"index", "steps", "examples", "averaged"}
    ),
    sa.Column("averaged", sa.Boolean, nullable=True),
)

#: Compressed parts of a record of examples. ``record`` is a number that no other record ever has;
#: a study holds it as a system attribute, see `ExampleStore`.
EXAMPLES = sa.Table(
    "hpo_mab_examples",
    _metadata,
    sa.Column("record", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("labels", sa.String(64), nullable=False),
    sa.Column("trials", sa.Integer, nullable=False),
    sa.Column("columns", sa.Integer, nullable=False),
    # MySQL makes it as large as the length needs, which without one is 64 KiB.
    sa.Column("data", sa.LargeBinary(2**24 - 1), nullable=False),
)


def prepare_tables(engine: sa.Engine) -> None:
    """Make our tables where there are none, and bring older ones up to date.

    Raises:
        StorageError: A later version of this package has changed them.
    """
    if _is_current(engine):
        return
    # One process at a time: a second one would raise because the tables exist.
    with Locks(engine).hold(VERSION_TABLE):
        if _is_current(engine):
            return
        with engine.begin() as connection:
            if _version(connection) is None and not _has(connection, _UNVERSIONED_TABLE):
                _metadata.create_all(connection)
                connection.execute(_versions.insert().values(version_num=HEAD))
            else:
                upgrade(connection)


def upgrade(connection: sa.Connection, *, to: str = HEAD) -> None:
    """Run the revisions that a database lacks; one that was cut off is run again from its start.

    Args:
        connection: In a transaction.
        to: The revision to stop at.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    if _version(connection) is None:
        command.stamp(config, _UNVERSIONED)
    command.upgrade(config, to)


def _is_current(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        found = _version(connection)
    if found is not None and int(found) > int(HEAD):
        shown = hide_passwords(engine.url.render_as_string(hide_password=True))
        raise StorageError(
            f"Storage {shown} was written by a later hpo-mab (schema {found}; this one knows "
            f"schemas up to {HEAD}). Install that version from its clone: pip install ."
        )
    return found == HEAD


def _version(connection: sa.Connection) -> str | None:
    if not _has(connection, VERSION_TABLE):
        return None
    return connection.scalar(sa.select(_versions.c.version_num))


def _has(connection: sa.Connection, table: str) -> bool:
    return bool(sa.inspect(connection).has_table(table))
