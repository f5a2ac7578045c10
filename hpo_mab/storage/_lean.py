"""Optuna's database storage, with what trials do all the time in one statement each.

Optuna goes through SQLAlchemy's ORM: a report takes three statements, reading the trials of a study
six, each of them slow to build. Here a write is one statement and a read is two, on Optuna's own
tables and with Optuna's own values: other programs read and write the same studies as ever.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from hpo_mab.storage._frozen import CHILDREN_BETWEEN, CHILDREN_OF, frozen_trials

_trials = models.TrialModel.__table__
_reports = models.TrialIntermediateValueModel.__table__
_heartbeats = models.TrialHeartbeatModel.__table__
_user_attrs = models.TrialUserAttributeModel.__table__
_system_attrs = models.TrialSystemAttributeModel.__table__

_OPEN = (TrialState.RUNNING, TrialState.WAITING)
# More ids than this are not listed in a statement: databases limit its length.
_LISTED = 500

_INSERTS: dict[str, Callable[[Any], Any]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class LeanStorage(RDBStorage):
    """An `optuna.storages.RDBStorage` on SQLite or PostgreSQL that is several times cheaper.

    On other databases it is Optuna's own.
    """

    @contextlib.contextmanager
    def _statement(self) -> Iterator[sa.Connection]:
        """A connection on which every statement is a transaction of its own."""
        try:
            with self.engine.connect() as connection:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")
        except sa.exc.SQLAlchemyError as error:
            raise StorageInternalError("A statement failed.") from error

    @property
    def _has_upsert(self) -> bool:
        return self.engine.name in _INSERTS

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """See `optuna.storages.BaseStorage`."""
        if not self._has_upsert:
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)
            return
        encode = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
        value, kind = encode(intermediate_value)
        row = {"step": step, "intermediate_value": value, "intermediate_value_type": kind}
        self._put(_reports, trial_id, key="step", row=row)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        if not self._has_upsert:
            super().set_trial_user_attr(trial_id, key, value)
            return
        self._put(
            _user_attrs, trial_id, key="key", row={"key": key, "value_json": json.dumps(value)}
        )

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        if not self._has_upsert:
            super().set_trial_system_attr(trial_id, key, value)
            return
        row = {"key": key, "value_json": json.dumps(value)}
        self._put(_system_attrs, trial_id, key="key", row=row)

    def record_heartbeat(self, trial_id: int) -> None:
        """See `optuna.storages.RDBStorage`."""
        if not self._has_upsert:
            super().record_heartbeat(trial_id)
            return
        with self._statement() as connection:
            connection.execute(_heartbeat_statement(self.engine.name), {"trial_id": trial_id})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `optuna.storages.BaseStorage`."""
        with self._statement() as connection:
            rows = connection.execute(
                sa.select(_trials).where(_trials.c.trial_id == trial_id)
            ).all()
            if not rows:
                raise KeyError(models.NOT_FOUND_MSG)
            return self._frozen(connection, rows)[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: Collection[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        query = sa.select(_trials).where(_trials.c.study_id == study_id)
        if states is not None:
            query = query.where(_trials.c.state.in_([s for s in TrialState if s in states]))
        new = _trials.c.trial_id > trial_id_greater_than
        old = {i for i in included_trial_ids if i <= trial_id_greater_than}
        if old and len(old) <= _LISTED:
            query = query.where(sa.or_(_trials.c.trial_id.in_(sorted(old)), new))
        elif old:
            query = query.where(_trials.c.trial_id >= min(old))
        elif trial_id_greater_than > -1:
            query = query.where(new)
        with self._statement() as connection:
            rows = connection.execute(query.order_by(_trials.c.trial_id)).all()
            if len(old) > _LISTED:
                rows = [r for r in rows if r.trial_id > trial_id_greater_than or r.trial_id in old]
            if not rows:
                # An unknown study is an error, one without trials is not.
                self.get_study_name_from_id(study_id)
                return []
            return self._frozen(connection, rows)

    def _frozen(self, connection: sa.Connection, rows: Sequence[Any]) -> list[FrozenTrial]:
        ids = [row.trial_id for row in rows]
        if len(ids) <= _LISTED:
            parts = connection.execute(CHILDREN_OF, {"ids": ids})
        else:
            # A study's ids lie close together: what is read of other studies is left out below.
            parts = connection.execute(CHILDREN_BETWEEN, {"first": ids[0], "last": ids[-1]})
        return frozen_trials(rows, parts)

    def _put(self, table: Any, trial_id: int, *, key: str, row: dict[str, Any]) -> None:
        """Insert or replace a row of an unfinished trial.

        Raises:
            KeyError: There is no such trial.
            UpdateFinishedTrialError: The trial has finished.
        """
        put = _put_statement(self.engine.name, table, key, tuple(row))
        with self._statement() as connection:
            written = connection.execute(put, {"trial_id": trial_id, **row}).rowcount
        if not written:
            self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)


@functools.cache
def _put_statement(dialect: str, table: Any, key: str, names: tuple[str, ...]) -> Any:
    """Insert or replace a row, provided its trial is unfinished.

    One statement looks at the state and writes: nobody can finish the trial in between.
    """
    columns = ("trial_id", *names)
    values = [sa.bindparam(name, type_=table.c[name].type).label(name) for name in columns]
    source = sa.select(*values).where(
        _trials.c.trial_id == sa.bindparam("trial_id"), _trials.c.state.in_(_OPEN)
    )
    insert = _INSERTS[dialect](table).from_select(list(columns), source)
    replaced = {name: insert.excluded[name] for name in names if name != key}
    put = insert.on_conflict_do_update(index_elements=["trial_id", key], set_=replaced)
    return put.execution_options(preserve_rowcount=True)


@functools.cache
def _heartbeat_statement(dialect: str) -> Any:
    now = sa.func.current_timestamp()
    insert = _INSERTS[dialect](_heartbeats).values(trial_id=sa.bindparam("trial_id"), heartbeat=now)
    return insert.on_conflict_do_update(index_elements=["trial_id"], set_={"heartbeat": now})
