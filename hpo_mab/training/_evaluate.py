"""Accuracy and loss of a network on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hpo_mab._errors import ArgumentError, memory_reason
from hpo_mab.samplers._feedback import check_range
from hpo_mab.training._batches import EVALUATED
from hpo_mab.training._device import autocast, check_precision, logits_of, to_evaluation

#: Bytes that the tensors of an evaluation may take on a CPU; on CUDA a share of the device's
#: memory.
_HOST_BYTES, _DEVICE_SHARE = 256 * 2**20, 1 / 8
#: How many tensors of the largest output's size exist at once: an operation's input, output and
#: workspace, and the input of a skip connection.
_COPIES = 4


class _Largest(TorchFunctionMode):
    """Records the bytes per example of the largest output whose first dimension is ``count``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self.nbytes = 1

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        # Tensors of another first dimension are weights, not outputs of the examples.
        if isinstance(made, Tensor) and made.shape[:1] == (self._count,):
            self.nbytes = max(self.nbytes, made.nbytes // self._count)
        return made


def examples_at_once(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    """How many examples an evaluation can hold, at least 1; does not wait for the device.

    It depends on the network, the shape of an input and the device only. So a repeated evaluation
    has the same batches. The bound is 256 MiB on a CPU, an eighth of a CUDA device.

    Args:
        forward: The network, in evaluation mode; called with one example, or with two if it raises
            then.
        inputs: Inputs on the device, [n, ...], at least one.
    """
    try:
        largest = _largest_of(forward, inputs[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        # Some networks raise for one example: they use batch statistics, or call `squeeze`.
        if len(inputs) < 2 or memory_reason(error) is not None:
            raise
        largest = _largest_of(forward, inputs[:2])
    room: float = _HOST_BYTES
    if inputs.device.type == "cuda":
        room = torch.cuda.get_device_properties(inputs.device).total_memory * _DEVICE_SHARE
    count: int = int(room) // (_COPIES * largest)
    return max(1, count)


def _largest_of(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    """Bytes an example of the largest tensor of a forward pass."""
    with torch.no_grad(), _Largest(len(inputs)) as largest:
        forward(inputs)
    found: int = largest.nbytes
    return found


def evaluate(
    model: nn.Module,
    sweep: Iterable[tuple[Tensor, Tensor]],
    *,
    precision: str = "float32",
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a model, in evaluation mode.

    Batches whose tensors may exceed 256 MiB, on CUDA an eighth of the device's memory, are cut.
    Sums stay on the device until the end; the model's mode is restored.

    Args:
        model: Network from inputs to logits [n, C].
        sweep: Batches of inputs and targets on the model's device, as of a `DeviceSweep`;
            their inputs have one shape.
        precision: ``"float32"`` or ``"bfloat16"``.
        forward: Calls the model with other weights, see `WeightAverage`; None calls the model.

    Returns:
        Share of examples classified correctly, in [0, 1], and mean cross-entropy in nats.

    Raises:
        ArgumentError: Labels that the model has no output for.
        UnknownNameError: No such precision.
    """
    check_precision(precision)
    # The mode of each module: a user may have set some to evaluation.
    modes = [(module, module.training) for module in model.modules()]
    to_evaluation(model)
    call = forward or model
    sums: list[Tensor] = []
    at_once: int | None = None
    try:
        # Not `inference_mode`: no training step can use the tensors that a network keeps from it.
        with torch.no_grad():
            for inputs, targets in sweep:
                if at_once is None:
                    with autocast(inputs.device, precision):
                        at_once = examples_at_once(call, inputs)
                sums += [
                    _score_sums(call, *part, precision=precision, sweep=sweep)
                    for part in zip(
                        torch.split(inputs, at_once), torch.split(targets, at_once), strict=True
                    )
                ]
    finally:
        # An override of `train` may do more than set modes. Training mode comes first, because
        # networks then drop values cached of other weights.
        model.train(True)
        model.train(modes[0][1])
        for module, mode in modes:
            module.training = mode
    if not sums:
        raise ArgumentError("sweep must give at least one batch at each pass, got none.")
    correct, loss, count = torch.as_tensor(sum(sums)).tolist()
    return correct / count, loss / count


def _score_sums(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    precision: str,
    sweep: Iterable[tuple[Tensor, Tensor]],
) -> Tensor:
    """Correct answers, summed loss and number of examples of a batch, float32 [3]."""
    logits = logits_of(forward, inputs, precision=precision)
    # On another device the largest label of a batch would wait for it.
    highest = None if targets.is_cpu else getattr(sweep, "highest_label", None)
    low, high = map(int, torch.aminmax(targets)) if highest is None else (0, highest)
    check_range(low, high, outputs=logits.shape[1], what=EVALUATED)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    correct = (logits.argmax(dim=1) == targets).sum()
    return torch.stack([correct.float(), loss, torch.full_like(loss, len(targets))])
