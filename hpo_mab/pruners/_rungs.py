"""Who competes at a rung, and who is promoted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

_KEY = "hpo_mab:rung_{}"


@dataclasses.dataclass(frozen=True, slots=True)
class Contest:
    """A trial's standing at a rung.

    Attributes:
        promoted: Whether it goes on.
        threshold: The value that was needed.
        competitors: Trials that took part, itself included.
    """

    promoted: bool
    threshold: float
    competitors: int


def rung_key(rung: int) -> str:
    """Trial system attribute ``[step, value]`` of a rung that a trial has come to."""
    return _KEY.format(rung)


def next_rung(trial: FrozenTrial) -> int:
    """The first rung that a trial has not come to."""
    rung = 0
    while rung_key(rung) in trial.system_attrs:
        rung += 1
    return rung


def contest(
    trials: Sequence[FrozenTrial],
    trial: FrozenTrial,
    value: float,
    *,
    rung: int,
    step: int,
    reduction_factor: int,
    direction: StudyDirection,
) -> Contest:
    """Hold a trial's value against those of all trials that have come to a rung, at one step.

    The rule is that of Optuna's ``SuccessiveHalvingPruner``: the best ``1 / reduction_factor`` of
    all, rounded down, at least one, are promoted.

    Args:
        trials: The study's trials.
        trial: The one to decide.
        value: Its value.
        rung: Number of the rung.
        step: Step at which the rung is decided for this trial.
        reduction_factor: Promotes one in this many.
        direction: Of the study.
    """
    worst = -math.inf if direction == StudyDirection.MAXIMIZE else math.inf
    found = (
        _value_at(other, rung=rung, step=step, worst=worst)
        for other in trials
        if other.number != trial.number
    )
    ranked = sorted([value, *(one for one in found if one is not None)])
    if direction == StudyDirection.MAXIMIZE:
        ranked.reverse()
    threshold = ranked[max(len(ranked) // reduction_factor, 1) - 1]
    promoted = value >= threshold if direction == StudyDirection.MAXIMIZE else value <= threshold
    return Contest(promoted=promoted, threshold=threshold, competitors=len(ranked))


def _value_at(trial: FrozenTrial, *, rung: int, step: int, worst: float) -> float | None:
    """What a trial that has come to the rung had at ``step``; None if it takes no part.

    Where the rung lay elsewhere for that trial, values of different budgets must not be mixed: it
    takes part with what it reported at ``step``. If it was stopped before, it was judged a loser.
    """
    taken = trial.system_attrs.get(rung_key(rung))
    if taken is None:
        return None
    if taken[0] == step:
        return float(taken[1])
    value = trial.intermediate_values.get(step)
    if value is not None and not math.isnan(value):
        return float(value)
    last = trial.last_step
    stopped = trial.state.is_finished() and last is not None and last < step
    return worst if stopped else None
