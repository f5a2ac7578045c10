"""What p-SGD and c-SGD share: a memory of how unlikely the true label was."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from hpo_mab.samplers._base import Draw
from hpo_mab.samplers._memory import accumulate
from hpo_mab.samplers._pass import PassSampler
from hpo_mab.samplers._scores import true_label_probability


class ArazoSampler(PassSampler):
    """Memory ``a_i``: the mean over all visits of ``1 - p(true label)``.

    The options are those of `PSGDSampler` and `CSGDSampler`.
    """

    _tensors = ("_visits", "_unlikeliness")

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        budget: float = 0.3,
        smoothing: float = 1.0,
        corrected: bool = False,
    ) -> None:
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            budget=budget,
            smoothing=smoothing,
            replacement=corrected,
        )
        if not corrected and int(self.num_examples * budget) == self.num_examples:
            warnings.warn(
                f"{type(self).__name__} at budget 1.0 draws every example once a pass, which is "
                "uniform shuffling; use corrected=True or a smaller budget.",
                stacklevel=2,
            )
        self.corrected = corrected
        self._visits = self._memory(0, dtype=torch.int64)
        self._unlikeliness = self._memory(0.0)

    def _means(self) -> tuple[Tensor, Tensor]:
        """``a_i``, float32 [n], and whether the example was seen, bool [n]."""
        visits = self._visits[:-1]
        return self._unlikeliness[:-1] / visits.clamp_min(1), visits > 0

    @abc.abstractmethod
    def _scores(self) -> Tensor: ...

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions = draw.context
        probability = true_label_probability(losses, logits, self._targets_of(positions, targets))
        keep = torch.isfinite(probability)
        accumulate(self._visits, positions, torch.ones_like(positions), keep=keep)
        accumulate(self._unlikeliness, positions, 1 - probability, keep=keep)
