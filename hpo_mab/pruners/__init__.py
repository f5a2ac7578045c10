"""Pruners that decide earlier where the measured advantage allows it."""

from hpo_mab.pruners._advantage_pruner import AdvantagePruner
from hpo_mab.pruners._evidence import (
    AdvantageWarning,
    EvidenceKeeper,
    RungFidelity,
    pairs_of_trials,
)
from hpo_mab.pruners._promotion import PromotionPruner, TopKPruner
from hpo_mab.pruners._reasons import why_pruned

__all__ = [
    "AdvantagePruner",
    "AdvantageWarning",
    "EvidenceKeeper",
    "PromotionPruner",
    "RungFidelity",
    "TopKPruner",
    "pairs_of_trials",
    "why_pruned",
]
