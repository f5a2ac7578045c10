"""Importance sampling with online loss regression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpo_mab.samplers._base import Draw
from hpo_mab.samplers._checks import require
from hpo_mab.samplers._choice import choose_with_replacement
from hpo_mab.samplers._linear import LinearSampler


class ImponSampler(LinearSampler):
    """Draws in proportion to losses predicted by an online linear regression.

    A linear model predicts the loss of an example, relative to the moving average ``m`` of the
    training loss, from cheap features: whether it was seen, its last relative loss, its class's
    mean relative loss, its visits and the draws since the last one. The model is recursive ridge
    regression whose past is forgotten by ``decay`` a batch. With its prediction ``f_i``, a draw
    takes ``K = presample * B`` candidates uniformly, scores them ``s_i = max(0, 1 + f_i)`` (the
    relative loss is ``loss / m - 1``) and draws ``B`` of them with replacement with probabilities

        g_i = (s_i + c) / sum_j (s_j + c),    c = smoothing * mean(s).

    Losses are weighted by ``1 / (K g_i)``, which makes the weighted mean loss unbiased; with
    ``weighted = False`` they are not. The cost of a draw does not depend on the number of examples,
    unlike drawing from all of them. Every example has a positive chance in every draw.

    The scheme is that of importance sampling by predicted loss: Katharopoulos and Fleuret, "Biased
    Importance Sampling for Deep Neural Network Training", 2017, arXiv:1706.00043, with additive
    smoothing, and a linear model in the place of their recurrent network.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        presample: Candidates for each example of the batch, at least 1.
        smoothing: Uniform part, in means of the scores, above 0.
        decay: Share of the regression's past kept at each batch, in (0, 1].
        loss_decay: Decay of the moving average of the loss, in [0, 1).
        weighted: Whether to weight losses to be unbiased.

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
        presample: int = 8,
        smoothing: float = 0.5,
        decay: float = 0.99,
        loss_decay: float = 0.99,
        weighted: bool = True,
    ) -> None:
        require(presample >= 1, "presample", "at least 1", presample)
        require(smoothing > 0, "smoothing", "above 0", smoothing)
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            decay=decay,
            loss_decay=loss_decay,
        )
        self.presample = presample
        self.smoothing = smoothing
        self.weighted = weighted

    def _draw(self) -> Draw:
        candidates = torch.randint(
            self.num_examples,
            (self.presample * self.batch_size,),
            generator=self._generator,
            device=self.device,
        )
        features = self._features.read(candidates)
        scores = (1 + features @ self._model.mean()).clamp_min(0)
        mean = scores.mean()
        chosen, probability = choose_with_replacement(
            torch.where(mean > 0, scores + self.smoothing * mean, 1.0),
            self.batch_size,
            generator=self._generator,
        )
        positions = candidates[chosen]
        self._features.drawn(positions)
        weights = 1 / (len(candidates) * probability) if self.weighted else None
        return Draw(self._count(positions), weights, (positions, features[chosen]))

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions, features = draw.context
        finite = torch.isfinite(losses)
        average = self._average.before(losses, finite=finite)
        relative = torch.where(average > 0, losses / average - 1, 0.0)
        self._model.learn(features, relative, keep=finite)
        self._features.learn(positions, relative, keep=finite)
