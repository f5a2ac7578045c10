"""Simulating studies: recorded learning curves through a pruner, in a fraction of a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Estimate

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """What one simulated study did, trial by trial.

    Attributes:
        cost: Share of a full trial that each trial used [n].
        final: Accuracy of each trial at the end, NaN if it was pruned [n].
    """

    cost: Floats
    final: Floats

    @property
    def incumbent(self) -> Floats:
        """Best final accuracy so far after each trial [n]; 0 before the first."""
        return np.maximum.accumulate(np.nan_to_num(self.final))


def simulate(
    curves: Floats,
    pruner: BasePruner,
    *,
    attrs: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Simulation:
    """One study with one worker, in which trial ``i`` has the ``i``-th curve.

    Args:
        curves: Accuracies [n, T]; steps are 1 to T.
        pruner: Decides at every step but the last.
        attrs: User attributes of every trial.
        name: Of the study, from which Hyperband derives its brackets; None for a random one.
    """
    study = optuna.create_study(
        direction="maximize",
        pruner=pruner,
        sampler=optuna.samplers.RandomSampler(seed=0),
        study_name=name,
    )
    steps = curves.shape[1]
    costs, finals = [], []
    for curve in curves:
        trial = study.ask()
        for key, value in (attrs or {}).items():
            trial.set_user_attr(key, value)
        used = _run(trial, curve)
        done = used == steps
        study.tell(trial, curve[-1] if done else None, state=None if done else TrialState.PRUNED)
        costs.append(used / steps)
        finals.append(curve[-1] if done else np.nan)
    return Simulation(np.asarray(costs, float), np.asarray(finals, float))


def _run(trial: optuna.trial.Trial, curve: Floats) -> int:
    for step, value in enumerate(curve, start=1):
        trial.report(float(value), step=step)
        if step < len(curve) and trial.should_prune():
            return step
    return len(curve)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """One arm of simulations against another.

    Attributes:
        cost: Mean spend of a study of so many trials, in full trials.
        regret: Mean regret of its incumbent, in accuracy.
        regret_difference: Regret minus the baseline's, after equally many trials.
        saved: Share of the baseline's spend that is saved at equal regret: the arm may run all
            its trials to come down to what the baseline has in the end; NaN if it does not.
    """

    cost: Estimate
    regret: Estimate
    regret_difference: Estimate
    saved: Estimate


def saving(
    arm: Sequence[Simulation],
    baseline: Sequence[Simulation],
    best: Floats,
    baseline_best: Floats,
    *,
    trials: int,
    overhead: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Saving:
    """Compare two arms over the same simulations, with intervals over simulations.

    Args:
        arm: R simulations.
        baseline: R simulations of the same configurations in the same order.
        best: Best final accuracy that each of the arm's simulations could have found [R].
        baseline_best: The same for the baseline's.
        trials: Length of the baseline's study, at most the trials of a simulation.
        overhead: Full trials spent before the arm's first, e.g. by a pilot.
        resamples: Bootstrap resamples of simulations, at least 100.
        seed: Seed of the resampling.

    Raises:
        ArgumentError: Arms of different numbers of simulations, or ``trials`` outside its bound.
    """
    if not 1 <= trials <= len(baseline[0].cost):
        raise ArgumentError(
            f"trials must be in [1, {len(baseline[0].cost)}], those of a simulation, got {trials}."
        )
    if len(arm) != len(baseline):
        raise ArgumentError(
            f"arms must have equally many simulations, got {len(arm)} and {len(baseline)}."
        )
    ours, theirs = _tracks(arm, best, overhead), _tracks(baseline, baseline_best, 0.0)
    rows = np.random.default_rng(seed).integers(0, len(arm), (resamples, len(arm)))
    everything, end = np.arange(len(arm)), trials - 1

    def estimate(statistic: Callable[[NDArray[np.int64]], float]) -> Estimate:
        drawn = np.asarray([statistic(row) for row in rows])
        # A resample that never gets there saves nothing that could be named.
        drawn = np.where(np.isfinite(drawn), drawn, -np.inf)
        low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
        return Estimate(value=statistic(everything), low=float(low), high=float(high), n=len(arm))

    return Saving(
        cost=estimate(lambda row: float(ours[0][row, end].mean())),
        regret=estimate(lambda row: float(ours[1][row, end].mean())),
        regret_difference=estimate(
            lambda row: float((ours[1][row, end] - theirs[1][row, end]).mean())
        ),
        saved=estimate(lambda row: _saved(ours, theirs, row, end)),
    )


def _tracks(arm: Sequence[Simulation], best: Floats, overhead: float) -> tuple[Floats, Floats]:
    """Spend and regret after each trial, each [R, n]."""
    spent = overhead + np.cumsum([one.cost for one in arm], axis=1)
    return spent, np.asarray(best)[:, None] - np.stack([one.incumbent for one in arm])


def _saved(
    ours: tuple[Floats, Floats],
    theirs: tuple[Floats, Floats],
    row: NDArray[np.int64],
    end: int,
) -> float:
    target = theirs[1][row, end].mean()
    spends = []
    for spent, regret in (ours, theirs):
        reached = np.flatnonzero(regret[row].mean(axis=0) <= target + 1e-12)
        spends.append(spent[row, reached[0]].mean() if len(reached) else np.nan)
    return float(1.0 - spends[0] / spends[1])
