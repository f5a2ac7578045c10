"""Advantage, acceleration and fidelity of bandit sampling, estimated from pairs of trials."""

from hpo_mab.advantage._advantage import Estimate, acceleration, advantage, mean_estimate
from hpo_mab.advantage._evidence import Evidence, Rung, measure_evidence
from hpo_mab.advantage._fidelity import FidelityComparison, compare_fidelity, fidelity
from hpo_mab.advantage._pairs import PairedCurves, pair_curves

__all__ = [
    "Estimate",
    "Evidence",
    "FidelityComparison",
    "PairedCurves",
    "Rung",
    "acceleration",
    "advantage",
    "compare_fidelity",
    "fidelity",
    "mean_estimate",
    "measure_evidence",
    "pair_curves",
]
