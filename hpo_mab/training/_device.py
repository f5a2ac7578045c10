"""A network on its device: precision, random state, capture, averaged weights."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpo_mab._errors import ArgumentError, UnknownNameError, require
from hpo_mab.samplers import BatchSampler
from hpo_mab.training._batches import Batches, DeviceBatches, LoaderBatches
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
    """Free memory that nothing refers to, so that the next trial and other processes can use it."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # On all devices of this process; only unused cached memory is freed.
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of the generators that dropout and users' transforms draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Restore states that `random_states` returned."""
    torch.set_rng_state(states["cpu"].cpu())
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


#: Lock of the thread that trains; re-entrant, because a training may start another one.
_training_thread = threading.RLock()


@contextlib.contextmanager
def random_state(device: torch.device) -> Iterator[None]:
    """Reserve torch's global random state for one thread, and restore it afterwards.

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


def choose_capture(
    graph: bool | None, batches: Batches, sampler: BatchSampler, optimizer: Optimizer
) -> tuple[bool, str | None]:
    """Whether a training takes its steps by `DeviceStep`.

    Args:
        graph: Whether it must; None: where a graph can be captured.
        batches: Its training examples.
        sampler: Its batch sampler.
        optimizer: Its optimiser.

    Returns:
        Whether it does and, with ``graph=None`` on a CUDA device, why it does not.

    Raises:
        ArgumentError: It must, and batches, sampler or optimiser do not allow it.
    """
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    on_cuda = any(weight.device.type == "cuda" for weight in weights)
    reason = None
    if not isinstance(batches, DeviceBatches):
        loaded = isinstance(batches, LoaderBatches)
        reason = f"{'a DataLoader' if loaded else type(batches).__name__} brings the batches"
    elif sampler.weighs_by_losses:
        reason = f"{type(sampler).__name__} weighs a batch by its own losses"
    elif on_cuda and not is_fused(optimizer):
        reason = f"the optimiser {type(optimizer).__name__} has no fused form"
    if graph and reason is not None:
        raise ArgumentError(f"graph must not be True here: {reason}.")
    if graph is None:
        return on_cuda and reason is None, reason if on_cuda else None
    return graph, None


def logits_of(forward: Callable[[Tensor], Tensor], inputs: Tensor, *, precision: str) -> Tensor:
    """Logits of a batch in a precision, as float32 [n, C]."""
    with autocast(inputs.device, precision):
        logits = check_logits(forward(inputs))
    return logits.float()


def check_logits(outputs: Any) -> Tensor:
    """What a network has returned for a batch; raises `ArgumentError` if it is not logits."""
    if isinstance(outputs, Tensor) and outputs.ndim == 2:
        return outputs
    got = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ArgumentError(f"logits must be a tensor [B, C], got {got}.")


def average_share(window: float | Tensor, steps: Tensor) -> Tensor:
    """Weight of the newest weights in their average after ``steps`` steps, see `WeightAverage`."""
    return 1 / (window * steps).clamp(min=1)


#: Why a network can neither be stacked nor captured.
ASSIGNS = "the network assigns a new tensor to a parameter or buffer"
#: Likewise: a graph would repeat one decision.
DRAWS = "the network draws random numbers on the host"


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Any:
    """Call a network with other parameters and buffers, by name; it keeps its own.

    Raises:
        RuntimeError: In training, the network assigns a new tensor to one of them.
    """
    first: dict[int, str] = {}
    given = {}
    for layer, module in model.named_modules():
        for key, own in [*module._parameters.items(), *module._buffers.items()]:
            place = f"{layer}.{key}" if layer else key
            # Layers that share a parameter are given the tensor of its first name.
            if own is not None and (name := first.setdefault(id(own), place)) in tensors:
                given[place] = tensors[name]
    before = dict(given)
    # With `tie_weights`, torch would leave them in a layer that has two names.
    outputs = torch.func.functional_call(model, given, (inputs,), tie_weights=False)
    # What the network has assigned is in `given` now, and would be lost.
    if model.training and any(given[name] is not tensor for name, tensor in before.items()):
        raise RuntimeError(ASSIGNS)
    return outputs


class WeightAverage:
    """Exponential moving average of weights over about the last ``window`` share of the steps.

    After step ``s`` (from 1): ``average += (weights - average) / max(1, window * s)``. Floating
    buffers, such as the running statistics of batch normalisation, are averaged the same way;
    integer buffers are not. Averages of SGD iterates rank trials early, and need less decay of the
    learning rate (Izmailov et al. 2018; Morales-Brotons et al. 2024, arXiv 2411.18704).

    The window grows with the steps. The averaging function of
    `torch.optim.swa_utils.AveragedModel` reads the step count on the host, so a CUDA graph could
    not contain it. Here all of `update` runs on the device.

    Args:
        model: The network; its parameters and buffers must keep their names, shapes and device.
        window: Share of the steps so far, in (0, 1].

    Raises:
        ArgumentError: A window outside its bound, or a network without weights.

    Examples:
        >>> import torch
        >>> from hpo_mab.training import WeightAverage
        >>> network = torch.nn.Linear(3, 2)
        >>> average = WeightAverage(network, window=0.2)
        >>> average.update()  # after each step of the optimiser
        >>> average.forward()(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module, *, window: float) -> None:
        require(0 < window <= 1, "average", "a share in (0, 1]", window)
        self._model = model
        self._window = window
        # Parameters that modules share have one name in this mapping, and one average.
        named = dict(model.named_parameters()) | {
            name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()
        }
        if not named:
            raise ArgumentError("average must be 0 for a model without weights to average.")
        self._names = list(named)
        # Looked up at each step: a network may assign a new tensor to its buffer.
        self._places = [_owner_of(model, name) for name in named]
        # At least float32: in half precision the small steps of an average are rounded to nothing.
        self._average = [
            tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            for tensor in named.values()
        ]
        self._steps = torch.zeros((), device=self._average[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one more step to the average; does not wait for the device."""
        self._steps += 1
        share = average_share(self._window, self._steps)
        weights = [tensors[name] for tensors, name in self._places]
        moves = torch._foreach_sub(weights, self._average)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(self._average, moves)

    def forward(self) -> Callable[[Tensor], Tensor]:
        """The network as a function of its inputs, with averaged instead of trained weights."""
        return functools.partial(call_with, self._model, self.weights())

    def weights(self) -> dict[str, Tensor]:
        """Averages by name, of the types that the network has now; others are not copied."""
        kept = zip(self._names, self._places, self._average, strict=True)
        return {name: average.to(tensors[own].dtype) for name, (tensors, own), average in kept}

    def state_dict(self) -> dict[str, Any]:
        """The average and its number of steps; the tensors are not copied."""
        return {"average": dict(zip(self._names, self._average, strict=True)), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a saved average.

        Raises:
            ArgumentError: A state of another network.
        """
        if list(state["average"]) != self._names:
            raise ArgumentError("the average belongs to a network with other parameters.")
        for own, saved in zip(self._average, state["average"].values(), strict=True):
            own.copy_(saved)
        self._steps.copy_(state["steps"])


def _owner_of(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary of a network that holds a parameter or buffer, and its key there."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if own in module._parameters else module._buffers), own
