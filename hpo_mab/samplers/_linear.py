"""What samplers that predict by an online linear model have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpo_mab.samplers._checks import require
from hpo_mab.samplers._features import NUM_FEATURES, FeatureTable
from hpo_mab.samplers._moving_average import MovingAverage
from hpo_mab.samplers._ridge import OnlineRidge
from hpo_mab.samplers._state import LearningSampler

_RIDGE = 1.0


class LinearSampler(LearningSampler):
    """A sampler with features of examples, a regression on them and a moving average of the loss.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        decay: Share of the regression's past kept at each batch, in (0, 1].
        loss_decay: Decay of the moving average of the loss, in [0, 1).

    Raises:
        ArgumentError: An argument outside its bound.
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
        decay: float,
        loss_decay: float,
    ) -> None:
        require(0 < decay <= 1, "decay", "in (0, 1]", decay)
        require(0 <= loss_decay < 1, "loss_decay", "in [0, 1)", loss_decay)
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        self._features = FeatureTable(self._targets)
        self._model = OnlineRidge(NUM_FEATURES, ridge=_RIDGE, decay=decay, device=self.device)
        self._average = MovingAverage(loss_decay, device=self.device)

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "features": self._features.state(),
            "model": self._model.state(),
            "average": self._average.state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        self._features.load_state(state["features"])
        self._model.load_state(state["model"])
        self._average.load_state(state["average"])
