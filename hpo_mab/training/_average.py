"""Averaged weights, and a network: its state, its numbers, and calls with other weights."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpo_mab._errors import ArgumentError, require

#: Why a network can neither be stacked nor captured.
ASSIGNS = "the network assigns a new tensor to a parameter or buffer"
#: Another such reason: a graph would repeat the numbers that were drawn at its capture.
DRAWS = "the network draws random numbers on the host"
#: Another: a graph would repeat the number of its capture, and the slots of a stack would share it.
COUNTS = "the network changes a number that it keeps in Python"


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Any:
    """Call a network with other parameters and buffers, by name; the network keeps its own."""
    first: dict[int, str] = {}
    given = {}
    for layer, module in model.named_modules():
        for key, own in [*module._parameters.items(), *module._buffers.items()]:
            name = f"{layer}.{key}" if layer else key
            if own is None:
                continue
            # Layers that share a parameter are given the tensor of its first name.
            shared = first.setdefault(id(own), name)
            source = name if name in tensors else shared
            if source in tensors:
                given[name] = tensors[source]
    before = dict(given)
    # With `tie_weights`, torch would swap the tensors of a layer with two names twice, and restore
    # the given ones instead of the network's own.
    outputs = torch.func.functional_call(model, given, (inputs,), tie_weights=False)
    # What the network has assigned is in `given` now, and would be lost.
    if model.training and any(given[name] is not tensor for name, tensor in before.items()):
        raise RuntimeError(ASSIGNS)
    return outputs


def tensor_at(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer that a network has under a name now."""
    tensors, own = owner_of(model, name)
    found: Tensor = tensors[own]
    return found


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def python_numbers(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Numbers in attributes of a network's modules, such as a count of calls, by (module, name)."""
    return {
        (name, key): value.item() if isinstance(value, np.number) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        # Not bools, such as whether a module is in training mode, nor members of an `enum.IntEnum`.
        if type(value) in (int, float, complex) or isinstance(value, np.number)
    }


def set_numbers(model: nn.Module, numbers: Mapping[tuple[str, str], Any]) -> None:
    """Give a network the numbers that `python_numbers` returned."""
    for (path, key), number in numbers.items():
        vars(model.get_submodule(path))[key] = number


def full_state(model: nn.Module) -> dict[str, Any]:
    """All that a network keeps: its ``state_dict``, its other buffers and its numbers."""
    kept = model.state_dict()
    buffers = {name: one for name, one in model.named_buffers() if name not in kept}
    return {"model": kept, "buffers": buffers, "numbers": python_numbers(model)}


def load_full_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a network what `full_state` returned of another of its kind."""
    model.load_state_dict(state["model"])
    for name, saved in state["buffers"].items():
        tensors, key = owner_of(model, name)
        own = tensors.get(key)
        if own is not None and own.shape == saved.shape:
            own.copy_(saved)
        else:  # A network may make a buffer, or change its shape, while it is trained.
            module = model.get_submodule(name.rpartition(".")[0])
            device = next(model.parameters()).device
            module.register_buffer(key, saved.to(device, copy=True), persistent=False)
    set_numbers(model, state["numbers"])


class NetworkWatch:
    """Finds what steps with a network change in Python, and whether they draw on the host.

    A graph would keep the value of its capture, and the slots of a stack would share it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors: list[Tensor] = []
        self._last: dict[str, Any] = {}

    def call(
        self, step: Callable[[], None], *, torch_draws: bool, compare: bool = True
    ) -> str | None:
        """Call a step; returns the reason against a graph and a stack, None if there is none.

        ``torch_draws`` is whether torch's generator of the host counts: on a CPU dropout uses it.
        With ``compare`` the network must be as after the last call. Nothing is compared at the
        first one: a first step may make buffers, or set numbers such as the size of its input.
        """
        before = _host_random_states(torch_draws)
        step()
        draws = before != _host_random_states(torch_draws)
        tensors = [*self._model.parameters(), *self._model.buffers()]
        now = {
            ASSIGNS: list(map(id, tensors)),
            DRAWS: _generator_states(self._model),
            COUNTS: repr(python_numbers(self._model)),  # NaN is not equal to itself.
        }
        last, self._last = self._last, now
        # Kept until the next call: a new tensor may get the id of one that is freed.
        self._tensors = tensors
        if draws:
            return DRAWS
        return next((why for why in now if compare and last and last[why] != now[why]), None)


def _host_random_states(with_torch: bool) -> tuple[Any, ...]:
    """States of the host's global random generators: Python's, NumPy's and, if asked, torch's."""
    states = random.getstate(), pickle.dumps(np.random.get_state())
    return (*states, torch.get_rng_state().numpy().tobytes()) if with_torch else states


def _generator_states(model: nn.Module) -> list[bytes]:
    """States of the random generators of the host that modules have as attributes."""
    kinds = (random.Random, np.random.Generator, np.random.RandomState)
    held = [one for module in model.modules() for one in vars(module).values()]
    # `random.SystemRandom` has no state.
    held = [one for one in held if not isinstance(one, random.SystemRandom)]
    return [
        one.get_state().numpy().tobytes()
        if isinstance(one, torch.Generator)
        # The state: a class within a function cannot be pickled.
        else pickle.dumps(one.getstate() if isinstance(one, random.Random) else one)
        for one in held
        if isinstance(one, kinds) or (isinstance(one, torch.Generator) and one.device.type == "cpu")
    ]


def average_share(window: float | Tensor, steps: Tensor) -> Tensor:
    """Weight of the newest weights in their average after ``steps`` steps, see `WeightAverage`."""
    return 1 / (window * steps).clamp(min=1)


class WeightAverage:
    """Exponential moving average of weights over about the last ``window`` share of the steps.

    After step ``s`` (from 1): ``average += (weights - average) / max(1, window * s)``. Floating
    buffers, such as the running statistics of batch normalisation, are averaged the same way.
    Integer buffers are not, nor those that hold infinities at first, such as masks. Averages of SGD
    iterates rank trials early, and need less decay of the learning rate (Izmailov et al. 2018;
    Morales-Brotons et al. 2024, arXiv 2411.18704).

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
        require(0 < window <= 1, "window", "a share in (0, 1]", window)
        self._model = model
        self._window = window
        # Parameters that modules share have one name in this mapping, and one average.
        named = dict(model.named_parameters()) | averaged_buffers(model)
        if not named:
            raise ArgumentError("average must be 0 for a model without weights to average.")
        self._names = list(named)
        # Looked up at each step: a network may assign a new tensor to its buffer.
        self._owners = [owner_of(model, name) for name in named]
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
        weights = [tensors[name] for tensors, name in self._owners]
        moves = torch._foreach_sub(weights, self._average)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(self._average, moves)

    def forward(self) -> Callable[[Tensor], Tensor]:
        """The network as a function of its inputs, with averaged instead of trained weights."""
        return functools.partial(call_with, self._model, self.weights())

    def weights(self) -> dict[str, Tensor]:
        """Averages by name, in the network's present types; copied only where the type differs.

        Raises:
            ArgumentError: A layer of the network was replaced.
        """
        # All names of a shared tensor, because two buffers may be one tensor by now.
        present = dict(self._model.named_parameters(remove_duplicate=False)) | dict(
            self._model.named_buffers(remove_duplicate=False)
        )
        for name, (tensors, own) in zip(self._names, self._owners, strict=True):
            if present.get(name) is not tensors.get(own):
                raise ArgumentError(
                    f"model must keep its layers while its weights are averaged; that of '{name}' "
                    "was replaced."
                )
        kept = zip(self._names, self._owners, self._average, strict=True)
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


def averaged_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a network that are averaged, by name: floating ones that are finite.

    The mean of a mask's infinities would be NaN.
    """
    floating = ((k, each) for k, each in model.named_buffers() if each.is_floating_point())
    return {name: buffer for name, buffer in floating if bool(buffer.isfinite().all())}


def owner_of(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary of a network that holds a parameter or buffer, and its key there."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if own in module._parameters else module._buffers), own


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a network whose parameters and buffers are new, and share the network's memory."""
    # `copy.deepcopy` takes what this mapping holds in place of a copy.
    shared: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in model.buffers()}
    try:
        for weight in model.parameters():
            shared[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
        made = copy.deepcopy(model, shared)
    # ValueError: a weight of a lazy layer has no shape before the first batch.
    except (TypeError, RuntimeError, ValueError) as error:
        raise ArgumentError(
            "model must be a network that copy.deepcopy can copy, "
            f"got {type(model).__name__}: {error}"
        ) from error
    copies = dict(made.named_modules())
    for name, own in model.named_modules():
        if name in copies and _owner(vars(copies[name]).get("forward")) is own:
            raise ArgumentError(
                f"model must not have a function in place of {type(own).__name__}.forward, which a "
                "copy shares; decorate forward in the class, or use torch.compile(model)."
            )
    return made


def _owner(function: Any) -> Any:
    """The object whose method a function decorates; None if there is none."""
    while function is not None and not hasattr(function, "__self__"):
        function = getattr(function, "__wrapped__", None)
    return getattr(function, "__self__", None)
