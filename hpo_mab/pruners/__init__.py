"""Pruners that decide earlier where the measured advantage allows it."""

from hpo_mab.pruners._advantage_pruner import AdvantagePruner
from hpo_mab.pruners._keeper import AdvantageWarning, EvidenceKeeper
from hpo_mab.pruners._top_k import TopKPruner
from hpo_mab.pruners._trial_pairs import pairs_of_trials

__all__ = [
    "AdvantagePruner",
    "AdvantageWarning",
    "EvidenceKeeper",
    "TopKPruner",
    "pairs_of_trials",
]
