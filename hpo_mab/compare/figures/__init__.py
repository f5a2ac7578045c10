"""Figures of a comparison, as ``plotly.graph_objects.Figure``."""

from hpo_mab.compare.figures._budgets import (
    acceleration,
    fidelity,
    learning_curves,
    paired_advantage,
)
from hpo_mab.compare.figures._search import (
    anytime_incumbent,
    concentration,
    cost_to_target,
    knob_importance,
    knob_slices,
    reward_rate,
)
from hpo_mab.compare.figures._style import colours

__all__ = [
    "acceleration",
    "anytime_incumbent",
    "colours",
    "concentration",
    "cost_to_target",
    "fidelity",
    "knob_importance",
    "knob_slices",
    "learning_curves",
    "paired_advantage",
    "reward_rate",
]
