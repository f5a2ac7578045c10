"""Beta-Bernoulli bandits over shares of a data set: selection, propensities, forgetting."""

from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import (
    REWARDS,
    BanditEngine,
    BanditSettings,
    Figures,
    above_average,
    stratified_shares,
)

__all__ = [
    "REWARDS",
    "BanditEngine",
    "BanditSettings",
    "DeviceEngine",
    "Figures",
    "HostEngine",
    "above_average",
    "stratified_shares",
]
