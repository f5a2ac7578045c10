"""Learning curves in one SQL table, keyed by Optuna's trial id, in the study's own database."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa

from hpo_mab._attributes import RESUMED_KEY
from hpo_mab.training import Evaluation

_metadata = sa.MetaData()

_evaluations = sa.Table(
    "hpo_mab_evaluations",
    _metadata,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("steps", sa.BigInteger, nullable=False),
    sa.Column("examples", sa.BigInteger, nullable=False),
    *(
        sa.Column(field.name, sa.Double, nullable=True)
        for field in dataclasses.fields(Evaluation)
        if field.name not in {"index", "steps", "examples"}
    ),
)

_FORGET = _evaluations.delete().where(_evaluations.c.trial_id == sa.bindparam("id"))

# Optuna's own tables.
_trials = sa.table("trials", sa.column("trial_id"), sa.column("study_id"))
_attributes = sa.table(
    "trial_user_attributes", sa.column("trial_id"), sa.column("key"), sa.column("value_json")
)


class CurveStore:
    """Reads and writes the learning curves of trials.

    Args:
        engine: Where the curves live: the engine of the study's Optuna storage.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        _metadata.create_all(engine, checkfirst=True)

    def extend(
        self, trial_id: int, evaluations: Sequence[Evaluation], *, anew: bool = False
    ) -> None:
        """Add evaluations to a trial's curve, all of them or none.

        Args:
            trial_id: Optuna's trial id.
            evaluations: Points that the curve does not have yet, at least one.
            anew: Whether to forget the curve of an earlier attempt at this trial first.
        """
        rows = [{"trial_id": trial_id, **dataclasses.asdict(one)} for one in evaluations]
        with self._engine.begin() as connection:
            if anew:
                connection.execute(_FORGET, {"id": trial_id})
            connection.execute(_evaluations.insert(), rows)

    def spent(self, study_id: int) -> tuple[int, float]:
        """Examples and training seconds of all trials of a study, running and lost ones included.

        What an attempt at a trial took over from a checkpoint counts with the attempt that had
        spent it, and only there.

        Args:
            study_id: Optuna's study id.
        """
        last = _sums(_reached().where(_trials.c.study_id == study_id))
        taken_over = _sums(
            _reached()
            .join(_attributes, _attributes.c.trial_id == _evaluations.c.trial_id)
            .where(
                _trials.c.study_id == study_id,
                _attributes.c.key.in_((RESUMED_KEY, "resumed_at")),  # As earlier versions say.
                _evaluations.c.index <= sa.cast(_attributes.c.value_json, sa.Integer),
            )
        )
        # In one statement, or a trial that resumes in between would be in one sum only.
        both = sa.select(
            last.c.examples - taken_over.c.examples, last.c.seconds - taken_over.c.seconds
        ).select_from(last.join(taken_over, sa.true()))
        with self._engine.connect() as connection:
            examples, seconds = connection.execute(both).one()
        return int(examples), float(seconds)

    def load(self, trial_ids: Sequence[int]) -> dict[int, tuple[Evaluation, ...]]:
        """Curves of the trials that have one, each in order of budget.

        Args:
            trial_ids: Optuna's trial ids.
        """
        curves: dict[int, list[Evaluation]] = defaultdict(list)
        if not trial_ids:
            return {}
        # A study's ids lie close together: one range scan beats thousands of bound parameters.
        column, wanted = _evaluations.c.trial_id, set(trial_ids)
        query = (
            sa.select(_evaluations)
            .where(column >= min(wanted), column <= max(wanted))
            .order_by(column, _evaluations.c.index)
        )
        with self._engine.connect() as connection:
            for row in connection.execute(query).mappings():
                if row["trial_id"] in wanted:
                    curves[row["trial_id"]].append(_evaluation(row))
        return {trial_id: tuple(curve) for trial_id, curve in curves.items()}


def _reached() -> sa.Select[tuple[int, float]]:
    """Examples and seconds at each trial's furthest evaluation."""
    return (
        sa.select(
            sa.func.max(_evaluations.c.examples).label("examples"),
            sa.func.max(_evaluations.c.seconds).label("seconds"),
        )
        .join(_trials, _trials.c.trial_id == _evaluations.c.trial_id)
        .group_by(_evaluations.c.trial_id)
    )


def _sums(reached: sa.Select[tuple[int, float]]) -> sa.Subquery:
    each = reached.subquery()
    return sa.select(
        sa.func.coalesce(sa.func.sum(each.c.examples), 0).label("examples"),
        sa.func.coalesce(sa.func.sum(each.c.seconds), 0.0).label("seconds"),
    ).subquery()


def _evaluation(row: sa.RowMapping) -> Evaluation:
    return Evaluation(**{key: value for key, value in row.items() if key != "trial_id"})
