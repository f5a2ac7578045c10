"""A network on its device: precision, random state, memory, and whether steps are captured."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.samplers import BatchSampler
from hpo_mab.samplers._feedback import check_logits
from hpo_mab.training._batches import Batches, LoaderBatches
from hpo_mab.training._optimizers import is_fused

_NAMES = ("auto", "cpu", "cuda", "mps")


def select_device(name: str = "auto") -> torch.device:
    """The device of that name; ``"auto"`` takes CUDA, else MPS, else the CPU.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"mps"``, ``"cuda"`` or one card, ``"cuda:1"``.

    Raises:
        UnknownNameError: No such kind of device.
        ArgumentError: A device this machine does not have.
    """
    kind, colon, number = name.partition(":")
    if kind not in _NAMES or (colon and not (kind == "cuda" and number.isdecimal())):
        raise UnknownNameError("device", name, _NAMES)
    if kind == "auto":
        kind = next((option for option in ("cuda", "mps") if _is_available(option)), "cpu")
        return torch.device(kind)
    if not _is_available(kind):
        raise ArgumentError(f"device must be one this machine has, got '{name}'; try 'auto'.")
    if number and int(number) >= torch.cuda.device_count():
        raise ArgumentError(
            f"device must be below cuda:{torch.cuda.device_count()}, got '{name}'; --device "
            "replaces that of a study."
        )
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, so that a clock includes it."""
    if device.type == "cuda":
        # Only this thread's stream: other threads train other trials on the same card.
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory() -> None:
    """Free memory that nothing refers to, so that the next trial and other processes can use it."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # On all devices of this process; only unused cached memory is freed.
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def seed_random(seed: int, device: torch.device) -> None:
    """Seed the random states that `random_states` returns."""
    seed_torch(seed, device)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of one device."""
    # `torch.manual_seed` would also seed other cards, whose states are not restored.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """States of the generators that dropout and users' transforms draw from, as files hold them."""
    kind, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(device: torch.device, states: Mapping[str, Any]) -> None:
    """Restore states that `random_states` returned."""
    torch.set_rng_state(states["cpu"].cpu())
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"].cpu())


def _is_available(kind: str) -> bool:
    if kind == "cpu":
        return True
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()


PRECISIONS = ("bfloat16", "float32")


def check_precision(precision: str) -> None:
    """Raise `UnknownNameError` unless ``precision`` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context of mixed precision for bfloat16; without effect for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def to_channels_last(model: nn.Module) -> None:
    """Give a network's weights and buffers of four dimensions the memory format channels last."""
    # Not `Module.to`, which raises for the weights of 3D convolutions.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def to_evaluation(model: nn.Module) -> None:
    """Set a network to evaluation mode.

    Some networks cache values of their weights in evaluation mode and drop them in training mode.
    So training mode is set first: the cache may be of other weights.
    """
    model.train(True)
    model.eval()


#: Lock of the thread that trains; re-entrant, because a training may start another one.
_training_lock = threading.RLock()


@contextlib.contextmanager
def random_state(device: torch.device) -> Iterator[None]:
    """Reserve the global random states for one thread, and restore those of `random_states`.

    torch has one for each device, NumPy and Python have one. Weights, dropout, loaders and users'
    transforms draw from them.
    """
    if not _training_lock.acquire(blocking=False):
        raise ArgumentError(
            "n_jobs must be 1: two trainings at once in one process would share its random state, "
            "and neither would follow from its seed. Start the script several times on one "
            "storage, or use hpo-mab run --workers."
        )
    try:
        before = random_states(device)
        try:
            yield
        finally:
            set_random_states(device, before)
    finally:
        _training_lock.release()


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads of this process, then restore it; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_index_range(sampler: BatchSampler, count: int) -> None:
    """Raise `ArgumentError` if a sampler draws from more examples than there are."""
    # All labels count, also of a sampler that draws from a share of them. On a CUDA device an index
    # beyond the end would end the process.
    if len(sampler.labels) > count:
        raise ArgumentError(
            f"sampler must draw from at most {count} examples, got {len(sampler.labels)}."
        )


def why_no_graph(batches: Batches, sampler: BatchSampler, optimizer: Optimizer) -> str | None:
    """Why a training cannot take its steps by `DeviceStep`; None if it can."""
    if isinstance(batches, LoaderBatches):
        return "a DataLoader brings the batches"
    if sampler.weighs_by_losses:
        return f"{type(sampler).__name__} weighs a batch by its own losses"
    # Only a capture needs the fused form, and only CUDA captures.
    if batches.data.device.type == "cuda" and not is_fused(optimizer):
        return f"the optimiser {type(optimizer).__name__} is not fused"
    return None


def logits_of(forward: Callable[[Tensor], Tensor], inputs: Tensor, *, precision: str) -> Tensor:
    """Logits of a batch in a precision, as float32 [n, C]."""
    with autocast(inputs.device, precision):
        logits = check_logits(forward(inputs))
    return logits.float()
