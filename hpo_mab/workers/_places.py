"""Which worker trains on which device."""

from __future__ import annotations

import joblib
import torch

from hpo_mab import training
from hpo_mab._errors import ArgumentError


def places(workers: int, *, device: str = "auto", trials_per_gpu: int = 1) -> tuple[str, ...]:
    """A device for each worker; CUDA devices are dealt out round robin.

    Args:
        workers: Number of workers, at least 1.
        device: ``"auto"`` or ``"cuda"`` for all CUDA devices there are; another name is every
            worker's.
        trials_per_gpu: Workers that may share one CUDA device, at least 1.

    Raises:
        ArgumentError: An argument below 1, or more workers than the CUDA devices may take.
        UnknownNameError: No such device.
    """
    for name, value in (("workers", workers), ("trials-per-gpu", trials_per_gpu)):
        _at_least_one(name, value)
    chosen = training.select_device(device)
    if chosen.type != "cuda":
        return (device,) * workers
    cards = _cards(chosen)
    room = len(cards) * trials_per_gpu
    if workers > room:
        raise ArgumentError(
            f"--workers must be at most {room} ({len(cards)} CUDA devices, {trials_per_gpu} "
            f"workers each), got {workers}; --trials-per-gpu allows more."
        )
    return tuple(f"cuda:{cards[index % len(cards)]}" for index in range(workers))


def room(*, device: str = "auto", threads: int = 1, trials_per_gpu: int = 1) -> int:
    """How many workers keep this machine busy without getting in one another's way.

    On CUDA every card takes its trials. On the CPU each worker has ``threads`` cores: networks of
    a few layers hardly gain by a second thread, while a second trial gains all of its core
    (``benchmarks/cpu_split.py``).

    Args:
        device: As for `places`.
        threads: CPU threads of a trial, at least 1.
        trials_per_gpu: Workers that may share one CUDA device, at least 1.

    Returns:
        Number of workers, at least 1; 1 on devices that only one process can use well.
    """
    _at_least_one("trials-per-gpu", trials_per_gpu)
    chosen = training.select_device(device)
    if chosen.type == "cuda":
        return len(_cards(chosen)) * trials_per_gpu
    if chosen.type != "cpu":
        return 1
    # Those that this process may use: affinity and containers' quotas included.
    return max(1, int(joblib.cpu_count()) // threads)


def _cards(device: torch.device) -> list[int]:
    return [device.index] if device.index is not None else list(range(torch.cuda.device_count()))


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ArgumentError(f"--{name} must be at least 1, got {value}.")
