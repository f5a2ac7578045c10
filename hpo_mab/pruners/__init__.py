"""Pruners for Optuna studies, and why a trial was pruned."""

from hpo_mab.pruners._advantage_pruner import AdvantagePruner
from hpo_mab.pruners._evidence import RungFidelity
from hpo_mab.pruners._promotion import PromotionPruner, TopKPruner
from hpo_mab.pruners._reasons import why_pruned

__all__ = [
    "AdvantagePruner",
    "PromotionPruner",
    "RungFidelity",
    "TopKPruner",
    "why_pruned",
]
