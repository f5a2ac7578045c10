"""Cost to target: what an arm spends to get as far as the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpo_mab.compare._incumbent import IncumbentCurve, incumbent_curve
from hpo_mab.compare._records import CURRENCIES, CostToTarget, Currency, Target
from hpo_mab.compare._statistics import geometric_mean, signed_rank_p

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun

Runs = Mapping[int, "StudyRun"]
Retrained = Mapping[tuple[str, int], Sequence[float]]
_Costs = tuple[float, float, bool]


def costs_to_target(
    arm: Runs, reference: Runs, retrained: Retrained, *, confidence: float, seed: int
) -> tuple[CostToTarget, ...]:
    """Every cost to target that the runs define; see `CostToTarget`.

    Args:
        arm: The arm's studies by seed.
        reference: The reference's studies by seed.
        retrained: Test accuracies of re-trained incumbents by arm and seed, possibly empty.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling.
    """
    found = []
    for target in ("reference", "common", "retrained"):
        for currency in CURRENCIES:
            costs = {
                key: cost
                for key in sorted(arm.keys() & reference.keys())
                if (cost := _cost(target, arm[key], reference[key], retrained, currency))
            }
            if costs:
                found.append(_record(target, currency, costs, confidence=confidence, seed=seed))
    return tuple(found)


def _record(
    target: Target, currency: Currency, costs: Mapping[int, _Costs], *, confidence: float, seed: int
) -> CostToTarget:
    ratios = tuple(own / other for own, other, _ in costs.values())
    reached = tuple(got for _, _, got in costs.values())
    return CostToTarget(
        target=target,
        currency=currency,
        ratio=geometric_mean(ratios, censored=not all(reached), confidence=confidence, seed=seed),
        seeds=tuple(costs),
        ratios=ratios,
        reached=reached,
        p=signed_rank_p(np.log(ratios)) if all(reached) else None,
    )


def _cost(
    target: Target, arm: StudyRun, reference: StudyRun, retrained: Retrained, currency: Currency
) -> _Costs | None:
    """Own cost, the reference's cost, and whether the arm got there; None if undefined."""
    own, other = incumbent_curve(arm, currency), incumbent_curve(reference, currency)
    if not len(own.accuracy) or not len(other.accuracy):
        return None
    if target == "retrained":
        return _retrained_cost(own, other, _score(arm, retrained), _score(reference, retrained))
    wanted = float(other.accuracy[-1])
    if target == "common":
        wanted = min(wanted, float(own.accuracy[-1]))
    return _costs(own, own.first_reaching(wanted), other.first_reaching(wanted))


def _retrained_cost(
    own: IncumbentCurve, other: IncumbentCurve, score: float | None, wanted: float | None
) -> _Costs | None:
    if score is None or wanted is None:
        return None
    found = own.first_reaching(float(own.accuracy[-1])) if score >= wanted else math.inf
    return _costs(own, found, other.first_reaching(float(other.accuracy[-1])))


def _costs(own: IncumbentCurve, spent: float, other: float) -> _Costs | None:
    reached = math.isfinite(spent)
    cost = spent if reached else own.total
    return (cost, other, reached) if cost > 0.0 and other > 0.0 else None


def _score(run: StudyRun, retrained: Retrained) -> float | None:
    scores = retrained.get((run.arm, run.seed), ())
    return float(np.mean(scores)) if len(scores) else None
