"""Hyperparameter search on a short budget, with multi-armed-bandit batch sampling.

The names here are imported on first use, so that ``import hpo_mab`` is cheap.

`hpo_mab.search` runs a study: definition, plan, worker. `hpo_mab.training` trains a trial on
batches that `hpo_mab.samplers` draw with their `hpo_mab.bandits`. ``search._trial_record`` stores
its evaluations by `hpo_mab.storage`. `hpo_mab.advantage`, `hpo_mab.pruners`, `hpo_mab.compare` and
`hpo_mab.dashboard` read them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab._errors import HpoMabError, HpoMabWarning
    from hpo_mab.pruners import AdvantagePruner
    from hpo_mab.samplers import MABSampler, UniformSampler
    from hpo_mab.search import TrainingObjective, TrialReporter
    from hpo_mab.training import Budget

    #: None where the package is not installed, as in a checkout on the path.
    __version__: str | None

__all__ = [
    "AdvantagePruner",
    "Budget",
    "HpoMabError",
    "HpoMabWarning",
    "MABSampler",
    "TrainingObjective",
    "TrialReporter",
    "UniformSampler",
]

_load, __dir__ = lazy_names(__name__)


def _attribute(name: str) -> Any:
    if name != "__version__":
        return _load(name)
    from hpo_mab._machine import version_of

    return version_of(__name__)


# Not ``def __getattr__``: type checkers would then accept every name.
__getattr__ = _attribute
