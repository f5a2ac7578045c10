"""Replaying recorded learning curves through pruners: whole studies in a fraction of a second."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Estimate, PairedCurves

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CurveTable:
    """Unpruned learning curves of P configurations under both samplers.

    Attributes:
        source: Where they come from.
        budgets: Training examples at each evaluation [T].
        bandit: Validation accuracy under the bandit [P, T].
        uniform: Validation accuracy under uniform sampling [P, T].
    """

    source: str
    budgets: Floats
    bandit: Floats
    uniform: Floats

    @classmethod
    def from_pairs(cls, pairs: PairedCurves, *, source: str, digits: int = 4) -> Self:
        """The pairs that both samplers took to the end, rounded."""
        whole = np.isfinite(pairs.difference).all(axis=1)
        return cls(
            source=source,
            budgets=pairs.budgets,
            bandit=np.round(pairs.bandit[whole], digits),
            uniform=np.round(pairs.uniform[whole], digits),
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A table that `save` wrote."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        arrays = {key: np.asarray(fields[key], float) for key in ("budgets", "bandit", "uniform")}
        return cls(source=fields["source"], **arrays)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, one configuration a line."""
        lines = {
            key: "[\n" + ",\n".join(json.dumps(row) for row in getattr(self, key).tolist()) + "]"
            for key in ("bandit", "uniform")
        }
        text = (
            f'{{"source": {json.dumps(self.source)},\n"budgets": '
            f'{json.dumps(self.budgets.tolist())},\n"bandit": {lines["bandit"]},\n'
            f'"uniform": {lines["uniform"]}}}\n'
        )
        Path(path).write_text(text, encoding="utf-8")

    def __len__(self) -> int:
        """Number of configurations P."""
        return len(self.bandit)

    def every(self, stride: int) -> Self:
        """The table with every ``stride``-th evaluation, the last one kept."""
        columns = slice(stride - 1, None, stride)
        return dataclasses.replace(
            self,
            budgets=self.budgets[columns],
            bandit=self.bandit[:, columns],
            uniform=self.uniform[:, columns],
        )

    def pairs(self, rows: NDArray[np.int64]) -> PairedCurves:
        """Some of the configurations as pairs."""
        return PairedCurves(
            budgets=self.budgets, bandit=self.bandit[rows], uniform=self.uniform[rows]
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What one replayed study did, trial by trial.

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


def replay(curves: Floats, pruner: BasePruner, *, attrs: Mapping[str, Any] | None = None) -> Replay:
    """One study with one worker, in which trial ``i`` has the ``i``-th curve.

    Args:
        curves: Accuracies [n, T]; steps are 1 to T.
        pruner: Decides at every step but the last.
        attrs: User attributes of every trial.
    """
    study = optuna.create_study(
        direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0)
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
    return Replay(np.asarray(costs, float), np.asarray(finals, float))


def _run(trial: optuna.trial.Trial, curve: Floats) -> int:
    for step, value in enumerate(curve, start=1):
        trial.report(float(value), step=step)
        if step < len(curve) and trial.should_prune():
            return step
    return len(curve)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """One arm of replays against another.

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
    arm: Sequence[Replay],
    baseline: Sequence[Replay],
    best: Floats,
    baseline_best: Floats,
    *,
    trials: int,
    overhead: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Saving:
    """Compare two arms over the same replays, with intervals over replays.

    Args:
        arm: R replays.
        baseline: R replays of the same configurations in the same order.
        best: Best final accuracy that each of the arm's replays could have found [R].
        baseline_best: The same for the baseline's.
        trials: Length of the baseline's study, at most the trials of a replay.
        overhead: Full trials spent before the arm's first, e.g. by a pilot.
        resamples: Bootstrap resamples of replays, at least 100.
        seed: Seed of the resampling.

    Raises:
        ArgumentError: The arms differ in their number of replays, or ``trials`` is out of bound.
    """
    if not 1 <= trials <= len(baseline[0].cost):
        raise ArgumentError(
            f"trials must be in [1, {len(baseline[0].cost)}], the trials of a replay, got {trials}."
        )
    if len(arm) != len(baseline):
        raise ArgumentError(f"arms must have equally many replays, got {len(arm)}, {len(baseline)}")
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


def _tracks(arm: Sequence[Replay], best: Floats, overhead: float) -> tuple[Floats, Floats]:
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
