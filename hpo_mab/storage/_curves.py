"""Learning curves in one SQL table of the study's database; a trial holds its curve's number."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy as sa

from hpo_mab._attributes import CURVE_KEY, RESUMED_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.storage._optuna import engine_of, id_of
from hpo_mab.storage._tables import CURVES, STUDIES, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES
from hpo_mab.training import Evaluation
from hpo_mab.training._schedule import stored_evaluation

#: The number of the curve that a row of `SYSTEM_ATTRIBUTES` holds.
_number = sa.cast(SYSTEM_ATTRIBUTES.c.value_json, sa.BigInteger)
_is_key = SYSTEM_ATTRIBUTES.c.key == CURVE_KEY
#: Rows of one statement: databases limit its length.
_CHUNK = 500

_FIELDS = tuple(field.name for field in dataclasses.fields(Evaluation))


class CurveStore:
    """Reads and writes the learning curves of trials.

    A curve has a random number that is never used again. A trial holds the number of its curve as
    its system attribute ``hpo_mab:curve``. Optuna copies and deletes the attribute with the trial.
    So a copy of a study in the same database has its curves. A new trial with the id of a deleted
    one has no curve. Trials of one study may hold the same number, such as a trial and its retry by
    Optuna. The curve is then that of the first.

    Args:
        engine: Engine of the database of the curves: the engine of the study's Optuna storage.

    Raises:
        StorageError: A later version of this package has written the tables.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def check_holds(self, trial: optuna.trial.Trial) -> None:
        """Refuse a trial of another database: its id is that of another trial here.

        Raises:
            ArgumentError: The trial's study is in memory, in a journal, or in another database.
        """
        if engine_of(trial.study) is self._engine:
            return
        name = trial.study.study_name
        stored = (
            sa.select(STUDIES.c.study_name)
            .join(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id)
            .where(TRIALS.c.trial_id == id_of(trial), TRIALS.c.number == trial.number)
        )
        with self._engine.connect() as connection:
            found = connection.scalar(stored)
        if found != name:
            raise ArgumentError(
                f"curves must be those of the database of study '{name}': make both "
                "with one hpo_mab.storage.Storage, as storage.optuna and storage.curves."
            )

    def extend(self, parts: Sequence[tuple[int, Sequence[Evaluation], bool]]) -> None:
        """Add evaluations to the curves of several trials, all of them or none.

        Args:
            parts: For each trial: Optuna's trial id, at least one point that its curve does not
                have yet, and whether to begin a curve in place of an earlier attempt's.
        """
        with self._engine.begin() as connection:
            for chunk in chunks(parts):
                curves = _begin(connection, {trial_id: restart for trial_id, _, restart in chunk})
                rows = [
                    self._row(curves[trial_id], one)
                    for trial_id, evaluations, _ in chunk
                    if trial_id in curves
                    for one in evaluations
                ]
                if rows:
                    connection.execute(CURVES.insert(), rows)

    def spent(
        self, study_id: int, *, after: int = -1, until: int | None = None
    ) -> tuple[int, float]:
        """Examples and training seconds of trials of a study, running and lost ones included.

        The budget that a resumed attempt has from a checkpoint counts only for the earlier attempt,
        which spent it.

        Args:
            study_id: Optuna's study id.
            after: Only trials with higher ids count.
            until: The highest id that counts; None counts all. If trials share a curve, it counts
                once in each range that has one of them.
        """
        resumed_at = sa.cast(USER_ATTRIBUTES.c.value_json, sa.Integer)

        def own(column: Any) -> Any:
            taken_over = sa.func.max(sa.case((CURVES.c.index <= resumed_at, column), else_=0))
            return (sa.func.max(column) - taken_over).label(column.name)

        each = (
            sa.select(own(CURVES.c.examples), own(CURVES.c.seconds))
            .select_from(TRIALS)
            .join(
                SYSTEM_ATTRIBUTES,
                sa.and_(SYSTEM_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, _is_key),
            )
            .join(CURVES, CURVES.c.curve == _number)
            .outerjoin(
                USER_ATTRIBUTES,
                sa.and_(
                    USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id,
                    USER_ATTRIBUTES.c.key == RESUMED_KEY,
                ),
            )
            .where(TRIALS.c.study_id == study_id, TRIALS.c.trial_id > after)
            .group_by(CURVES.c.curve)
        )
        if until is not None:
            each = each.where(TRIALS.c.trial_id <= until)
        total = sa.select(*(sa.func.coalesce(sa.func.sum(one), 0) for one in each.subquery().c))
        with self._engine.connect() as connection:
            examples, seconds = connection.execute(total).one()
        return int(examples), float(seconds)

    def load(self, trial_ids: Sequence[int]) -> dict[int, tuple[Evaluation, ...]]:
        """Curves of the trials that have one, each in order of budget.

        Args:
            trial_ids: Optuna's trial ids, of one study.
        """
        curves: dict[int, list[Evaluation]] = defaultdict(list)
        if not trial_ids:
            return {}
        owners: dict[int, int] = {}
        with self._engine.connect() as connection:
            for trial_id, curve, *values in _curve_points(connection, set(trial_ids)):
                if owners.setdefault(curve, trial_id) == trial_id:
                    curves[trial_id].append(stored_evaluation(zip(_FIELDS, values, strict=True)))
        return {trial_id: tuple(curve) for trial_id, curve in curves.items()}

    def copy(self, trial_ids: Sequence[int], target: CurveStore) -> None:
        """Copy curves into another database whose trials hold the same numbers.

        Args:
            trial_ids: Optuna's trial ids here.
            target: The other database; the curves that it has stay as they are.
        """
        if not trial_ids:
            return
        names = ["curve", *_FIELDS]
        with self._engine.connect() as connection:
            found = list(_curve_points(connection, set(trial_ids)))
        rows = [target._storable(dict(zip(names, row[1:], strict=True))) for row in found]
        numbers = sorted({row["curve"] for row in rows})
        with target._engine.begin() as connection:
            known: set[int] = set()
            for chunk in chunks(numbers):
                known |= set(
                    connection.scalars(
                        sa.select(CURVES.c.curve).distinct().where(CURVES.c.curve.in_(chunk))
                    )
                )
            # By their key: trials that share a curve select its rows twice.
            new = {(r["curve"], r["index"]): r for r in rows if r["curve"] not in known}
            for chunk in chunks(list(new.values())):
                connection.execute(CURVES.insert(), chunk)

    def remove_orphans(self) -> None:
        """Remove the curves that no trial refers to: those of deleted trials and studies."""
        with self._engine.begin() as connection:
            # Not `NOT IN`: PostgreSQL searches a long list for each curve. The curves first: one
            # that is begun meanwhile, together with its attribute, is not among them.
            curves = set(connection.scalars(sa.select(CURVES.c.curve).distinct()))
            orphans = curves.difference(connection.scalars(sa.select(_number).where(_is_key)))
            for chunk in chunks(sorted(orphans)):
                connection.execute(CURVES.delete().where(CURVES.c.curve.in_(chunk)))

    def _row(self, curve: int, evaluation: Evaluation) -> dict[str, Any]:
        return self._storable({"curve": curve, **dataclasses.asdict(evaluation)})

    def _storable(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with None for the numbers that the database cannot store."""
        # Only PostgreSQL stores NaN, and MySQL does not store infinity either.
        storable = math.isfinite if self._engine.name == "mysql" else _is_not_nan
        return {
            name: None if isinstance(value, float) and not storable(value) else value
            for name, value in row.items()
        }


def _begin(connection: sa.Connection, restarts: Mapping[int, bool]) -> dict[int, int]:
    """Numbers of the trials' curves; a new one for a trial that has none, or that restarts.

    A deleted trial gets none: on SQLite a later trial may get its id, and would have this curve.
    """
    of_trial = sa.and_(SYSTEM_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, _is_key)
    held = (
        sa.select(TRIALS.c.trial_id, SYSTEM_ATTRIBUTES.c.value_json)
        .outerjoin(SYSTEM_ATTRIBUTES, of_trial)
        .where(TRIALS.c.trial_id.in_(restarts))
    )
    curves: dict[int, int] = {}
    new: list[dict[str, Any]] = []
    for trial_id, number in connection.execute(held).all():
        if number is not None and not restarts[trial_id]:
            curves[trial_id] = int(number)
            continue
        curves[trial_id] = secrets.randbits(62)
        text = str(curves[trial_id])
        if number is None:
            new.append({"trial_id": trial_id, "key": CURVE_KEY, "value_json": text})
        else:
            # Not a DELETE and an INSERT: on MySQL the former locks the gap that another process's
            # INSERT needs.
            own = sa.and_(SYSTEM_ATTRIBUTES.c.trial_id == trial_id, _is_key)
            connection.execute(SYSTEM_ATTRIBUTES.update().where(own).values(value_json=text))
    if new:
        connection.execute(SYSTEM_ATTRIBUTES.insert(), new)
    return curves


def _curve_points(
    connection: sa.Connection, trial_ids: Collection[int]
) -> Iterator[tuple[Any, ...]]:
    """Points of the curves of some of a study's trials, in order of trial and budget.

    Each is a trial's id, its curve's number, and the fields.
    """
    column = SYSTEM_ATTRIBUTES.c.trial_id
    within: sa.ColumnElement[bool] = column.in_(trial_ids)
    if len(trial_ids) > _CHUNK:
        # Not thousands of bound parameters. Other studies may have ids in this range.
        study = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == min(trial_ids))
        own = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study.scalar_subquery())
        within = sa.and_(column.between(min(trial_ids), max(trial_ids)), column.in_(own))
    query = (
        sa.select(column, CURVES.c.curve, *(CURVES.c[name] for name in _FIELDS))
        .join(CURVES, CURVES.c.curve == _number)
        .where(_is_key, within)
        .order_by(column, CURVES.c.index)
    )
    for row in connection.execute(query):
        if row[0] in trial_ids:
            yield tuple(row)


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The items in parts, each short enough for one statement."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _is_not_nan(value: float) -> bool:
    return not math.isnan(value)
