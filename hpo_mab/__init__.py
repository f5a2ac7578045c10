"""Hyperparameter search on a short budget, with multi-armed-bandit batch sampling.

The names here are imported on first use, so that ``import hpo_mab`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo_mab.pruners import AdvantagePruner
    from hpo_mab.samplers import MABSampler, UniformSampler
    from hpo_mab.search import TrainingObjective, TrialReporter
    from hpo_mab.training import Budget

__all__ = [
    "AdvantagePruner",
    "Budget",
    "MABSampler",
    "TrainingObjective",
    "TrialReporter",
    "UniformSampler",
]

_MODULES = {
    "AdvantagePruner": "hpo_mab.pruners",
    "Budget": "hpo_mab.training",
    "MABSampler": "hpo_mab.samplers",
    "TrainingObjective": "hpo_mab.search",
    "TrialReporter": "hpo_mab.search",
    "UniformSampler": "hpo_mab.samplers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
