"""Compare pruners on recorded learning curves.

A simulated study takes a fraction of a second. False prunings are trials that a pruner stopped and
that would have ended among the best.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from hpo_mab._attributes import PAIRED_KEY, REASON_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Estimate, PairedCurves
from hpo_mab.search._stored import train_stored_trial

if TYPE_CHECKING:
    from hpo_mab.search import StudyRunner
    from hpo_mab.storage import StudyRun, TrialRun

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CurveTable:
    """Unpruned learning curves of P configurations under both samplers.

    Attributes:
        source: The studies or records of the curves.
        budgets: Training examples at each evaluation [T].
        bandit: Validation accuracy under the bandit [P, T].
        uniform: Validation accuracy under uniform sampling [P, T].
    """

    source: str
    budgets: Floats
    bandit: Floats
    uniform: Floats

    @classmethod
    def from_pairs(cls, pairs: PairedCurves, *, source: str) -> Self:
        """The pairs that both samplers trained to the end, rounded to four digits."""
        whole = np.isfinite(pairs.difference).all(axis=1)
        return cls(
            source=source,
            budgets=pairs.budgets,
            bandit=np.round(pairs.arm[whole], 4),
            uniform=np.round(pairs.reference[whole], 4),
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A table that `save` wrote."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        arrays = {key: np.asarray(fields[key], float) for key in ("budgets", "bandit", "uniform")}
        return cls(source=fields["source"], **arrays)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        arrays = {key: getattr(self, key).tolist() for key in ("budgets", "bandit", "uniform")}
        Path(path).write_text(json.dumps({"source": self.source, **arrays}), encoding="utf-8")

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
            budgets=self.budgets, arm=self.bandit[rows], reference=self.uniform[rows]
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Cost and final accuracy of each trial of one simulated study.

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
    name: str | None = None,
    initial: int = 0,
) -> Simulation:
    """One study with one worker, in which trial ``i`` has the ``i``-th curve.

    Args:
        curves: Accuracies [n, T]; steps are 1 to T.
        pruner: Decides at every step but the last.
        name: Of the study, from which Hyperband derives its brackets; None for a random one.
        initial: Number of first trials that are never pruned, as ``search.initial``.
    """
    study = optuna.create_study(
        direction="maximize",
        pruner=pruner,
        sampler=optuna.samplers.RandomSampler(seed=0),
        study_name=name,
    )
    steps = curves.shape[1]
    costs, finals = [], []
    for number, curve in enumerate(curves):
        trial = study.ask()
        if number < initial:
            trial.set_user_attr(PAIRED_KEY, True)
        used = _run(trial, curve, may_prune=number >= initial)
        done = used == steps
        study.tell(trial, curve[-1] if done else None, state=None if done else TrialState.PRUNED)
        costs.append(used / steps)
        finals.append(curve[-1] if done else np.nan)
    return Simulation(np.asarray(costs, float), np.asarray(finals, float))


def _run(trial: optuna.trial.Trial, curve: Floats, *, may_prune: bool) -> int:
    for step, value in enumerate(curve, start=1):
        trial.report(float(value), step=step)
        if may_prune and step < len(curve) and trial.should_prune():
            return step
    return len(curve)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """One arm of simulations compared with another.

    Attributes:
        cost: Mean spend of a study of so many trials, in full trials.
        regret: Mean regret of its incumbent, in accuracy.
        regret_difference: Regret minus the baseline's, after equally many trials.
        saved: Share of the baseline's cost that the arm saves until its regret is down to the
            baseline's final one. The arm may run all its trials; NaN if they are not enough.
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
    resamples: int = 1000,
) -> Saving:
    """Compare two arms over the same simulations, with intervals over simulations.

    Args:
        arm: R simulations.
        baseline: R simulations of the same configurations in the same order.
        best: Best final accuracy that each of the arm's simulations could have found [R].
        baseline_best: The same for the baseline's.
        trials: Length of the baseline's study, at most the trials of a simulation.
        resamples: Bootstrap resamples of simulations, at least 100.

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
    ours, theirs = _tracks(arm, best), _tracks(baseline, baseline_best)
    rows = np.random.default_rng(0).integers(0, len(arm), (resamples, len(arm)))
    everything, end = np.arange(len(arm)), trials - 1

    def estimate(statistic: Callable[[NDArray[np.int64]], float]) -> Estimate:
        drawn = np.asarray([statistic(row) for row in rows])
        # In a resample that does not reach the regret, the saving is undefined.
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


def _tracks(arm: Sequence[Simulation], best: Floats) -> tuple[Floats, Floats]:
    """Spend and regret after each trial, each [R, n]."""
    spent = np.cumsum([one.cost for one in arm], axis=1)
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FalsePrunings:
    """Final accuracies of a sample of pruned trials, trained to their end.

    Attributes:
        share: Share of pruned trials that would have ended in the top, with Wilson's interval.
        top: How many count as the top.
        threshold: Final accuracy that a trial needed for the top.
        finished: Final validation accuracy of the trials finished, by trial number.
        pruned: Trials that the pruner had stopped, from which the sample was drawn.
    """

    share: Estimate
    top: int
    threshold: float
    finished: dict[int, float]
    pruned: int

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**dataclasses.asdict(self), "share": self.share.to_json()}


def false_prunings(
    runner: StudyRunner,
    run: StudyRun,
    *,
    sample: int = 10,
    top: int = 3,
) -> FalsePrunings:
    """Train a sample of pruned trials to their end, as without pruning.

    A trial's seed follows from its slot, so its new training repeats the pruned one first. A trial
    counts as falsely pruned if its final accuracy exceeds the ``top``-th best of the study.
    Trials that diverged were not pruned and are left out.

    Args:
        runner: The study's runner.
        run: The study.
        sample: Trials to finish at most, at least 1; all if there are no more.
        top: How many trials count as the top, at least 1.

    Raises:
        ArgumentError: An argument outside its bound, fewer complete trials than ``top``, or no
            pruned ones.
    """
    for name, value in (("sample", sample), ("top", top)):
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, got {value}.")
    complete = sorted((t.value for t in run.trials if t.value is not None), reverse=True)
    pruned = [t for t in run.trials if t.state == "pruned" and REASON_KEY not in t.attrs]
    if len(complete) < top or not pruned:
        raise ArgumentError(
            f"false prunings need at least {top} complete trials and a pruned one, "
            f"got {len(complete)} and {len(pruned)}."
        )
    order = np.random.default_rng(0).permutation(len(pruned))[:sample]
    finished = {pruned[i].number: _finish(runner, pruned[i]) for i in sorted(order)}
    threshold = complete[top - 1]
    wrong = sum(value > threshold for value in finished.values())
    return FalsePrunings(
        share=_share(wrong, len(finished)),
        top=top,
        threshold=threshold,
        finished=finished,
        pruned=len(pruned),
    )


def _finish(runner: StudyRunner, trial: TrialRun) -> float:
    """Final validation accuracy of a pruned trial."""
    with train_stored_trial(runner.objective, trial) as training:
        *_, last = training
    return float(last.accuracy)


def _share(count: int, of: int) -> Estimate:
    from scipy import stats

    interval = stats.binomtest(count, of).proportion_ci(method="wilson")
    return Estimate(value=count / of, low=float(interval.low), high=float(interval.high), n=of)
