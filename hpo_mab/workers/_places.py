"""Which worker trains on which device."""

from __future__ import annotations

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
        if value < 1:
            raise ArgumentError(f"--{name} must be at least 1, got {value}.")
    chosen = training.select_device(device)
    if chosen.type != "cuda":
        return (device,) * workers
    cards = [chosen.index] if chosen.index is not None else list(range(torch.cuda.device_count()))
    room = len(cards) * trials_per_gpu
    if workers > room:
        raise ArgumentError(
            f"--workers must be at most {room} ({len(cards)} CUDA devices, {trials_per_gpu} "
            f"workers each), got {workers}; --trials-per-gpu allows more."
        )
    return tuple(f"cuda:{cards[index % len(cards)]}" for index in range(workers))
