"""Advantage, acceleration and fidelity of bandit sampling, estimated from pairs of trials."""

from hpo_mab.advantage._advantage import (
    Estimate,
    acceleration,
    advantage,
    equivalent_budget,
    mean_estimate,
)
from hpo_mab.advantage._evidence import (
    DEFAULT_MARGIN,
    FEWEST_PAIRS,
    Evidence,
    Rung,
    measure_evidence,
)
from hpo_mab.advantage._fidelity import FidelityComparison, Statistic, compare_fidelity, fidelity
from hpo_mab.advantage._pairs import PairedCurves, pair_curves

__all__ = [
    "DEFAULT_MARGIN",
    "FEWEST_PAIRS",
    "Estimate",
    "Evidence",
    "FidelityComparison",
    "PairedCurves",
    "Rung",
    "Statistic",
    "acceleration",
    "advantage",
    "compare_fidelity",
    "equivalent_budget",
    "fidelity",
    "mean_estimate",
    "measure_evidence",
    "pair_curves",
]
