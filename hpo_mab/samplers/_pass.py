"""Samplers that draw a whole pass at once from per-example scores.

p-SGD and c-SGD (Arazo et al. 2021), and prediction variance (Chang et al. 2017).
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor

from hpo_mab._errors import HpoMabWarning, UnknownNameError, require
from hpo_mab.samplers._base import CommonArguments
from hpo_mab.samplers._feedback import Draw
from hpo_mab.samplers._streams import (
    LearningSampler,
    accumulate,
    choose_with_replacement,
    choose_without_replacement,
    true_label_probability,
)


class PassSampler(LearningSampler):
    """Draws ``max(1, int(n * budget))`` examples at a time in proportion to smoothed scores.

    With scores ``s_i``, probabilities are ``p_i = (s_i + c) / sum_j (s_j + c)`` with
    ``c = smoothing * mean(s)``; uniform where all scores are 0. Scores decide which examples are in
    a pass, not their order, which is random. The O(n) work happens once a pass; a draw is a slice
    of the pass.

    A subclass stores the probabilities that `_store` receives, and computes `_scores` from them.
    """

    #: Whether a pass is drawn with replacement.
    _replacement: bool = True

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        budget: float,
        smoothing: float,
        **common: Unpack[CommonArguments],
    ) -> None:
        require(0 < budget <= 1, "budget", "in (0, 1]", budget)
        require(smoothing >= 0, "smoothing", "at least 0", smoothing)
        super().__init__(labels, **common)
        self.budget = budget
        self.smoothing = smoothing
        self._visits = self._new_table(0, dtype=torch.int64)

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

    @property
    def _pass_size(self) -> int:
        return max(1, int(self.num_examples * self.budget))

    def _plan(self) -> Tensor:
        size = self._pass_size
        if self._replacement:
            return choose_with_replacement(self.probabilities(), size, generator=self._generator)[0]
        # The choice divides by weights: 0 / 0 would be NaN. Examples of probability 0 must come
        # last, so they get the least positive weight.
        weights = self.probabilities().clamp_min(torch.finfo(torch.float32).tiny)
        chosen = choose_without_replacement(weights, size, generator=self._generator)
        # Shuffled again: likely examples come first in the choice, but scores must not decide the
        # order.
        return chosen[torch.randperm(size, generator=self._generator, device=self.device)]

    def _draw(self) -> Draw:
        positions = self._take(self.batch_size)
        return Draw(self._count(positions), context=positions)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions = draw.context
        probability = true_label_probability(losses, logits, self._targets_of(positions, targets))
        keep = torch.isfinite(probability)
        accumulate(self._visits, positions, torch.ones_like(positions), keep=keep)
        self._store(positions, probability, keep)

    @abc.abstractmethod
    def _store(self, positions: Tensor, probability: Tensor, keep: Tensor) -> None:
        """Store the probabilities of the true labels of a batch.

        Args:
            positions: Examples, int64 [B].
            probability: Float32 [B].
            keep: Where the probability is finite, bool [B].
        """


def fill_unseen(scores: Tensor, seen: Tensor) -> Tensor:
    """Give unseen examples the largest score of those seen; 1 while nothing is seen.

    Args:
        scores: Float [n], non-negative.
        seen: Bool [n].
    """
    largest = torch.where(seen, scores, 0.0).max()
    return torch.where(seen, scores, torch.where(seen.any(), largest, 1.0))


class ArazoSampler(PassSampler):
    """Scores from ``a_i``, the mean over all visits of ``1 - p(true label)``.

    The options are those of `PSGDSampler` and `CSGDSampler`.
    """

    _tensors = ("_visits", "_unlikeliness")

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        budget: float = 0.3,
        smoothing: float = 1.0,
        corrected: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(labels, budget=budget, smoothing=smoothing, **common)
        if not corrected and int(self.num_examples * budget) == self.num_examples:
            warnings.warn(
                f"{type(self).__name__} at budget 1.0 draws every example once a pass, which is "
                "uniform shuffling; use corrected=True or a smaller budget.",
                HpoMabWarning,
                stacklevel=3,
            )
        self.corrected = self._replacement = corrected
        self._unlikeliness = self._new_table(0.0)

    def _means(self) -> tuple[Tensor, Tensor]:
        """``a_i``, float32 [n], and whether the example was seen, bool [n]."""
        visits = self._visits[:-1]
        return self._unlikeliness[:-1] / visits.clamp_min(1), visits > 0

    def _store(self, positions: Tensor, probability: Tensor, keep: Tensor) -> None:
        accumulate(self._unlikeliness, positions, 1 - probability, keep=keep)


class PSGDSampler(ArazoSampler):
    """p-SGD as Arazo et al. 2021 run it.

    ``a_i`` is the mean over all visits of ``1 - p(true label)`` in the training forward pass. It
    comes from the logits where `update` gets them, else it is ``1 - exp(-loss)``. Examples never
    seen get the largest ``a`` of those seen. Scores are ``s_i = a_i``, probabilities

        p_i = (s_i + c) / sum_j (s_j + c),    c = smoothing * mean(s),

    so at ``smoothing = 1`` half of the probability is uniform. Whenever the indices run out,
    ``int(n * budget)`` new ones are drawn *without replacement* and shuffled; losses are not
    re-weighted. Until the first feedback, draws are uniform. Every example has a positive chance in
    every pass.

    ``corrected = True`` draws *with replacement*. Without replacement, probabilities matter less if
    ``budget`` is larger. At ``budget = 1`` every example is drawn once a pass, whatever its score.
    p-SGD is then uniform shuffling (with a warning).

    Deviations: the published code drops the incomplete batch at the end of a pass. Here the next
    pass completes it; the learning-rate schedule is the training loop's.

    Source: Arazo, Ortego, Albert, O'Connor, McGuinness, "How important is importance sampling for
    deep budgeted training?", BMVC 2021, and its code, github.com/EricArazo/ImportanceSampling.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        budget: Share of the examples drawn a pass, in (0, 1]. Smaller reacts faster.
        smoothing: Uniform part, in means of the scores, at least 0.
        corrected: Whether to draw with replacement.

    Examples:
        >>> from hpo_mab.samplers import PSGDSampler
        >>> PSGDSampler([0, 1] * 50, batch_size=10, budget=0.5).draw().shape
        torch.Size([10])
    """

    def _scores(self) -> Tensor:
        means, seen = self._means()
        return fill_unseen(means, seen)


class CSGDSampler(ArazoSampler):
    """c-SGD (threshold closeness) as Arazo et al. 2021 run it.

    As `PSGDSampler`, with scores ``s_i = a_i (1 - a_i)``, which are largest where the model is
    undecided. ``a_i`` is the mean over all visits of ``1 - p(true label)``.

    The published code gives examples never seen the largest ``a``, "to force the model to see all
    the samples". It does so *before* it forms ``a (1 - a)``. Early in training the largest ``a`` is
    near 1, so unseen examples get a score near 0. They are drawn only through the smoothing: the
    opposite of the comment quoted. That is the default here, to compare with the published numbers.
    ``corrected = True`` gives unseen examples the largest *score*, and draws with replacement (see
    `PSGDSampler`).

    With ``smoothing = 0`` an example whose ``a`` is exactly 0 or 1 has no chance while others have;
    with any smoothing every example has a positive chance in every pass.

    Source: Arazo, Ortego, Albert, O'Connor, McGuinness, "How important is importance sampling for
    deep budgeted training?", BMVC 2021, and its code, github.com/EricArazo/ImportanceSampling;
    threshold closeness: Chang, Learned-Miller, McCallum, "Active Bias", NIPS 2017.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        budget: Share of the examples drawn a pass, in (0, 1]. Smaller reacts faster.
        smoothing: Uniform part, in means of the scores, at least 0.
        corrected: Whether to give unseen examples the largest score, and to draw with replacement.

    Examples:
        >>> from hpo_mab.samplers import CSGDSampler
        >>> CSGDSampler([0, 1] * 50, batch_size=10, budget=0.5).draw().shape
        torch.Size([10])
    """

    def _scores(self) -> Tensor:
        means, seen = self._means()
        if self.corrected:
            return fill_unseen(means * (1 - means), seen)
        filled = fill_unseen(means, seen)
        return filled * (1 - filled)


_FORMS = ("sample", "weight")


class PredictionVarianceSampler(PassSampler):
    """Sampling or weighting by prediction variance (Active Bias, Chang et al. 2017).

    An example has a history of the ``n_i`` probabilities that the model gave its true label. With
    their sample variance ``var_i`` (divisor ``n_i - 1``), the upper confidence bound of its
    deviation is

        s_i = sqrt(var_i + var_i^2 / (n_i - 1)),

    and ``p_i = (s_i + eps) / sum_j (s_j + eps)`` with ``eps = smoothing * mean(s)``.

    - ``form = "sample"`` (the paper's SGD-SPV): examples are drawn with these probabilities; losses
      are not re-weighted.
    - ``form = "weight"`` (SGD-WPV): examples are drawn uniformly by shuffling and losses weighted
      by ``n p_i``, whose mean is 1.

    Deviations: probabilities are updated once a pass of ``int(n * budget)`` draws (with
    replacement in the form ``"sample"``), not once a step. Instead of a burn-in of fixed length, an
    example with fewer than two visits gets the largest score known; until two visits of any
    example are known, draws are uniform. The probability of the true label comes from the logits
    where `update` gets them, else it is ``exp(-loss)``. Sums of squares are kept in float32, so
    deviations below about 1e-3 are not resolved.

    Source: Chang, Learned-Miller, McCallum, "Active Bias: Training More Accurate Neural Networks by
    Emphasizing High Variance Samples", NIPS 2017, section 3.3.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        budget: Share of the examples drawn between two updates of probabilities, in (0, 1].
        smoothing: ``eps`` in means of the scores, at least 0; with 0 an example whose prediction
            never changes is drawn with probability below 2**-24 of the largest.
        form: ``"sample"`` or ``"weight"``.

    Raises:
        UnknownNameError: No such form.

    Examples:
        >>> from hpo_mab.samplers import PredictionVarianceSampler
        >>> PredictionVarianceSampler([0, 1] * 50, batch_size=10, form="weight").draw().shape
        torch.Size([10])
    """

    _tensors = ("_visits", "_sums", "_squares", "_weights")

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        budget: float = 1.0,
        smoothing: float = 1.0,
        form: Literal["sample", "weight"] = "sample",
        **common: Unpack[CommonArguments],
    ) -> None:
        if form not in _FORMS:
            raise UnknownNameError("form", form, _FORMS)
        super().__init__(labels, budget=budget, smoothing=smoothing, **common)
        self.form = form
        self._sums = self._new_table(0.0)
        self._squares = self._new_table(0.0)
        self._weights = self._new_table(1.0)

    def _scores(self) -> Tensor:
        visits = self._visits[:-1]
        others = (visits - 1).clamp_min(1)
        # Sum of squared deviations: sum(x^2) - sum(x)^2 / n. Rounding may make it negative.
        deviations = self._squares[:-1] - self._sums[:-1] ** 2 / visits.clamp_min(1)
        variance = deviations.clamp_min(0) / others
        return fill_unseen(torch.sqrt(variance + variance**2 / others), visits > 1)

    def _plan(self) -> Tensor:
        if self.form == "sample":
            return super()._plan()
        self._weights[:-1] = self.probabilities() * self.num_examples
        return LearningSampler._plan(self)[: self._pass_size]

    def _draw(self) -> Draw:
        draw = super()._draw()
        if self.form == "weight":
            draw.weights = self._weights[draw.context]
        return draw

    def _store(self, positions: Tensor, probability: Tensor, keep: Tensor) -> None:
        accumulate(self._sums, positions, probability, keep=keep)
        accumulate(self._squares, positions, probability**2, keep=keep)
