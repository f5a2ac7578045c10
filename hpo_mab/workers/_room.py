"""How many workers a machine has room for, and the device of each."""

from __future__ import annotations

import torch

from hpo_mab import _machine, training
from hpo_mab._errors import ArgumentError, require
from hpo_mab.search._slots import FEWEST_ROUNDS


def worker_devices(workers: int, *, device: str = "auto") -> tuple[str, ...]:
    """A device for each worker; of several CUDA devices, each worker has one.

    Args:
        workers: Number of workers, at least 1.
        device: ``"auto"`` or ``"cuda"`` for all CUDA devices; any other name is the device of
            every worker.

    Raises:
        ArgumentError: An argument below 1, or more workers than CUDA devices.
        UnknownNameError: No such device.
    """
    require(workers >= 1, "--workers", "at least 1", workers)
    chosen = training.select_device(device)
    if chosen.type != "cuda":
        return (device,) * workers
    cards = _cards(chosen)
    if workers > len(cards):
        raise ArgumentError(
            f"--workers must be at most {len(cards)}, the number of CUDA devices of --device "
            f"{device}, got {workers}; one process trains many trials on a device at the same "
            "time, see --slots."
        )
    return tuple(f"cuda:{card}" for card in cards[:workers])


def room(*, device: str = "auto", threads: int = 1) -> int:
    """How many workers use this machine fully without competing for a core or device.

    On CUDA every card has a worker. On the CPU each worker has ``threads`` cores. Networks of a few
    layers are hardly faster with a second thread. A second trial uses a second core fully
    (``benchmarks/cpu_split.py``).

    Args:
        device: ``"auto"`` or ``"cuda"`` for all CUDA devices; any other name is one device.
        threads: CPU threads of a trial, at least 1.

    Returns:
        Number of workers, at least 1; 1 on devices that only one process can use well.
    """
    # Imported here: a run that stays alone does not need it.
    import joblib

    chosen = training.select_device(device)
    if chosen.type == "cuda":
        return len(_cards(chosen))
    if chosen.type != "cpu":
        return 1
    # Cores that this process may use: joblib counts affinity and a container's quota.
    return max(1, int(joblib.cpu_count()) // threads)


def _cards(device: torch.device) -> list[int]:
    return [device.index] if device.index is not None else list(range(torch.cuda.device_count()))


def later_devices(
    *, trials: int, slots: int = 1, device: str = "auto", threads: int = 1
) -> tuple[str, ...]:
    """A device for each process to start; none where this one is enough.

    The workers, this process included, are at most `room`. A worker trains ``slots`` trials at the
    same time, and all workers at most a quarter of the ``trials`` that are left. Each needs as much
    memory as this process holds now.
    """
    workers = min(room(device=device, threads=threads), trials // FEWEST_ROUNDS // slots)
    free, held = _machine.available_memory(), _machine.resident_memory()
    if free is not None and held:
        workers = min(workers, 1 + free // held)
    # This process has the first.
    return worker_devices(max(1, workers), device=device)[1:]
