"""Several workers on one study: processes of this machine, or a Ray cluster."""

from hpo_mab.workers._processes import Later, ProcessLauncher, room, worker_devices
from hpo_mab.workers._ray import RayLauncher

__all__ = ["Later", "ProcessLauncher", "RayLauncher", "room", "worker_devices"]
