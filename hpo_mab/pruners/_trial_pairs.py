"""Pairs found among Optuna trials, by what they have reported and nothing else."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import SAMPLER_KEY, SLOT_KEY, TWIN_KEY, UNIFORM, trial_attributes
from hpo_mab.advantage import PairedCurves

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_Key = tuple[int, frozenset[tuple[str, Any]]]


def is_uniform(trial: FrozenTrial) -> bool:
    """Whether a trial of a bandit study was trained under uniform sampling."""
    return trial_attributes(trial).get(SAMPLER_KEY) == UNIFORM


def is_twin(trial: FrozenTrial) -> bool:
    """Whether a trial repeats another one's configuration for the sake of the pair."""
    return TWIN_KEY in trial_attributes(trial)


def pairs_of_trials(
    trials: Sequence[FrozenTrial],
    reference: Iterable[FrozenTrial] = (),
    *,
    full: int,
    direction: StudyDirection = StudyDirection.MAXIMIZE,
) -> PairedCurves:
    """Pair finished trials that agree in slot and in parameters, the sampler's knobs aside.

    Args:
        trials: A study's trials: bandit-trained ones, and uniform twins of some of them.
        reference: Trials of a uniform study.
        full: Step that a full trial reports last.
        direction: Losses are turned over, so that more is better.

    Returns:
        Curves over the steps up to ``full`` that every complete uniform trial of the pairs has
        reported; NaN from where a trial was stopped.
    """
    bandit = {_key(t): t for t in reversed(trials) if _usable(t) and not is_uniform(t)}
    uniform = {_key(t): t for t in reference if _usable(t)}
    uniform.update({_key(t): t for t in trials if _usable(t) and is_uniform(t)})
    keys = sorted(bandit.keys() & uniform.keys(), key=lambda key: (key[0], repr(sorted(key[1]))))
    steps = _common_steps([uniform[key] for key in keys], full)
    shape = (len(keys), len(steps))
    curves = [
        np.reshape([_values(side[key], steps) for key in keys], shape) for side in (bandit, uniform)
    ]
    if direction == StudyDirection.MINIMIZE and keys:
        top = np.nanmax(np.stack(curves))
        curves = [top - curve for curve in curves]
    return PairedCurves(
        budgets=np.asarray(steps, dtype=np.float64), bandit=curves[0], uniform=curves[1]
    )


def _usable(trial: FrozenTrial) -> bool:
    return trial.state in _FINISHED and bool(trial.intermediate_values)


def _key(trial: FrozenTrial) -> _Key:
    slot = trial_attributes(trial).get(SLOT_KEY, trial.number)
    shared = (item for item in trial.params.items() if not item[0].startswith("sampler."))
    return int(slot), frozenset((name, _hashable(value)) for name, value in shared)


def _hashable(value: Any) -> Hashable:
    # The choices of a category may be lists.
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value if isinstance(value, Hashable) else repr(value)


def _common_steps(trials: Sequence[FrozenTrial], full: int) -> list[int]:
    """Steps in [1, full] that all trials which got to the end have reported."""
    complete = [set(t.intermediate_values) for t in trials if full in t.intermediate_values]
    shared = set.intersection(*complete) if complete else set()
    return sorted(step for step in shared if 1 <= step <= full)


def _values(trial: FrozenTrial, steps: Sequence[int]) -> list[float]:
    return [trial.intermediate_values.get(step, math.nan) for step in steps]
