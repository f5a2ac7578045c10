"""Pruners that decide earlier where the measured advantage allows it."""

from hpo_mab.pruners._advantage_pruner import AdvantagePruner
from hpo_mab.pruners._evidence import AdvantageWarning, RungFidelity
from hpo_mab.pruners._promotion import PromotionPruner, TopKPruner
from hpo_mab.pruners._reasons import why_pruned

__all__ = [
    "AdvantagePruner",
    "AdvantageWarning",
    "PromotionPruner",
    "RungFidelity",
    "TopKPruner",
    "why_pruned",
]
