"""The device of a training, the precision of its arithmetic, its random state and threads."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

import torch

from hpo_mab._errors import ArgumentError, UnknownNameError

_NAMES = ("auto", "cpu", "cuda", "mps")


def select_device(name: str = "auto") -> torch.device:
    """The device of that name; ``"auto"`` takes CUDA, else MPS, else the CPU.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"mps"``, ``"cuda"`` or one card, ``"cuda:1"``.

    Raises:
        UnknownNameError: No such kind of device.
        ArgumentError: A device this machine does not have.
    """
    kind, _, number = name.partition(":")
    if kind not in _NAMES or (number and not (kind == "cuda" and number.isdecimal())):
        raise UnknownNameError("device", name, _NAMES)
    if kind == "auto":
        kind = next((option for option in ("cuda", "mps") if _present(option)), "cpu")
        return torch.device(kind)
    if not _present(kind):
        raise ArgumentError(f"device must be one this machine has, got '{name}'; try 'auto'.")
    if number and int(number) >= torch.cuda.device_count():
        raise ArgumentError(f"device must be below cuda:{torch.cuda.device_count()}, got '{name}'.")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, so that a clock includes it."""
    if device.type == "cuda":
        # Only this thread's stream: other threads train other trials on the same card.
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory() -> None:
    """Free unused memory, so that the next trial and other processes can use it."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # On all devices of this process; only unused cached memory is freed.
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _present(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return True


PRECISIONS = ("bfloat16", "float32")


def check_precision(precision: str) -> None:
    """Raise `UnknownNameError` unless ``precision`` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context of mixed precision for bfloat16; without effect for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


#: Held by the thread that trains; it may start a training within another.
_training_thread = threading.RLock()


@contextlib.contextmanager
def random_state(device: torch.device) -> Iterator[None]:
    """Torch's global random state, for one thread alone and restored afterwards.

    Weights, dropout and loaders draw from it, and torch has one for the whole process.
    """
    if not _training_thread.acquire(blocking=False):
        raise ArgumentError(
            "n_jobs must be 1, or trials run one after the other: two at once in one process would "
            "share torch's random state, and neither would follow from its seed. Start several "
            "processes on one storage, e.g. with hpo-mab run --workers."
        )
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        _training_thread.release()


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """So many CPU threads of this process, restored afterwards; None leaves their number."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
