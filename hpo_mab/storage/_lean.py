"""Optuna's database storage, with the frequent operations of trials in one statement each.

Optuna uses SQLAlchemy's ORM: a report takes three statements, reading a study's trials six. Each of
them is slow to build. Here a write is one statement and a read is two. Tables and values are those
of Optuna, so other programs can read and write the same studies.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import datetime
import json
from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
)
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from hpo_mab.storage._optuna import RUNG_PREFIX
from hpo_mab.storage._tables import (
    CHILDREN_BETWEEN,
    CHILDREN_OF,
    HEARTBEATS,
    INSERTS,
    PARAMS,
    REPORTS,
    STUDIES,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    USER_ATTRIBUTES,
    end_statement,
    frozen_trials,
    heartbeat_statement,
    local_time,
    new_trial_statement,
    put_statement,
    stored_distribution,
    utc_now,
    value_rows,
    value_statement,
)

#: Most ids that a statement lists. SQLite before 3.32 takes 999 parameters, and `CHILDREN_OF` lists
#: each id five times.
_LISTED = 190


@dataclasses.dataclass
class _Collected:
    """What a thread has to write, and what it has read, within `LeanStorage.collect_writes`."""

    storage: LeanStorage
    #: Rows that wait, by statement.
    waiting: dict[Any, list[dict[str, Any]]]
    #: Trials that this thread has changed, or that the next read takes along.
    written: set[int]
    #: Studies whose trials Optuna's cache has read.
    read: set[int]
    #: Trials as they are with all writes so far, and the study of each.
    known: dict[int, tuple[int, FrozenTrial]]
    #: User attributes of studies.
    attributes: dict[int, dict[str, Any]]

    def keep(self, rows: Sequence[Any], trials: Sequence[FrozenTrial]) -> None:
        """Keep trials that were read."""
        for row, trial in zip(rows, trials, strict=True):
            self.known[row.trial_id] = row.study_id, trial

    def change(self, trial_id: int, name: Any, values: Mapping[str, Any]) -> None:
        """Change a kept trial: the item of this name in some of its dictionaries."""
        if trial_id in self.known:
            study_id, trial = self.known[trial_id]
            # The database drops writes to a finished trial. Optuna's cache reads it only once.
            if trial.state.is_finished():
                return
            # Optuna's cache may have the same object.
            changed = _copy(trial)
            for part, value in values.items():
                getattr(changed, part)[name] = value
            self.known[trial_id] = study_id, changed


#: Of one thread: a new thread begins without a value.
_collected: contextvars.ContextVar[_Collected | None] = contextvars.ContextVar("collected")


class LeanStorage(RDBStorage):
    """An `optuna.storages.RDBStorage` on SQLite or PostgreSQL that is several times cheaper.

    On other databases its writes are Optuna's own.
    """

    def heartbeats(self, trial_ids: Collection[int]) -> dict[int, bool]:
        """By trial, whether its last heartbeat is recent; trials without one are left out."""
        if not trial_ids or self.grace_period is None:
            return {}
        beats = HEARTBEATS.c
        query = sa.select(beats.trial_id, beats.heartbeat, sa.func.now())
        with self.engine.connect() as connection:
            rows = connection.execute(query.where(beats.trial_id.in_(trial_ids))).all()
        grace = datetime.timedelta(seconds=self.grace_period)
        # PostgreSQL's time has a zone and Optuna's column has not.
        return {trial: now.replace(tzinfo=None) - beat <= grace for trial, beat, now in rows}

    @contextlib.contextmanager
    def collect_writes(self) -> Iterator[None]:
        """Collect what this thread writes, and read each trial and a study's user attributes once.

        One transaction writes parameters, reports, attributes and heartbeats of trials: at the next
        read from the database or the end of the context. A trial that has finished in the meantime
        does not change, and raises no error. Own parameters, reports and attributes are seen
        without another read. Until the context ends, writes of other threads and processes to what
        was already read are not visible. So the context must be short, and must begin after the
        study's lock is taken. Entering a nested context discards what was read: it is read again.
        """
        if not self._has_upsert:
            yield
            return
        if (outer := self._collecting) is not None:
            # The caller may have taken the study's lock after the outer context has read.
            outer.known, outer.read, outer.attributes = {}, set(), {}
            yield
            return
        token = _collected.set(_Collected(self, defaultdict(list), set(), set(), {}, {}))
        try:
            yield
        except BaseException:
            # The exception that ended the context must be raised, not one of this write.
            with contextlib.suppress(StorageInternalError):
                self._write()
            raise
        else:
            self._write()
        finally:
            _collected.reset(token)

    @property
    def _collecting(self) -> _Collected | None:
        collecting = _collected.get(None)
        return collecting if collecting is not None and collecting.storage is self else None

    def _write(self) -> None:
        if (collecting := self._collecting) is None or not collecting.waiting:
            return
        waiting, collecting.waiting = collecting.waiting, defaultdict(list)
        with self._transaction() as connection:
            for statement, rows in waiting.items():
                connection.execute(statement, rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StorageInternalError("A transaction failed.") from error

    @contextlib.contextmanager
    def _statement(self) -> Iterator[sa.Connection]:
        """A connection on which every statement is a separate transaction."""
        try:
            with self.engine.connect() as connection:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")
        except sa.exc.SQLAlchemyError as error:
            raise StorageInternalError("A statement failed.") from error

    @property
    def _has_upsert(self) -> bool:
        return self.engine.name in INSERTS

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `optuna.storages.BaseStorage`."""
        known = {} if (collecting := self._collecting) is None else collecting.attributes
        if study_id not in known:
            known[study_id] = super().get_study_user_attrs(study_id)
        return known[study_id]

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        super().set_study_user_attr(study_id, key, value)
        if (collecting := self._collecting) is not None:
            collecting.attributes.pop(study_id, None)

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
        self._upsert(REPORTS, trial_id, "step", row, intermediate_values=float(intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        if not self._has_upsert:
            super().set_trial_user_attr(trial_id, key, value)
            return
        row = {"key": key, "value_json": (text := json.dumps(value))}
        self._upsert(USER_ATTRIBUTES, trial_id, "key", row, user_attrs=json.loads(text))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        if not self._has_upsert:
            super().set_trial_system_attr(trial_id, key, value)
            return
        row = {"key": key, "value_json": (text := json.dumps(value))}
        self._upsert(SYSTEM_ATTRIBUTES, trial_id, "key", row, system_attrs=json.loads(text))

    def record_heartbeat(self, trial_id: int) -> None:
        """See `optuna.storages.RDBStorage`."""
        if not self._has_upsert:
            super().record_heartbeat(trial_id)
            return
        statement, row = heartbeat_statement(self.engine.name), {"trial_id": trial_id}
        if (collecting := self._collecting) is not None:
            collecting.waiting[statement].append(row)
            return
        with self._statement() as connection:
            connection.execute(statement, row)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        if not self._has_upsert:
            super()._set_trial_param(
                trial_id, param_name, param_value_internal, distribution, previous_distribution
            )
            return
        # Optuna's cache knows none before this process has set the parameter.
        previous = previous_distribution or self._distribution_before(trial_id, param_name)
        if previous is not None:
            try:
                check_distribution_compatibility(previous, distribution)
            except ValueError:
                # As in Optuna, a finished trial is the first thing that is refused.
                self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
                raise
        stored = stored_distribution(text := distribution_to_json(distribution))
        value = float(param_value_internal)
        row = {"param_name": param_name, "param_value": value, "distribution_json": text}
        known = {"params": stored.to_external_repr(value), "distributions": stored}
        self._upsert(PARAMS, trial_id, "param_name", row, **known)

    def _distribution_before(self, trial_id: int, name: str) -> BaseDistribution | None:
        """The distribution of a parameter in the trials of the same study."""
        study = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id)
        query = sa.select(PARAMS.c.distribution_json).join(TRIALS)
        query = query.where(TRIALS.c.study_id == study.scalar_subquery())
        with self._statement() as connection:
            text = connection.scalar(query.where(PARAMS.c.param_name == name).limit(1))
        return None if text is None else stored_distribution(text)

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        lean = self._has_upsert and self.engine.dialect.insert_returning
        if not lean or template_trial is None or not _is_bare(template_trial):
            created = super()._create_new_trial(study_id, template_trial)
            self.forget(created._trial_id)
            return created
        created = copy.deepcopy(template_trial)
        with self._transaction() as connection:
            # The number is the count of the study's trials, so no other process may add one. SQLite
            # has no such lock and needs none, as its transactions write one after the other.
            lock = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
            if connection.scalar(lock.with_for_update()) is None:
                raise KeyError(models.NOT_FOUND_MSG)
            began = utc_now()
            row = {"study_id": study_id, "state": created.state, "datetime_start": began}
            trial_id, created.number = connection.execute(new_trial_statement(), row).one()
            tables = {USER_ATTRIBUTES: created.user_attrs, SYSTEM_ATTRIBUTES: created.system_attrs}
            for table, attrs in tables.items():
                if attrs:
                    texts = {key: json.dumps(value) for key, value in attrs.items()}
                    rows = [{"trial_id": trial_id, "key": k, "value_json": texts[k]} for k in texts]
                    connection.execute(table.insert(), rows)
                    attrs.update({key: json.loads(text) for key, text in texts.items()})
        created._trial_id, created.datetime_start = trial_id, local_time(began)
        if (collecting := self._collecting) is not None:
            collecting.written.add(trial_id)
            # Optuna's `Trial` reads it next.
            collecting.known[trial_id] = study_id, created
        return created

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See `optuna.storages.BaseStorage`."""
        self._write()
        self.forget(trial_id)
        if not self._has_upsert or not state.is_finished():
            return super().set_trial_state_values(trial_id, state, values)
        with self._transaction() as connection:
            row = {"id": trial_id, "to": state, "at": utc_now()}
            ended = connection.execute(end_statement(), row).rowcount
            if ended and values is not None:
                # In the same transaction: no other process may read a complete trial without value.
                connection.execute(value_statement(self.engine.name), value_rows(trial_id, values))
        if not ended:
            self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        return bool(ended)

    def forget_rungs(self, trial_id: int) -> None:
        """Remove what Optuna's pruners have stored of a running trial that is tried again.

        They would compare others with both attempts.
        """
        self._write()
        table = SYSTEM_ATTRIBUTES.c
        rungs = table.key.startswith(RUNG_PREFIX, autoescape=True)
        with self._transaction() as connection:
            connection.execute(
                sa.delete(SYSTEM_ATTRIBUTES).where(table.trial_id == trial_id, rungs)
            )
        self.forget(trial_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `optuna.storages.BaseStorage`."""
        wanted = {trial_id}
        if (collecting := self._collecting) is not None:
            if trial_id in collecting.known:
                # A copy, because Optuna's `Trial` changes what it gets.
                return _copy(collecting.known[trial_id][1])
            self._write()
            # With the others that were written: they are usually asked for next.
            wanted.update(sorted(collecting.written - collecting.known.keys())[: _LISTED - 1])
        with self._statement() as connection:
            query = sa.select(TRIALS).where(TRIALS.c.trial_id.in_(sorted(wanted)))
            rows = connection.execute(query.order_by(TRIALS.c.trial_id)).all()
            found = {trial._trial_id: trial for trial in self._frozen(connection, rows)}
        if trial_id not in found:
            raise KeyError(models.NOT_FOUND_MSG)
        if collecting is not None:
            collecting.keep(rows, list(found.values()))
            return _copy(found[trial_id])
        return found[trial_id]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: Collection[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Trials that Optuna's cache requests: all new ones, and every unfinished one again.

        Within `collect_writes`, of the unfinished trials it gets only those that this thread wrote.
        If this thread has copies of them, no query is needed. New trials are read by the first
        request, and by each later one that needs a query.
        """
        kept: list[FrozenTrial] = []
        if (collecting := self._collecting) is not None:
            # The highest id in Optuna's cache, which lists the trials that it must read again.
            last = max((trial_id_greater_than, *included_trial_ids))
            if states is None and last > -1:
                if study_id in collecting.read:
                    # If Optuna's cache lacks a trial that was written, it must get all new trials.
                    again = {i for i in collecting.written if i <= last}
                    known = [collecting.known[i] for i in again if i in collecting.known]
                    kept = [trial for study, trial in known if study == study_id]
                    included_trial_ids = again - collecting.known.keys()
                    if not included_trial_ids and again == collecting.written:
                        return kept
                    trial_id_greater_than = last
                collecting.read.add(study_id)
            self._write()
        return kept + self._read(study_id, states, included_trial_ids, trial_id_greater_than)

    def _read(
        self, study_id: int, states: Container[TrialState] | None, again: Collection[int], last: int
    ) -> list[FrozenTrial]:
        """Trials of a study: those that Optuna's cache must read again, and those after its last.

        Args:
            study_id: Optuna's study id.
            states: Their states; None takes all.
            again: Ids of trials to read again.
            last: Highest id in the cache; -1 for none.
        """
        query = sa.select(TRIALS).where(TRIALS.c.study_id == study_id)
        if states is not None:
            query = query.where(TRIALS.c.state.in_([s for s in TrialState if s in states]))
        new = TRIALS.c.trial_id > last
        old = {i for i in again if i <= last}
        if old and len(old) <= _LISTED:
            query = query.where(sa.or_(TRIALS.c.trial_id.in_(sorted(old)), new))
        elif old:
            query = query.where(TRIALS.c.trial_id >= min(old))
        elif last > -1:
            query = query.where(new)
        with self._statement() as connection:
            rows = connection.execute(query.order_by(TRIALS.c.trial_id)).all()
            if len(old) > _LISTED:
                rows = [r for r in rows if r.trial_id > last or r.trial_id in old]
            trials = self._frozen(connection, rows) if rows else []
        if not rows:
            # An unknown study is an error, one without trials is not. By now the
            # connection above is free for this query.
            self.get_study_name_from_id(study_id)
        elif (collecting := self._collecting) is not None:
            collecting.keep(rows, trials)
        return trials

    def _frozen(self, connection: sa.Connection, rows: Sequence[Any]) -> list[FrozenTrial]:
        ids = [row.trial_id for row in rows]
        if len(ids) <= _LISTED:
            parts = connection.execute(CHILDREN_OF, {"ids": ids})
        else:
            given = {"study": rows[0].study_id, "first": ids[0], "last": ids[-1]}
            parts = connection.execute(CHILDREN_BETWEEN, given)
        return frozen_trials(rows, parts)

    def _upsert(
        self, table: Any, trial_id: int, key: str, row: dict[str, Any], **values: Any
    ) -> None:
        """Insert or replace a row of an unfinished trial, and ``values`` in this thread's copy.

        Raises:
            KeyError: There is no such trial.
            UpdateFinishedTrialError: The trial has finished.
        """
        put = put_statement(self.engine.name, table, key, tuple(row))
        if (collecting := self._collecting) is not None:
            collecting.written.add(trial_id)
            collecting.waiting[put].append({"trial_id": trial_id, **row})
            collecting.change(trial_id, row[key], values)
            return
        with self._statement() as connection:
            written = connection.execute(put, {"trial_id": trial_id, **row}).rowcount
        if not written:
            self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)

    def forget(self, *trial_ids: int) -> None:
        """Drop this thread's copies of trials; the next query for one of them reads all."""
        if (collecting := self._collecting) is not None:
            collecting.written.update(trial_ids)
            for trial_id in trial_ids:
                collecting.known.pop(trial_id, None)


def _copy(trial: FrozenTrial) -> FrozenTrial:
    """A trial whose attributes, parameters and reports can be changed."""
    copied = copy.copy(trial)
    for name, value in vars(trial).items():
        if isinstance(value, dict):
            setattr(copied, name, value.copy())
    return copied


def _is_bare(trial: FrozenTrial) -> bool:
    """Whether a trial is running and has nothing but attributes."""
    has_more = trial.params or trial.values or trial.intermediate_values
    return trial.state == TrialState.RUNNING and not has_more
