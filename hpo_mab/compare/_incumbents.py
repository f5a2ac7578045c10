"""Incumbents of studies: the best accuracy so far, and what it cost to reach an accuracy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hpo_mab._errors import UnknownNameError
from hpo_mab.advantage._pairs import Floats
from hpo_mab.compare._records import (
    CURRENCIES,
    CostToTarget,
    Currency,
    Target,
    geometric_mean,
    signed_rank_p,
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

    Examples:
        >>> from pathlib import Path
        >>> from hpo_mab.compare import incumbent_curve, read_record
        >>> record = read_record(Path("studies/fashion_mnist/pairs.json"))
        >>> curve = incumbent_curve(record.runs[0])
        >>> bool(curve.at(curve.total) == curve.accuracy[-1])
        True
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
    own = [t.own_examples if currency == "examples" else t.own_seconds for t in trials]
    values = [math.nan if trial.value is None else trial.value for trial in trials]
    spent = np.cumsum(np.asarray(own, dtype=np.float64))
    finished = np.isfinite(np.asarray(values, dtype=np.float64))
    accuracy = np.maximum.accumulate(np.asarray(values, dtype=np.float64)[finished])
    return IncumbentCurve(
        spent=spent[finished],
        accuracy=accuracy,
        total=math.nan if run.missing_curves else float(spent[-1]) if len(spent) else 0.0,
    )


def gain_of_incumbent(arm: StudyRun, reference: StudyRun, currency: Currency) -> float:
    """Difference of the incumbents after what the cheaper study spent in all."""
    own, other = incumbent_curve(arm, currency), incumbent_curve(reference, currency)
    spent = min(own.total, other.total)
    return float(own.at(spent) - other.at(spent))


Runs = Mapping[int, "StudyRun"]
_Costs = tuple[float, float, bool]


def costs_to_target(arm: Runs, reference: Runs) -> tuple[CostToTarget, ...]:
    """Every cost to target that the runs define; see `CostToTarget`."""
    found = []
    for target in ("reference", "common", "retrained"):
        for currency in CURRENCIES:
            costs = {
                key: cost
                for key in sorted(arm.keys() & reference.keys())
                if (cost := _cost(target, arm[key], reference[key], currency))
            }
            if costs:
                found.append(_cost_row(target, currency, costs))
    return tuple(found)


def _cost_row(target: Target, currency: Currency, costs: Mapping[int, _Costs]) -> CostToTarget:
    ratios = tuple(own / other for own, other, _ in costs.values())
    reached = tuple(got for _, _, got in costs.values())
    return CostToTarget(
        target=target,
        currency=currency,
        ratio=geometric_mean(ratios, censored=not all(reached)),
        seeds=tuple(costs),
        ratios=ratios,
        reached=reached,
        p=signed_rank_p(np.log(ratios)) if all(reached) else None,
    )


def _cost(target: Target, arm: StudyRun, reference: StudyRun, currency: Currency) -> _Costs | None:
    """Own cost, the reference's cost, and whether the arm reached the target; None if undefined."""
    own, other = incumbent_curve(arm, currency), incumbent_curve(reference, currency)
    # An arm without a complete trial has not reached the reference's accuracy.
    if not len(other.accuracy) or (target != "reference" and not len(own.accuracy)):
        return None
    wanted = theirs = float(other.accuracy[-1])
    if target == "common":
        wanted = theirs = min(wanted, float(own.accuracy[-1]))
    elif target == "retrained":
        mine, needed = mean_retrained(arm), mean_retrained(reference)
        if math.isnan(mine - needed):
            return None
        # Only the final incumbent was re-trained: its cost is what was spent until it was found.
        wanted = float(own.accuracy[-1]) if mine >= needed else math.inf
    spent, cost = own.first_reaching(wanted), other.first_reaching(theirs)
    reached = math.isfinite(spent)
    # An arm that did not reach the target needs at least all that it has spent.
    spent = spent if reached else own.total
    return (spent, cost, reached) if spent > 0.0 and cost > 0.0 else None


def mean_retrained(run: StudyRun) -> float:
    """Mean test accuracy of a study's re-trainings, which share one configuration; or NaN."""
    return float(np.mean(run.retrained)) if run.retrained else math.nan
