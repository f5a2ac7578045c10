"""InfoBatch: skip a share of the well-learned examples, and scale up those that stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpo_mab.samplers._base import Draw
from hpo_mab.samplers._checks import require
from hpo_mab.samplers._memory import remember
from hpo_mab.samplers._state import LearningSampler


class InfoBatchSampler(LearningSampler):
    """InfoBatch's unbiased dynamic pruning (Qin et al. 2024).

    The score of an example is its last loss. Before each pass, every example whose score is below
    the mean score is skipped with probability ``ratio``; of those that stay, losses are weighted by
    ``1 / (1 - ratio)``. All others are drawn once, with weight 1. The sum of the weighted gradients
    of a pass therefore has the gradient of the whole data set as its expectation. (The mean of a
    *batch* is ``n / m`` times as large, in expectation, where ``m`` of the ``n`` examples are in
    the pass; the pass has as many fewer steps.) Once `set_progress` reports ``delta`` or more of
    the budget spent, a full pass begins at once and nothing is skipped any more.

    Every example has a positive chance in every pass.

    Deviations: examples are skipped independently, as in the paper's text; its code skips exactly
    ``int(ratio * count)`` of them. Examples never seen are never skipped and do not count in the
    mean; its code gives them a score of 3. A batch that a pass cannot fill is completed from the
    next. Planning a pass waits for the device once.

    Source: Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
    ICLR 2024, sections 3.2 and 3.3, and github.com/NUS-HPC-AI-Lab/InfoBatch.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        ratio: Probability of skipping a well-learned example, in [0, 1).
        delta: Share of the budget after which nothing is skipped, in [0, 1].

    Raises:
        ArgumentError: An argument outside its bound.
    """

    _tensors = ("_scores",)

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        ratio: float = 0.5,
        delta: float = 0.875,
    ) -> None:
        require(0 <= ratio < 1, "ratio", "in [0, 1)", ratio)
        require(0 <= delta <= 1, "delta", "in [0, 1]", delta)
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        self.ratio = ratio
        self.delta = delta
        self._pruning = True
        self._scores = self._memory(torch.inf)  # Infinite: never seen.

    def set_progress(self, share: float) -> None:
        """Tell the share of the budget spent; from ``delta`` on, nothing is skipped."""
        pruning = share < self.delta
        if self._pruning and not pruning:
            self._stream.restart()
        self._pruning = pruning

    def _plan(self) -> Tensor:
        """Positions of a pass in random order, those to be scaled up marked by ``+ n``."""
        order = super()._plan()
        if not self._pruning:
            return order
        scores = self._scores[:-1]
        seen = torch.isfinite(scores)
        mean = torch.where(seen, scores, 0.0).sum() / seen.sum().clamp_min(1)
        low = scores < mean
        tickets = torch.rand(self.num_examples, generator=self._generator, device=self.device)
        stays = ~low | (tickets >= self.ratio)
        marked = order + self.num_examples * low[order]
        return marked[stays[order]]

    def _draw(self) -> Draw:
        taken = self._stream.take(self.batch_size)
        positions = taken % self.num_examples
        weights = torch.where(taken >= self.num_examples, 1 / (1 - self.ratio), 1.0)
        return Draw(self._count(positions), weights, positions)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        remember(self._scores, draw.context, losses, keep=torch.isfinite(losses))

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "pruning": self._pruning}

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        self._pruning = bool(state["pruning"])
