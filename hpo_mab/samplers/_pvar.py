"""Prediction variance: examples whose predicted probability keeps changing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hpo_mab._errors import UnknownNameError
from hpo_mab.samplers._base import Draw
from hpo_mab.samplers._memory import accumulate
from hpo_mab.samplers._pass import PassSampler, fill_unseen
from hpo_mab.samplers._scores import true_label_probability

_FORMS = ("sample", "weight")


class PredictionVarianceSampler(PassSampler):
    """Sampling or weighting by prediction variance (Active Bias, Chang et al. 2017).

    From the history of the ``n_i`` probabilities that the model gave an example's true label, with
    sample variance ``var_i`` (divisor ``n_i - 1``), the upper confidence bound of its deviation is

        s_i = sqrt(var_i + var_i^2 / (n_i - 1)),

    and ``p_i = (s_i + eps) / sum_j (s_j + eps)`` with ``eps = smoothing * mean(s)``.

    - ``form = "sample"`` (the paper's SGD-SPV): examples are drawn with these probabilities; losses
      are not re-weighted.
    - ``form = "weight"`` (SGD-WPV): examples are drawn uniformly by shuffling and losses weighted
      by ``n p_i``, whose mean is 1.

    Deviations: probabilities are formed anew once a pass of ``int(n * budget)`` draws (with
    replacement in the form ``"sample"``), not once a step. Instead of a burn-in of fixed length, an
    example with fewer than two visits gets the largest score known; until two visits of any
    example are known, draws are uniform. The probability of the true label comes from the logits
    where `update` gets them, else it is ``exp(-loss)``. Sums of squares are kept in float32, so
    deviations below about 1e-3 are not resolved.

    Source: Chang, Learned-Miller, McCallum, "Active Bias: Training More Accurate Neural Networks by
    Emphasizing High Variance Samples", NIPS 2017, section 3.3.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        budget: Share of the examples drawn before probabilities are formed anew, in (0, 1].
        smoothing: ``eps`` in means of the scores, at least 0; with 0 an example whose prediction
            never changes is drawn with probability below 2**-24 of the largest.
        form: ``"sample"`` or ``"weight"``.

    Raises:
        ArgumentError: An argument outside its bound.
        UnknownNameError: No such form.
    """

    _tensors = ("_visits", "_sums", "_squares", "_weights")

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        budget: float = 1.0,
        smoothing: float = 1.0,
        form: Literal["sample", "weight"] = "sample",
    ) -> None:
        if form not in _FORMS:
            raise UnknownNameError("form", form, _FORMS)
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            budget=budget,
            smoothing=smoothing,
            replacement=True,
        )
        self.form = form
        self._visits = self._memory(0, dtype=torch.int64)
        self._sums = self._memory(0.0)
        self._squares = self._memory(0.0)
        self._weights = self._memory(1.0)

    def _scores(self) -> Tensor:
        visits = self._visits[:-1]
        others = (visits - 1).clamp_min(1)
        deviations = self._squares[:-1] - self._sums[:-1] ** 2 / visits.clamp_min(1)
        variance = deviations.clamp_min(0) / others
        return fill_unseen(torch.sqrt(variance + variance**2 / others), visits > 1)

    def _plan(self) -> Tensor:
        if self.form == "sample":
            return super()._plan()
        self._weights[:-1] = self.probabilities() * self.num_examples
        size = max(1, int(self.num_examples * self.budget))
        return torch.randperm(self.num_examples, generator=self._generator, device=self.device)[
            :size
        ]

    def _draw(self) -> Draw:
        draw = super()._draw()
        if self.form == "weight":
            draw.weights = self._weights[draw.context]
        return draw

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions = draw.context
        probability = true_label_probability(losses, logits, self._targets_of(positions, targets))
        keep = torch.isfinite(probability)
        accumulate(self._visits, positions, torch.ones_like(positions), keep=keep)
        accumulate(self._sums, positions, probability, keep=keep)
        accumulate(self._squares, positions, probability**2, keep=keep)
