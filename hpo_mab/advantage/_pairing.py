"""Find the pairs among the trials of two arms and put their curves on common budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo_mab._attributes import TWIN_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.advantage._curves import PairedCurves

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun, TrialRun

Floats = NDArray[np.float64]

#: Batch sizes round budgets to whole steps; this share of a budget counts as reaching it.
_SLACK = 0.01


def pair_curves(
    bandit: Sequence[StudyRun],
    uniform: Sequence[StudyRun],
    *,
    budgets: Sequence[float] | None = None,
    paired_only: bool = True,
) -> PairedCurves:
    """Pair the trials of two arms: same study seed, same slot, same common parameters.

    Failed trials are left out. A curve is read at the common budgets by straight lines between
    its evaluations; it is NaN beyond its last one and before its first one, budgets within 1%
    counting as reached.

    Args:
        bandit: Studies of the arm in question, one a seed.
        uniform: Studies of the reference, one a seed.
        budgets: Common budgets in examples; default those of the reference's longest curve.
        paired_only: Whether to take only trials marked ``paired``.

    Returns:
        The pairs in order of seed and slot, none if there are none.

    Raises:
        ArgumentError: Two studies of one arm and seed, or trials of different full budgets.
    """
    full = {run.trial_examples for run in (*bandit, *uniform)}
    if len(full) > 1:
        raise ArgumentError(f"trial_examples must be the same for all studies, got {sorted(full)}.")
    ours = _by_key(bandit, paired_only=paired_only)
    theirs = _by_key(uniform, paired_only=paired_only)
    keys = sorted(
        key for key in ours.keys() & theirs.keys() if same_configuration(ours[key], theirs[key])
    )
    grid = _grid([theirs[key] for key in keys]) if budgets is None else np.asarray(budgets, float)
    left = [_read(ours[key], grid) for key in keys]
    right = [_read(theirs[key], grid) for key in keys]
    shape = (len(keys), len(grid))
    return PairedCurves(
        budgets=grid,
        bandit=np.reshape([accuracy for accuracy, _ in left], shape),
        uniform=np.reshape([accuracy for accuracy, _ in right], shape),
        bandit_seconds=np.reshape([seconds for _, seconds in left], shape),
        uniform_seconds=np.reshape([seconds for _, seconds in right], shape),
        labels=tuple(keys),
    )


def same_configuration(one: TrialRun, other: TrialRun) -> bool:
    """Whether two trials agree in every parameter both have, the sampler's own knobs aside."""
    return all(
        other.params[name] == value
        for name, value in one.params.items()
        if name in other.params and not name.startswith("sampler.")
    )


def _by_key(runs: Sequence[StudyRun], *, paired_only: bool) -> dict[tuple[int, int], TrialRun]:
    """Trials by (seed, slot); of a slot's retries the one that got furthest."""
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ArgumentError(f"Studies of one arm must differ in seed, got seeds {sorted(seeds)}.")
    found: dict[tuple[int, int], TrialRun] = {}
    for run in runs:
        for trial in run.trials:
            key = (run.seed, trial.slot)
            usable = trial.state != "fail" and trial.curve and (trial.paired or not paired_only)
            # A uniform twin in a bandit's study is paired with its original, not across arms.
            usable = usable and TWIN_KEY not in trial.attrs
            if usable and (key not in found or trial.examples > found[key].examples):
                found[key] = trial
    return found


def _grid(trials: Sequence[TrialRun]) -> Floats:
    longest = max(trials, key=lambda trial: trial.examples, default=None)
    points = [] if longest is None else [evaluation.examples for evaluation in longest.curve]
    return np.unique(np.asarray(points, dtype=np.float64))


def _read(trial: TrialRun, grid: Floats) -> tuple[Floats, Floats]:
    """Accuracy and seconds of a trial at common budgets, each [T]."""
    examples = np.asarray([e.examples for e in trial.curve], dtype=np.float64)
    inside = (grid >= examples[0] * (1 - _SLACK)) & (grid <= examples[-1] * (1 + _SLACK))
    accuracy = np.interp(grid, examples, [e.accuracy for e in trial.curve])
    seconds = np.interp(grid, examples, [e.seconds for e in trial.curve])
    return np.where(inside, accuracy, np.nan), np.where(inside, seconds, np.nan)
