"""Versions and hardware, for records. No names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

_PACKAGES = ("hpo_mab", "numpy", "optuna", "scikit-learn", "scipy", "torch", "torchvision")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """What a record needs to be read years later.

    Args:
        device: Device trained on; None is the CPU.
    """
    device = device or torch.device("cpu")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
