"""Beta-Bernoulli bandits over shares of a data set: selection, propensities, forgetting."""

from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.bandits._engine import BanditEngine, Figures
from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import BanditSettings
from hpo_mab.bandits._shares import stratified_shares

__all__ = [
    "BanditEngine",
    "BanditSettings",
    "DeviceEngine",
    "Figures",
    "HostEngine",
    "stratified_shares",
]
