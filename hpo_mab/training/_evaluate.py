"""The moving average of the weights, and the evaluation of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_mab._errors import ArgumentError
from hpo_mab.training._batches import Sweep
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


def check_highest(label: int, *, outputs: int) -> None:
    """Raise `ArgumentError` if the highest label of examples to evaluate on has no output."""
    if label >= outputs:
        raise ArgumentError(
            f"labels of the examples to evaluate on must be in [0, {outputs}) for a model of "
            f"{outputs} outputs, got {label}; give the model more outputs."
        )


def evaluate(
    model: nn.Module,
    examples: Sweep,
    *,
    precision: str = "float32",
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a model, in evaluation mode.

    Sums stay on the device until the end; the model's mode is restored.

    Args:
        model: Network from inputs to logits [n, C].
        examples: Examples to evaluate on, on the model's device.
        precision: ``"float32"`` or ``"bfloat16"``.
        forward: Calls the model with other weights, see `WeightAverage`; None calls the model.

    Returns:
        Share of examples classified correctly, in [0, 1], and mean cross-entropy in nats.

    Raises:
        ArgumentError: Labels that the model has no output for.
    """
    was_training = model.training
    model.eval()
    call = forward or model
    try:
        with torch.inference_mode():
            sums = sum(
                _sums(call, inputs, targets, precision=precision, examples=examples)
                for inputs, targets in examples
            )
    finally:
        model.train(was_training)
    correct, loss, count = torch.as_tensor(sums).tolist()
    return correct / count, loss / count


def _sums(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    precision: str,
    examples: Sweep,
) -> Tensor:
    """Correct answers, summed loss and number of examples of a batch, float64 or float32 [3]."""
    with autocast(inputs.device, precision):
        logits = forward(inputs)
    logits = logits.float()
    # On CUDA a label out of range is an assertion that ends all CUDA calls of the process.
    highest = int(targets.max()) if targets.is_cpu else getattr(examples, "highest_label", 0)
    check_highest(highest, outputs=logits.shape[1])
    loss = F.cross_entropy(logits, targets, reduction="sum")
    correct = (logits.argmax(dim=1) == targets).sum()
    return torch.stack([correct.float(), loss, torch.full_like(loss, len(targets))])
