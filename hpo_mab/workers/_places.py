"""Which worker trains on which device."""

from __future__ import annotations

import joblib
import torch

from hpo_mab import training
from hpo_mab._errors import ArgumentError


def places(workers: int, *, device: str = "auto") -> tuple[str, ...]:
    """A device for each worker; CUDA devices are dealt out round robin.

    Args:
        workers: Number of workers, at least 1.
        device: ``"auto"`` or ``"cuda"`` for all CUDA devices there are; another name is every
            worker's.

    Raises:
        ArgumentError: An argument below 1, or more workers than CUDA devices.
        UnknownNameError: No such device.
    """
    if workers < 1:
        raise ArgumentError(f"--workers must be at least 1, got {workers}.")
    chosen = training.select_device(device)
    if chosen.type != "cuda":
        return (device,) * workers
    cards = _cards(chosen)
    if workers > len(cards):
        raise ArgumentError(
            f"--workers must be at most {len(cards)}, the number of CUDA devices, got {workers}; "
            "one process trains many trials on a device at the same time, see --slots."
        )
    return tuple(f"cuda:{cards[index % len(cards)]}" for index in range(workers))


def room(*, device: str = "auto", threads: int = 1) -> int:
    """How many workers keep this machine busy without getting in one another's way.

    On CUDA every card has a worker. On the CPU each worker has ``threads`` cores: networks of
    a few layers hardly gain by a second thread, while a second trial gains all of its core
    (``benchmarks/cpu_split.py``).

    Args:
        device: As for `places`.
        threads: CPU threads of a trial, at least 1.

    Returns:
        Number of workers, at least 1; 1 on devices that only one process can use well.
    """
    chosen = training.select_device(device)
    if chosen.type == "cuda":
        return len(_cards(chosen))
    if chosen.type != "cpu":
        return 1
    # Those that this process may use: affinity and containers' quotas included.
    return max(1, int(joblib.cpu_count()) // threads)


def _cards(device: torch.device) -> list[int]:
    return [device.index] if device.index is not None else list(range(torch.cuda.device_count()))
