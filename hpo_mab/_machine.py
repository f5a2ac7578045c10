"""This machine: its free memory, and the versions and hardware that records name."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_MACHINE = Path("/proc/meminfo")
_PROCESS = Path("/proc/self/statm")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def expanded(path: str | Path) -> Path:
    """A path with ``~`` replaced by the home folder; as it is where there is no such user."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def available_memory() -> int | None:
    """Bytes that this process may still allocate; None on other systems than Linux."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(1024 * _number_after(_MACHINE, "MemAvailable:"))
    # Limits of a container, or of a job of Slurm; the file holds "max" where there is none. What
    # was read of files is not counted: the kernel frees it where a process needs the memory.
    for group in _groups():
        with contextlib.suppress(OSError, ValueError):
            limit = int((group / "memory.max").read_text())
            found.append(max(0, limit - _number_after(group / "memory.stat", "anon")))
    return min(found, default=None)


def _groups() -> list[Path]:
    """Folders of the control groups (version 2) that this process is in, the root last."""
    own = "/"
    with contextlib.suppress(OSError):
        lines = _OWN_GROUP.read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), own)
    folder = _GROUPS / own.strip("/")
    return [folder, *folder.parents][: len(folder.parts) - len(_GROUPS.parts) + 1]


def resident_memory() -> int | None:
    """Bytes of memory that this process holds; None on other systems than Linux."""
    with contextlib.suppress(OSError):
        return int(_PROCESS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _number_after(file: Path, name: str) -> int:
    """The number after a name that begins a line."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    raise ValueError(f"{file} has no line '{name}'.")


_PACKAGES = (
    "hpo_mab",
    "numpy",
    "optuna",
    "plotly",
    "scikit-learn",
    "scipy",
    "sqlalchemy",
    "torch",
    "torchvision",
)


def environment() -> dict[str, Any]:
    """Versions and hardware as JSON values; no names of hosts or users, no paths."""
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "mps": torch.backends.mps.is_available(),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def version_of(package: str) -> str | None:
    """A package's version; None where it is not installed, as in a checkout on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
