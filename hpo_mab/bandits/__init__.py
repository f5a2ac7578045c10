"""Beta-Bernoulli bandits over shares of a data set: selection, propensities, forgetting."""

from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import (
    REWARDS,
    BanditEngine,
    BanditSettings,
    above_average,
    stratified_shares,
)

__all__ = [
    "REWARDS",
    "BanditEngine",
    "BanditSettings",
    "DeviceEngine",
    "HostEngine",
    "above_average",
    "stratified_shares",
]
