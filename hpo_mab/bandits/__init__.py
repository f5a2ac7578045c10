"""Beta-Bernoulli bandits over shares of a data set: selection, propensities, forgetting."""

from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import BanditEngine, BanditSettings, Figures, stratified_shares

__all__ = [
    "BanditEngine",
    "BanditSettings",
    "DeviceEngine",
    "Figures",
    "HostEngine",
    "stratified_shares",
]
