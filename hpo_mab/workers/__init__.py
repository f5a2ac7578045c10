"""Several workers on one study: processes of this machine, or a Ray cluster."""

from hpo_mab.workers._processes import ProcessLauncher
from hpo_mab.workers._ray import RayLauncher
from hpo_mab.workers._room import Later, WorkerWarning, room, worker_devices

__all__ = ["Later", "ProcessLauncher", "RayLauncher", "WorkerWarning", "room", "worker_devices"]
