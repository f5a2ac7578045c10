"""Adam with bandit sampling: an adversarial bandit over all examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpo_mab.samplers._base import Draw
from hpo_mab.samplers._checks import require
from hpo_mab.samplers._choice import choose_with_replacement
from hpo_mab.samplers._memory import accumulate
from hpo_mab.samplers._scores import gradient_bound
from hpo_mab.samplers._state import LearningSampler

#: Passes of the projection on the floor. Few ratios cross the floor in a step, so two come close.
_PROJECTION_PASSES = 2

#: Bound of the squared score, ``||softmax(z) - onehot(y)||^2 <= 2``.
_LARGEST_SQUARE = 2.0


class AdamBSSampler(LearningSampler):
    """Bandit sampling with importance weights (Liu, Wu, Mozafari 2020), for any optimiser.

    A distribution ``p`` over the ``n`` examples is kept at or above ``p_min = floor / n``. A draw
    takes ``B`` examples with replacement with probabilities ``p``; losses are weighted by
    ``1 / (n p_i)``, so that the weighted mean loss is unbiased. The variance of that mean is
    least where ``g_i^2 / p_i^2`` is the same for all examples (``p_i`` in proportion to the
    gradient norm ``g_i``), and an exponential-weights bandit with reward ``g_i^2 / p_i^2`` seeks
    that point. In terms of ``q_i = n p_i``, whose mean is 1, each draw of ``i`` does

        q_i <- q_i exp(min(1, step * (g_i / q_i)^2 / 2 / q_i)),

    after which ``q`` is projected back on mean 1 and ``q_i >= floor``:
    ``q_i <- max(floor, c q_i)``. ``g_i`` is the bound ``||softmax(z_i) - onehot(y_i)||``, which the
    paper uses in its experiments, at most ``sqrt(2)``; the last division by ``q_i`` is the
    estimate's own importance weight.

    Deviations: the paper's algorithm charges a drawn example the loss ``L^2 / p_min^2 - g^2 / p^2``
    instead of paying it ``g^2 / p^2``: the same in expectation up to a factor common to all
    examples, with far more noise. ``step`` is in units of one visit at uniform probability, and an
    exponent is cut at 1. The constant ``c`` is found by two passes over the examples instead of a
    segment tree; its remaining error is removed when probabilities are normalised. Drawing costs
    O(n) a batch. Every example has a positive chance in every draw.

    Source: Liu, Wu, Mozafari, "Adam with Bandit Sampling for Deep Learning", NeurIPS 2020,
    algorithms 1 and 2.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        step: Learning rate of the distribution, at least 0; 0 is uniform sampling.
        floor: Least probability in units of ``1 / n``, in (0, 1]; weights are at most about
            ``1 / floor``.

    Raises:
        ArgumentError: An argument outside its bound.
    """

    needs_logits = True
    _tensors = ("_ratios",)

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        step: float = 1.0,
        floor: float = 0.2,
    ) -> None:
        require(step >= 0, "step", "at least 0", step)
        require(0 < floor <= 1, "floor", "in (0, 1]", floor)
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        self.step = step
        self.floor = floor
        self._ratios = self._memory(1.0)
        self._growth = self._memory(0.0)

    def probabilities(self) -> Tensor:
        """Probability of each of this rank's examples in one draw, float32 [n]; sums to 1."""
        return self._ratios[:-1] / self._ratios[:-1].sum()

    def _draw(self) -> Draw:
        positions, probability = choose_with_replacement(
            self._ratios[:-1], self.batch_size, generator=self._generator
        )
        ratios = probability * self.num_examples
        return Draw(self._count(positions), 1 / ratios, (positions, ratios))

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions, ratios = draw.context
        if logits is None:  # `update` refuses this; it tells the type checker.
            return
        squares = gradient_bound(logits, self._targets_of(positions, targets)) ** 2
        keep = torch.isfinite(losses) & torch.isfinite(squares)
        exponents = (self.step * squares / _LARGEST_SQUARE / ratios**3).clamp_max(1.0)
        accumulate(self._growth, positions, exponents, keep=keep)
        # An example drawn twice finds the same sum at both places, so the writes agree.
        self._ratios[positions] *= self._growth[positions].exp()
        self._growth.index_fill_(0, positions, 0.0)
        self._project(self._ratios[:-1], when=keep.any())

    def _project(self, ratios: Tensor, *, when: Tensor) -> None:
        """Project on mean 1 and the floor, in the sense of Kullback and Leibler, in place.

        Even ratios that are on both change by rounding, so nothing is done unless ``when``.
        """
        total = ratios.sum()
        scale = self.num_examples / total
        for _ in range(_PROJECTION_PASSES - 1):
            floored = ratios * scale <= self.floor
            left = self.num_examples - self.floor * floored.sum()
            above = total - (ratios * floored).sum()
            # All floored: nothing is left to share out, and clamping does the rest.
            scale = torch.where(above > 0, left / above, 0.0)
        ratios.mul_(torch.where(when, scale, 1.0)).clamp_min_(self.floor)
