"""What a bandit-sampled trial tells that a uniform one does not, estimated from pairs."""

from hpo_mab.advantage._acceleration import acceleration, equivalent_budget
from hpo_mab.advantage._advantage import advantage
from hpo_mab.advantage._curves import PairedCurves
from hpo_mab.advantage._estimate import Estimate
from hpo_mab.advantage._evidence import Evidence, Rung
from hpo_mab.advantage._evidence_measure import DEFAULT_MARGIN, FEWEST_PAIRS, measure_evidence
from hpo_mab.advantage._fidelity import (
    FidelityComparison,
    Statistic,
    compare_fidelity,
    fidelity,
)
from hpo_mab.advantage._interval import mean_estimate
from hpo_mab.advantage._pairing import pair_curves

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
