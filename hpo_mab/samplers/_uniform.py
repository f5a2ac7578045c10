"""Uniform sampling: the control of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpo_mab.samplers._base import BatchSampler, Draw
from hpo_mab.samplers._generator import make_generator
from hpo_mab.samplers._stream import PlanStream


class UniformSampler(BatchSampler):
    """Shuffling without replacement, as a continuous stream.

    Every run of ``N`` draws from the start (``N`` examples of this rank) holds each example
    exactly once. Every batch has exactly ``B`` indices: where ``B`` does not divide ``N``, a batch
    straddles two epochs instead of being short, and the new epoch's part of it avoids the examples
    that the old epoch left in it. So no batch holds an example twice, and none is short or dropped.

    An epoch's permutation is drawn at once on ``device``; a draw is a slice of it. It learns
    nothing from losses and has no reward rate.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of the permutations.
        device: Where permutations are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.

    Raises:
        ArgumentError: An argument outside its bound.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        self._generator = make_generator(seed, rank=rank, device=self.device)
        self._examples = self.examples.to(self.device)
        self._stream = PlanStream(
            self._permutation, num_labels=len(self.labels), generator=self._generator
        )

    def _permutation(self) -> Tensor:
        order = torch.randperm(len(self._examples), generator=self._generator, device=self.device)
        return self._examples[order]

    def _draw(self) -> Draw:
        return Draw(self._stream.take(self.batch_size))

    def _state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "stream": self._stream.state()}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._stream.load_state(state["stream"])
