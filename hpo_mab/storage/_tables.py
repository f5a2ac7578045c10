"""Tables of a study's database, Optuna's and ours, with their statements and our version.

The curves have a column for each field of `Evaluation`. A column that is added to a table of ours
must allow NULL, and needs a higher `VERSION`: existing databases then get it, too.

A process that finds an older version upgrades the database, with its lock held, when it opens it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from hpo_mab._errors import StorageError, hide_passwords
from hpo_mab.storage._process import locker
from hpo_mab.training import Evaluation

#: Optuna's own tables.
STUDIES = models.StudyModel.__table__
TRIALS = models.TrialModel.__table__
PARAMS = models.TrialParamModel.__table__
VALUES = models.TrialValueModel.__table__
REPORTS = models.TrialIntermediateValueModel.__table__
USER_ATTRIBUTES = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRIBUTES = models.TrialSystemAttributeModel.__table__
STUDY_ATTRIBUTES = models.StudySystemAttributeModel.__table__
HEARTBEATS = models.TrialHeartbeatModel.__table__

_Value = models.TrialValueModel
_Report = models.TrialIntermediateValueModel
_row_id = operator.itemgetter(2)


def _select_part(kind: str, table: Any, row: str, name: str, number: str | None, text: str) -> Any:
    """A table of parts of trials, as rows of (kind, trial_id, row, name, number, text)."""
    columns = table.c
    return sa.select(
        sa.literal(kind).label("kind"),
        columns.trial_id.label("trial_id"),
        columns[row].label("row"),
        sa.cast(columns[name], sa.Text).label("name"),
        (sa.cast(sa.null(), sa.Double) if number is None else columns[number]).label("number"),
        sa.cast(columns[text], sa.Text).label("text"),
    )


def _all_parts(condition: Callable[[Any], Any]) -> sa.CompoundSelect[Any]:
    return sa.union_all(*(part.where(condition(part.selected_columns.trial_id)) for part in _PARTS))


def _is_of_study(column: Any) -> Any:
    # Other studies may have ids in this range, and many more of them.
    first: sa.BindParameter[int] = sa.bindparam("first")
    last: sa.BindParameter[int] = sa.bindparam("last")
    own = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == sa.bindparam("study"))
    own = own.where(TRIALS.c.trial_id.between(first, last))
    return sa.and_(column.between(first, last), column.in_(own))


_PARTS = (
    _select_part("param", PARAMS, "param_id", "param_name", "param_value", "distribution_json"),
    _select_part("value", VALUES, "trial_value_id", "objective", "value", "value_type"),
    _select_part(
        "report",
        REPORTS,
        "trial_intermediate_value_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    ),
    _select_part("user", USER_ATTRIBUTES, "trial_user_attribute_id", "key", None, "value_json"),
    _select_part(
        "system", SYSTEM_ATTRIBUTES, "trial_system_attribute_id", "key", None, "value_json"
    ),
)

# Made once: SQLAlchemy needs more time to build such a statement than a database to answer it.
#: What belongs to trials ``ids``, and to trials ``first`` to ``last`` of ``study``.
CHILDREN_OF = _all_parts(lambda column: column.in_(sa.bindparam("ids", expanding=True)))
CHILDREN_BETWEEN = _all_parts(_is_of_study)


def frozen_trials(trials: Sequence[Any], children: Iterable[Any]) -> list[FrozenTrial]:
    """Optuna's trials from rows of its tables, in the order of ``trials``.

    ``children`` are rows of `CHILDREN_OF`, maybe also of other trials.
    """
    wanted: dict[int, list[Any]] = {row.trial_id: [] for row in trials}
    for child in children:
        if child[1] in wanted:
            wanted[child[1]].append(child)
    return [_frozen(row, wanted[row.trial_id]) for row in trials]


def _frozen(row: Any, children: list[Any]) -> FrozenTrial:
    # Optuna returns them in the order in which they were written.
    children.sort(key=_row_id)
    parts: dict[str, dict[str, Any]] = {
        k: {} for k in ("param", "value", "report", "user", "system")
    }
    distributions: dict[str, BaseDistribution] = {}
    for kind, _, _, name, number, text in children:
        if kind == "param":
            distributions[name] = stored_distribution(text)
            parts[kind][name] = distributions[name].to_external_repr(number)
        elif kind == "value":
            parts[kind][name] = _Value.stored_repr_to_value(number, _Value.TrialValueType[text])
        elif kind == "report":
            reported = _Report.TrialIntermediateValueType[text]
            parts[kind][name] = _Report.stored_repr_to_intermediate_value(number, reported)
        else:
            parts[kind][name] = json.loads(text)
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[value for _, value in sorted(_by_number(parts["value"]).items())] or None,
        datetime_start=local_time(row.datetime_start),
        datetime_complete=local_time(row.datetime_complete),
        params=parts["param"],
        distributions=distributions,
        user_attrs=parts["user"],
        system_attrs=parts["system"],
        intermediate_values=_by_number(parts["report"]),
        trial_id=row.trial_id,
    )


def _by_number(values: dict[str, Any]) -> dict[int, Any]:
    return {int(name): value for name, value in values.items()}


@functools.lru_cache(maxsize=4096)
def stored_distribution(text: str) -> BaseDistribution:
    """The distribution of a stored text: one object for equal texts."""
    return json_to_distribution(text)


def local_time(moment: datetime.datetime | None) -> datetime.datetime | None:
    """A stored moment as Optuna returns it: it stores UTC, both without a time zone."""
    if moment is None:
        return None
    # Unlike `astimezone`, this marks the later one of two equal times (``fold``).
    return datetime.datetime.fromtimestamp(moment.replace(tzinfo=datetime.UTC).timestamp())


def utc_now() -> datetime.datetime:
    """The present moment as Optuna stores it."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


#: Without `in_`: a list cannot be a parameter of a statement for many rows.
_IS_OPEN = sa.or_(TRIALS.c.state == TrialState.RUNNING, TRIALS.c.state == TrialState.WAITING)
#: Inserts of the databases that can replace a row in the same statement (upsert).
INSERTS: dict[str, Callable[[Any], Any]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


@functools.cache
def new_trial_statement() -> Any:
    """Insert a trial whose number is the count of the study's trials."""
    others = sa.select(sa.func.count()).where(TRIALS.c.study_id == sa.bindparam("study_id"))
    insert = TRIALS.insert().values(number=others.scalar_subquery())
    insert = insert.values({name: sa.bindparam(name) for name in ("study_id", "state")})
    insert = insert.values(datetime_start=sa.bindparam("datetime_start"))
    return insert.returning(TRIALS.c.trial_id, TRIALS.c.number)


@functools.cache
def end_statement() -> Any:
    """End a trial that has not ended."""
    end = TRIALS.update().where(TRIALS.c.trial_id == sa.bindparam("id"), _IS_OPEN)
    return end.values(state=sa.bindparam("to"), datetime_complete=sa.bindparam("at"))


@functools.cache
def value_statement(dialect: str) -> Any:
    """Insert or replace a value of a trial."""
    insert = INSERTS[dialect](VALUES)
    replaced = {name: insert.excluded[name] for name in ("value", "value_type")}
    return insert.on_conflict_do_update(index_elements=["trial_id", "objective"], set_=replaced)


def value_rows(trial_id: int, values: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of `value_statement`."""
    encode = _Value.value_to_stored_repr
    return [
        {"trial_id": trial_id, "objective": place, "value": stored, "value_type": kind}
        for place, (stored, kind) in enumerate(map(encode, values))
    ]


@functools.cache
def put_statement(dialect: str, table: Any, key: str, names: tuple[str, ...]) -> Any:
    """Insert or replace a row, provided its trial is unfinished.

    One statement checks the state and writes, so no process can finish the trial in between.
    """
    columns = ("trial_id", *names)
    values = [sa.bindparam(name, type_=table.c[name].type).label(name) for name in columns]
    source = sa.select(*values).where(TRIALS.c.trial_id == sa.bindparam("trial_id"), _IS_OPEN)
    insert = INSERTS[dialect](table).from_select(list(columns), source)
    replaced = {name: insert.excluded[name] for name in names if name != key}
    put = insert.on_conflict_do_update(index_elements=["trial_id", key], set_=replaced)
    return put.execution_options(preserve_rowcount=True)


@functools.cache
def heartbeat_statement(dialect: str) -> Any:
    """Record that a trial runs now."""
    now = sa.func.current_timestamp()
    insert = INSERTS[dialect](HEARTBEATS).values(trial_id=sa.bindparam("trial_id"), heartbeat=now)
    return insert.on_conflict_do_update(index_elements=["trial_id"], set_={"heartbeat": now})


# Our tables.

_metadata = sa.MetaData()
# The columns are those of Alembic's version table; Optuna has its own table.
VERSION_TABLE = "hpo_mab_schema"
_versions = sa.Table(
    VERSION_TABLE, _metadata, sa.Column("version_num", sa.String(32), primary_key=True)
)

#: One row for each evaluation. ``curve`` is a number that is never used again, unlike a trial's id,
#: which databases reuse. A trial holds the number as a system attribute, see `CurveStore`.
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


#: The version of the tables above; one more than before if they change.
VERSION = 3


def prepare_tables(engine: sa.Engine, *, is_archive: bool) -> None:
    """Make our tables where there are none, and bring older ones up to date.

    Raises:
        StorageError: A later version of this package has changed them. Or they are missing or older
            in an archive, which cannot be changed.
    """
    if _is_current(engine):
        return
    if is_archive:
        raise StorageError(
            f"Storage {_shown(engine)} has the tables of an earlier hpo-mab, or none, and is in a "
            "folder that you may not write to. Copy the file to another folder and open the copy."
        )
    # One process at a time: a second one would raise because the tables exist.
    with locker(engine)(VERSION_TABLE):
        if _is_current(engine):
            return
        with engine.begin() as connection:
            _complete(connection)
            _set_version(connection, VERSION)


def _complete(connection: sa.Connection) -> None:
    """Make the tables and columns that are missing.

    MySQL commits at each change of a table, and so does SQLite at the first. So this can be
    repeated after the process was killed in it.
    """
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    op = Operations(MigrationContext.configure(connection))
    _metadata.create_all(connection)
    for table in _metadata.sorted_tables:
        known = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                op.add_column(table.name, sa.Column(column.name, column.type, nullable=True))


def _is_current(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        found = _version(connection)
    if found is not None and found > VERSION:
        raise StorageError(
            f"Storage {_shown(engine)} was written by a later hpo-mab (schema {found}; this one "
            f"knows schemas up to {VERSION}). Install that version from its clone: pip install ."
        )
    return found == VERSION


def _shown(engine: sa.Engine) -> str:
    return hide_passwords(engine.url.render_as_string(hide_password=True))


def _version(connection: sa.Connection) -> int | None:
    """The version of our tables in a database; None where it has none of them."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.scalar(sa.select(_versions.c.version_num))
    return None if found is None else int(found)


def _set_version(connection: sa.Connection, version: int) -> None:
    connection.execute(_versions.delete())
    connection.execute(_versions.insert().values(version_num=str(version)))
