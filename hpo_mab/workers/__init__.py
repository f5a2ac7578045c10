"""Several workers on one study: processes of this machine, or a Ray cluster."""

from hpo_mab.workers._places import places, room
from hpo_mab.workers._processes import ProcessLauncher
from hpo_mab.workers._ray import RayLauncher

__all__ = ["ProcessLauncher", "RayLauncher", "places", "room"]
