"""Several workers on one study: processes of this machine, or a Ray cluster."""

from hpo_mab.workers._processes import ProcessLauncher
from hpo_mab.workers._ray import RayLauncher
from hpo_mab.workers._room import room

__all__ = ["ProcessLauncher", "RayLauncher", "room"]
