"""Who runs a trial: a name for this process that others can check."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
from pathlib import Path


@functools.cache
def machine() -> str:
    """A name for the set of processes that this one can see: machine, start-up and container.

    It is a digest: records hold no names of hosts.
    """
    parts = [platform.node()]
    # Off Linux there are neither start-ups nor containers to tell apart by.
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


def this_process() -> str:
    """A name of this process that no other has, before or after it: ``machine:pid:started``."""
    pid = os.getpid()
    return f"{machine()}:{pid}:{_started(pid)}"


def is_here(process: str) -> bool:
    """Whether the process runs, or ran, where this one can see it."""
    return process.startswith(f"{machine()}:")


def is_gone(process: str) -> bool:
    """Whether a process of this machine has ended."""
    _, pid, started = process.split(":")
    return _started(int(pid)) != started


def _started(pid: int) -> str:
    """When the process was started; empty if there is none (or, off Linux, unknown)."""
    try:
        # After the command's name, which may hold anything: state is field 3, start field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else _alive(pid)


def _alive(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
