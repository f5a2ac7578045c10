"""A synthetic model: fixed outputs for each example, so that feedback is a table look-up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hpo_mab.samplers import BatchSampler


class TableModel:
    """Labels, and logits that make some examples hard and some easy.

    Args:
        num_examples: Number of examples, N.
        num_classes: Number of classes, C.
        seed: Seed of the logits.

    Attributes:
        labels: Int64 [N].
        logits: Float32 [N, C].
        losses: Cross-entropy of each example, float32 [N].
    """

    def __init__(self, num_examples: int, num_classes: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(num_examples) % num_classes
        self.logits = 2 * torch.randn(num_examples, num_classes, generator=generator)
        self.losses = F.cross_entropy(self.logits, self.labels, reduction="none")

    def answer(self, sampler: BatchSampler, indices: Tensor) -> Tensor:
        """Answer a draw with the examples' losses; returns what `update` returns."""
        return self.answer_with(sampler, indices, lambda losses: losses)

    def answer_with(
        self, sampler: BatchSampler, indices: Tensor, change: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Answer a draw with losses changed by a function."""
        where = indices.cpu()
        return sampler.update(
            change(self.losses[where].to(indices.device)),
            logits=self.logits[where].to(indices.device),
            targets=self.labels[where].to(indices.device),
        )

    def run(self, sampler: BatchSampler, steps: int) -> Tensor:
        """Draw and answer; the indices drawn, int64 [steps, B], on the CPU."""
        drawn = []
        for _ in range(steps):
            indices = sampler.draw()
            drawn.append(indices.cpu().clone())
            self.answer(sampler, indices)
        return torch.stack(drawn)
