"""Accuracy and loss of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_mab.training._precision import autocast
from hpo_mab.training._sweeps import Sweep


def evaluate(
    model: nn.Module,
    examples: Sweep,
    *,
    precision: str = "float32",
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a model, in evaluation mode.

    Sums stay on the device until the end; the model's mode is put back.

    Args:
        model: Network from inputs to logits [n, C].
        examples: What to evaluate on, on the model's device.
        precision: ``"float32"`` or ``"bfloat16"``.
        forward: Calls the model with other weights than its own, see `WeightAverage`; None calls
            the model itself.

    Returns:
        Share of examples classified correctly, in [0, 1], and mean cross-entropy in nats.
    """
    was_training = model.training
    model.eval()
    call = forward or model
    try:
        with torch.inference_mode():
            sums = sum(
                _sums(call, inputs, targets, precision=precision) for inputs, targets in examples
            )
    finally:
        model.train(was_training)
    correct, loss, count = torch.as_tensor(sums).tolist()
    return correct / count, loss / count


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
