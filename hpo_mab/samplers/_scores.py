"""What a training forward pass tells of an example."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def true_label_probability(losses: Tensor, logits: Tensor | None, targets: Tensor) -> Tensor:
    """Probability the model gives the true label, float [B], NaN where the loss is not finite.

    With ``logits`` it is the softmax at the target. Without, it is ``exp(-loss)``: exact for plain
    cross-entropy; for a loss with label smoothing or weights it is only a decreasing function of
    the loss, cut to at most 1.

    Args:
        losses: Float [B].
        logits: Float [B, C], if known.
        targets: Int64 [B].
    """
    if logits is None:
        probability = torch.exp(-losses).clamp_max(1.0)
    else:
        probability = torch.softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    return torch.where(torch.isfinite(losses), probability, math.nan)


def gradient_bound(logits: Tensor, targets: Tensor) -> Tensor:
    """Norm of the loss gradient at the network's output, ``||softmax(z) - onehot(y)||_2``.

    Up to a factor common to the batch, an upper bound of the norm of the example's whole gradient
    (Katharopoulos and Fleuret 2018, equation 20). At most ``sqrt(2)``.

    Args:
        logits: Float [B, C].
        targets: Int64 [B].

    Returns:
        Float [B].
    """
    difference = torch.softmax(logits, dim=1)
    difference = difference.scatter_add(
        1, targets[:, None], torch.full_like(targets[:, None], -1, dtype=difference.dtype)
    )
    norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return norm
