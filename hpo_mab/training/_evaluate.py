"""The moving average of the weights, and the evaluation of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hpo_mab._errors import ArgumentError
from hpo_mab.training._device import autocast


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
        ArgumentError: A window outside its bound.
    """

    def __init__(self, model: nn.Module, *, window: float) -> None:
        check_window(window)
        if window == 0:
            raise ArgumentError("average must be above 0 for a moving average, got 0.")
        self._model = model
        self._window = window
        # Parameters that modules share have one name in this mapping, and one average.
        named = dict(model.named_parameters()) | {
            name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()
        }
        self._names = list(named)
        # Looked up at each step: a network may assign a new tensor to its buffer.
        self._places = [_place(model, name) for name in named]
        self._average = [tensor.detach().clone() for tensor in named.values()]
        device = self._average[0].device if self._average else torch.device("cpu")
        self._steps = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one more step to the average; does not wait for the device."""
        self._steps += 1
        share = 1 / (self._window * self._steps).clamp(min=1)
        weights = [tensors[name] for tensors, name in self._places]
        moves = torch._foreach_sub(weights, self._average)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(self._average, moves)

    def forward(self) -> Callable[[Tensor], Tensor]:
        """The network as a function of its inputs, with averaged instead of trained weights."""
        averaged = dict(zip(self._names, self._average, strict=True))

        def call(inputs: Tensor) -> Tensor:
            outputs: Tensor = torch.func.functional_call(self._model, averaged, (inputs,))
            return outputs

        return call

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


def _place(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary of a network that holds a parameter or buffer, and its key there."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if own in module._parameters else module._buffers), own


def check_window(window: float) -> None:
    """Raise `ArgumentError` unless ``window`` is a share in [0, 1]; 0 stands for no average."""
    if not 0.0 <= window <= 1.0:
        raise ArgumentError(f"average must be a share in [0, 1], got {window}.")


#: What an evaluation may hold on a CPU; on a CUDA device it is this share of its memory.
_HOST_BYTES, _DEVICE_SHARE = 256 * 2**20, 1 / 8
#: An operation may hold an input and a workspace as large as its output, and a skip a fourth.
_COPIES = 4


class _Largest(TorchFunctionMode):
    """Notes the bytes of the largest tensor of one example that an operation returns."""

    nbytes: int = 1

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        # Other first dimensions are those of weights.
        if isinstance(made, Tensor) and made.shape[:1] == (1,):
            self.nbytes = max(self.nbytes, made.nbytes)
        return made


def examples_at_once(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    """How many examples an evaluation can hold, at least 1; does not wait for the device.

    It follows from the network, the shape of an input and the device, so that an evaluation that
    is repeated has the same batches. The bound is 256 MiB on a CPU, an eighth of a CUDA device.

    Args:
        forward: The network, in evaluation mode; called with one example.
        inputs: Inputs on the device, [n, ...], at least one.
    """
    with torch.no_grad(), _Largest() as largest:
        forward(inputs[:1])
    room: float = _HOST_BYTES
    if inputs.device.type == "cuda":
        room = torch.cuda.get_device_properties(inputs.device).total_memory * _DEVICE_SHARE
    count: int = int(room) // (_COPIES * largest.nbytes)
    return max(1, count)


class Evaluator:
    """Evaluates a network on batches as large as memory allows, see `examples_at_once`.

    Args:
        model: Network from inputs to logits [n, C].
        precision: ``"float32"`` or ``"bfloat16"``.
    """

    def __init__(self, model: nn.Module, *, precision: str = "float32") -> None:
        self._model = model
        self._precision = precision
        self._at_once: int | None = None

    def __call__(
        self,
        examples: Iterable[tuple[Tensor, Tensor]],
        *,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[float, float]:
        """Accuracy and mean loss, see `evaluate`; inputs of all calls have one shape."""
        was_training = self._model.training
        self._model.eval()
        call = forward or self._model
        sums: list[Tensor] = []
        try:
            with torch.inference_mode():
                for inputs, targets in examples:
                    if self._at_once is None:
                        self._at_once = examples_at_once(call, inputs)
                    sums += [
                        _sums(call, *part, precision=self._precision)
                        for part in zip(
                            torch.split(inputs, self._at_once),
                            torch.split(targets, self._at_once),
                            strict=True,
                        )
                    ]
        finally:
            self._model.train(was_training)
        correct, loss, count = torch.as_tensor(sum(sums)).tolist()
        return correct / count, loss / count


def evaluate(
    model: nn.Module,
    examples: Iterable[tuple[Tensor, Tensor]],
    *,
    precision: str = "float32",
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a model, in evaluation mode.

    Batches that memory may not hold are cut, see `examples_at_once`. Sums stay on the device until
    the end; the model's mode is restored.

    Args:
        model: Network from inputs to logits [n, C].
        examples: Batches of inputs and targets on the model's device, see `Sweep`.
        precision: ``"float32"`` or ``"bfloat16"``.
        forward: Calls the model with other weights, see `WeightAverage`; None calls the model.

    Returns:
        Share of examples classified correctly, in [0, 1], and mean cross-entropy in nats.
    """
    return Evaluator(model, precision=precision)(examples, forward=forward)


def _sums(
    forward: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, *, precision: str
) -> Tensor:
    """Correct answers, summed loss and number of examples of a batch, float64 or float32 [3]."""
    with autocast(inputs.device, precision):
        logits = forward(inputs)
    logits = logits.float()
    loss = F.cross_entropy(logits, targets, reduction="sum")
    correct = (logits.argmax(dim=1) == targets).sum()
    return torch.stack([correct.float(), loss, torch.full_like(loss, len(targets))])
