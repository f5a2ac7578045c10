"""The incumbent of a study against what the study has spent."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo_mab._errors import UnknownNameError
from hpo_mab.compare._records import CURRENCIES, Currency

if TYPE_CHECKING:
    from hpo_mab.storage import StudyRun

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IncumbentCurve:
    """Best validation accuracy so far, a step at each trial that finished.

    Attributes:
        currency: ``"examples"`` or ``"seconds"``.
        spent: What the study had spent when each complete trial finished [n], increasing.
        accuracy: Accuracy of the incumbent from then on [n], increasing.
        total: What the study spent in all; NaN if that is not known.
    """

    currency: Currency
    spent: Floats
    accuracy: Floats
    total: float

    def at(self, spent: ArrayLike) -> Floats:
        """Accuracy of the incumbent at a spend; NaN before the first trial finished."""
        position = np.searchsorted(self.spent, np.asarray(spent, dtype=np.float64), side="right")
        return np.concatenate([[np.nan], self.accuracy])[position]

    def first_reaching(self, accuracy: float) -> float:
        """Spend at which the incumbent first has an accuracy; infinite if it never does."""
        reached = self.accuracy >= accuracy
        return float(self.spent[np.argmax(reached)]) if reached.any() else math.inf


def incumbent_curve(run: StudyRun, currency: Currency = "examples") -> IncumbentCurve:
    """Best final accuracy so far against the cumulative spend of all trials.

    Only complete trials' final accuracies count, for only their models were trained under the
    whole schedule and could be handed out; pruned and failed trials count as spend. Trials are
    taken in order of number, as one worker runs them. Where curves are missing, the spend is not
    known, and there is no curve.

    Args:
        run: The study.
        currency: ``"examples"`` or ``"seconds"`` of training.

    Raises:
        UnknownNameError: An unknown currency.
    """
    if currency not in CURRENCIES:
        raise UnknownNameError("currency", currency, CURRENCIES)
    trials = [] if run.missing_curves else sorted(run.trials, key=lambda trial: trial.number)
    own = [t.own_examples if currency == "examples" else t.own_seconds for t in trials]
    values = [math.nan if trial.value is None else trial.value for trial in trials]
    spent = np.cumsum(np.asarray(own, dtype=np.float64))
    finished = np.isfinite(np.asarray(values, dtype=np.float64))
    accuracy = np.maximum.accumulate(np.asarray(values, dtype=np.float64)[finished])
    return IncumbentCurve(
        currency=currency,
        spent=spent[finished],
        accuracy=accuracy,
        total=math.nan if run.missing_curves else float(spent[-1]) if len(spent) else 0.0,
    )
