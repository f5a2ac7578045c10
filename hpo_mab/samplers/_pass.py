"""Samplers that draw a whole pass at once from per-example scores."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from hpo_mab.samplers._base import Draw
from hpo_mab.samplers._checks import require
from hpo_mab.samplers._choice import choose_with_replacement, choose_without_replacement
from hpo_mab.samplers._state import LearningSampler


class PassSampler(LearningSampler):
    """Draws ``max(1, int(n * budget))`` examples at a time in proportion to smoothed scores.

    With scores ``s_i``, probabilities are ``p_i = (s_i + c) / sum_j (s_j + c)`` with
    ``c = smoothing * mean(s)``; uniform where all scores are 0. Scores decide which examples are in
    a pass, not their order, which is random. The O(n) work happens once a pass; a draw is a slice
    of the pass.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int,
        world_size: int,
        budget: float,
        smoothing: float,
        replacement: bool,
    ) -> None:
        require(0 < budget <= 1, "budget", "in (0, 1]", budget)
        require(smoothing >= 0, "smoothing", "at least 0", smoothing)
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        self.budget = budget
        self.smoothing = smoothing
        self._replacement = replacement

    @abc.abstractmethod
    def _scores(self) -> Tensor:
        """Scores of all examples, non-negative float32 [n]."""

    def probabilities(self) -> Tensor:
        """Probability of each of this rank's examples in one draw, if a pass began now.

        Returns:
            Float32 [n], in the order of ``examples``; sums to 1.
        """
        scores = self._scores()
        smoothed = scores + self.smoothing * scores.mean()
        total = smoothed.sum()
        return torch.where(total > 0, smoothed / total, 1 / len(smoothed))

    def _plan(self) -> Tensor:
        size = max(1, int(self.num_examples * self.budget))
        if self._replacement:
            return choose_with_replacement(self.probabilities(), size, generator=self._generator)[0]
        # Zero over zero would be no time at all: examples of probability 0 must come last.
        weights = self.probabilities().clamp_min(torch.finfo(torch.float32).tiny)
        chosen = choose_without_replacement(weights, size, generator=self._generator)
        # In the order drawn the likeliest come first: only which examples are drawn is weighted.
        return chosen[torch.randperm(size, generator=self._generator, device=self.device)]

    def _draw(self) -> Draw:
        positions = self._stream.take(self.batch_size)
        return Draw(self._count(positions), context=positions)


def fill_unseen(scores: Tensor, seen: Tensor) -> Tensor:
    """Give unseen examples the largest score of those seen; 1 while nothing is seen.

    Args:
        scores: Float [n], non-negative.
        seen: Bool [n].
    """
    largest = torch.where(seen, scores, 0.0).max()
    return torch.where(seen, scores, torch.where(seen.any(), largest, 1.0))
