"""Figures of a comparison, as ``plotly.graph_objects.Figure``."""

from hpo_mab.compare.figures._anytime import anytime_incumbent
from hpo_mab.compare.figures._cost import cost_to_target
from hpo_mab.compare.figures._curves import learning_curves
from hpo_mab.compare.figures._importance import knob_importance
from hpo_mab.compare.figures._knobs import knob_slices
from hpo_mab.compare.figures._pairs import acceleration, fidelity, paired_advantage
from hpo_mab.compare.figures._style import colours
from hpo_mab.compare.figures._training import concentration, reward_rate

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
