"""From pairs to evidence."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage._acceleration import acceleration, equivalent_budget
from hpo_mab.advantage._advantage import advantage
from hpo_mab.advantage._curves import PairedCurves
from hpo_mab.advantage._estimate import Estimate
from hpo_mab.advantage._evidence import Evidence, Rung
from hpo_mab.advantage._fidelity import compare_fidelity

#: Fewer pairs have no ranking to compare.
FEWEST_PAIRS = 4
#: Loss of Kendall tau at a moved rung that is put up with.
DEFAULT_MARGIN = 0.1

_Difference = Callable[[int, int], Estimate]


def measure_evidence(
    pairs: PairedCurves,
    *,
    margin: float = DEFAULT_MARGIN,
    chance: float = 0.0,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    source: str = "",
    data: str = "",
    model: str = "",
) -> Evidence:
    """What pairs say of the advantage, and where they allow rungs to be decided.

    A rung at uniform budget ``r`` is decided at the earliest ``t`` with ``e(t) >= r`` whose
    fidelity is no worse than uniform's at ``r``: the interval of the paired difference of Kendall
    taus lies above ``-margin``. Taus are with uniform's final accuracy; as uniform's early
    accuracies come from the very same trainings, the comparison leans against moving.

    Args:
        pairs: At least 4 pairs at T budgets, the last of which is a trial's full budget.
        margin: Loss of tau that is put up with, in [0, 1].
        chance: Accuracy before training.
        confidence: Coverage of the intervals, in (0, 1).
        resamples: Bootstrap resamples, at least 100.
        seed: Seed of the resampling.
        source: Where the pairs come from.
        data: Data set, if known.
        model: Network, if known.

    Raises:
        ArgumentError: Fewer than 4 pairs, or an argument outside its bound.
    """
    if len(pairs) < FEWEST_PAIRS:
        raise ArgumentError(f"evidence needs at least {FEWEST_PAIRS} pairs, got {len(pairs)}.")
    if not 0.0 <= margin <= 1.0:
        raise ArgumentError(f"margin must be in [0, 1], got {margin}.")
    relative = dataclasses.replace(pairs, budgets=pairs.budgets / pairs.budgets[-1])
    ahead = advantage(relative, confidence=confidence, resamples=resamples, seed=seed)
    faster = acceleration(
        relative, chance=chance, confidence=confidence, resamples=resamples, seed=seed
    )

    @functools.cache
    def difference(early: int, rung: int) -> Estimate:
        return compare_fidelity(
            relative.bandit[:, early],
            relative.uniform[:, rung],
            relative.uniform[:, -1],
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        ).difference

    budgets = [float(share) for share in relative.budgets]
    equivalent = [float(share) for share in equivalent_budget(budgets, faster)]
    columns = range(len(budgets))
    return Evidence(
        budgets=tuple(budgets),
        advantage=tuple(ahead),
        acceleration=tuple(faster),
        fidelity=tuple(difference(column, column) for column in columns),
        rungs=tuple(_rung(column, budgets, equivalent, difference, margin) for column in columns),
        pairs=int(np.isfinite(relative.difference[:, -1]).sum()),
        margin=margin,
        source=source,
        data=data,
        model=model,
    )


def _rung(
    rung: int,
    budgets: Sequence[float],
    equivalent: Sequence[float],
    difference: _Difference,
    margin: float,
) -> Rung:
    budget = budgets[rung]
    reaching = [early for early in range(rung) if equivalent[early] >= budget * (1 - 1e-9)]
    if not reaching:
        return Rung(budget=budget, decided_at=budget, equivalent=budget, refused="advantage")
    for early in reaching:
        found = difference(early, rung)
        if found.low >= -margin:
            return Rung(
                budget=budget,
                decided_at=budgets[early],
                equivalent=equivalent[early],
                fidelity=found,
            )
    nearest = max((difference(early, rung) for early in reaching), key=lambda one: one.low)
    return Rung(
        budget=budget, decided_at=budget, equivalent=budget, fidelity=nearest, refused="fidelity"
    )
