"""Memory of this machine and of this process, by Linux's own figures."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_PROCESS = Path("/proc/self/statm")
_CONTAINER = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that this process may still allocate; None on other systems than Linux."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(1024 * _field(_MACHINE, "MemAvailable:"))
    # A container's limit; the file holds "max" where there is none. What the container has read of
    # files is not counted: the kernel frees it where a process needs the memory.
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CONTAINER / "memory.max").read_text())
        found.append(max(0, limit - _field(_CONTAINER / "memory.stat", "anon")))
    return min(found, default=None)


def resident() -> int | None:
    """Bytes of memory that this process holds; None on other systems than Linux."""
    with contextlib.suppress(OSError):
        return int(_PROCESS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _field(file: Path, name: str) -> int:
    """The number after a name that begins a line.

    Raises:
        ValueError: There is no such line.
    """
    for line in file.read_text().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    raise ValueError(f"{file} has no line '{name}'.")
