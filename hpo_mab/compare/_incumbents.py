"""Incumbents of studies: the best accuracy so far, and what it cost to reach an accuracy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hpo_mab._errors import UnknownNameError
from hpo_mab.advantage._pairs import Floats
from hpo_mab.advantage._signed_rank import signed_rank_p
from hpo_mab.compare._records import (
    CURRENCIES,
    CostToTarget,
    Currency,
    Target,
    geometric_mean,
)

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IncumbentCurve:
    """Best validation accuracy so far, a step at each complete trial.

    Attributes:
        spent: What the study had spent when each complete trial finished [n], increasing.
        accuracy: Accuracy of the incumbent from then on [n], increasing.
        total: What the study spent in all; NaN if that is not known.
    """

    spent: Floats
    accuracy: Floats
    total: float

    def at(self, spent: ArrayLike) -> Floats:
        """Accuracy of the incumbent at a spend; NaN before the first complete trial."""
        position = np.searchsorted(self.spent, np.asarray(spent, dtype=np.float64), side="right")
        # Position 0 is before the first complete trial.
        return np.concatenate([[np.nan], self.accuracy])[position]

    def first_reaching(self, accuracy: float) -> float:
        """Spend at which the incumbent first has an accuracy; infinite if it never does."""
        reached = self.accuracy >= accuracy
        return float(self.spent[np.argmax(reached)]) if reached.any() else math.inf


def incumbent_curve(run: StudyRun, currency: Currency = "examples") -> IncumbentCurve:
    """Best final accuracy so far against the cumulative spend of all trials.

    Only final accuracies of complete trials count: only these models had the whole schedule. Pruned
    and failed trials count as spend. Trials are taken in order of number, as one worker runs them.
    If curves are missing, the spend is not known, and there is no curve.

    Args:
        run: The study.
        currency: ``"examples"`` or ``"seconds"`` of training.

    Raises:
        UnknownNameError: An unknown currency.
    """
    if currency not in CURRENCIES:
        raise UnknownNameError("currency", currency, CURRENCIES)
    trials = [] if run.missing_curves else sorted(run.trials, key=lambda trial: trial.number)
    # Without what a resumed attempt took over from an earlier one, which counts there.
    costs = [t.own_examples if currency == "examples" else t.own_seconds for t in trials]
    values = [math.nan if trial.value is None else trial.value for trial in trials]
    spent = np.cumsum(np.asarray(costs, dtype=np.float64))
    finished = np.isfinite(np.asarray(values, dtype=np.float64))
    accuracy = np.maximum.accumulate(np.asarray(values, dtype=np.float64)[finished])
    return IncumbentCurve(
        spent=spent[finished],
        accuracy=accuracy,
        total=math.nan if run.missing_curves else float(spent[-1]) if len(spent) else 0.0,
    )


def gain_of_incumbent(arm: StudyRun, reference: StudyRun, currency: Currency) -> float:
    """Difference of the incumbents after what the cheaper study spent in all."""
    curves = incumbent_curve(arm, currency), incumbent_curve(reference, currency)
    spent = min(curve.total for curve in curves)
    return float(curves[0].at(spent) - curves[1].at(spent))


RunsBySeed = Mapping[int, "StudyRun"]


class _Costs(NamedTuple):
    """What an arm and the reference spent, and whether the arm reached the target."""

    arm: float
    reference: float
    reached: bool


def costs_to_target(arm: RunsBySeed, reference: RunsBySeed) -> tuple[CostToTarget, ...]:
    """Every cost to target that the runs define; see `CostToTarget`."""
    rows = []
    for target in ("reference", "common", "retrained"):
        for currency in CURRENCIES:
            costs = {
                seed: cost
                for seed in sorted(arm.keys() & reference.keys())
                if (cost := _costs(target, arm[seed], reference[seed], currency))
            }
            if costs:
                rows.append(_cost_row(target, currency, costs))
    return tuple(rows)


def _cost_row(target: Target, currency: Currency, costs: Mapping[int, _Costs]) -> CostToTarget:
    ratios = tuple(cost.arm / cost.reference for cost in costs.values())
    reached = tuple(cost.reached for cost in costs.values())
    return CostToTarget(
        target=target,
        currency=currency,
        ratio=geometric_mean(ratios, censored=not all(reached)),
        seeds=tuple(costs),
        ratios=ratios,
        reached=reached,
        p=signed_rank_p(np.log(ratios)) if all(reached) else None,
    )


def _costs(target: Target, arm: StudyRun, reference: StudyRun, currency: Currency) -> _Costs | None:
    """The costs of one seed; None if they are not defined."""
    arm_curve, reference_curve = (incumbent_curve(run, currency) for run in (arm, reference))
    # An arm without a complete trial has not reached the reference's accuracy.
    if not len(reference_curve.accuracy) or (target != "reference" and not len(arm_curve.accuracy)):
        return None
    target_of_arm = target_of_reference = float(reference_curve.accuracy[-1])
    if target == "common":
        target_of_arm = target_of_reference = min(target_of_arm, float(arm_curve.accuracy[-1]))
    elif target == "retrained":
        gain = mean_retrained(arm) - mean_retrained(reference)
        if math.isnan(gain):
            return None
        # Only the final incumbent was re-trained: its cost is what was spent until it was found.
        target_of_arm = float(arm_curve.accuracy[-1]) if gain >= 0 else math.inf
    arm_cost = arm_curve.first_reaching(target_of_arm)
    reference_cost = reference_curve.first_reaching(target_of_reference)
    reached = math.isfinite(arm_cost)
    # An arm that did not reach the target needs at least all that it has spent.
    arm_cost = arm_cost if reached else arm_curve.total
    if not (arm_cost > 0.0 and reference_cost > 0.0):
        return None
    return _Costs(arm_cost, reference_cost, reached)


def mean_retrained(run: StudyRun) -> float:
    """Mean test accuracy of a study's re-trainings, which share one configuration; or NaN."""
    return float(np.mean(run.retrained)) if run.retrained else math.nan
