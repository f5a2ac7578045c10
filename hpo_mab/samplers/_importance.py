"""Samplers that draw with replacement in proportion to a bound of the gradient norm.

`GradNormSampler` (Katharopoulos & Fleuret 2018) and `AdamBSSampler` (Liu et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from hpo_mab._errors import check_integer, require
from hpo_mab.samplers._base import CommonArguments
from hpo_mab.samplers._feedback import Draw
from hpo_mab.samplers._streams import (
    LearningSampler,
    accumulate,
    choose_with_replacement,
    gradient_bound,
    replace,
)

#: Least score of a candidate, in means of the candidates' scores.
_LEAST = 0.05


class GradNormSampler(LearningSampler):
    """Gradient-norm importance sampling (Katharopoulos and Fleuret 2018, algorithm 1).

    The score of an example is ``G_i = ||softmax(z_i) - onehot(y_i)||_2``, an upper bound of its
    gradient norm up to a common factor. While importance sampling is on, a draw takes
    ``K = presample * B`` candidates uniformly. From them it takes ``B`` examples with replacement
    with probabilities ``g_i = G_i / sum_j G_j``; losses are weighted by ``1 / (K g_i)``, so that
    the weighted mean loss is unbiased. While it is off, a draw is ``B`` examples of a shuffle,
    weights 1. It is on while the smoothed variance reduction ``tau`` exceeds ``threshold``:

        tau <- 0.9 tau + 0.1 sqrt(m sum_i g_i^2),

    over the ``m`` latest scores. While it is off, these are of the trained batch; while it is on,
    of the candidates. ``tau`` starts at 0. The default threshold is the paper's break-even,
    ``(K + 3 B) / (3 B)``: a forward pass costs a third of a step.

    Candidates' scores need the model. Set `scorer` to a function from indices, int64 [K], to logits
    [K, C]; the built-in training loop does. Drawing then reads ``tau`` on the host, once a draw.
    Without a scorer, a candidate's score is that of its last visit; candidates never seen get the
    mean of the others' (1 if none is known). The weighted mean loss is then still unbiased, because
    weights use the draws' probabilities. Its variance is reduced less.

    Every example has a positive chance in every draw, because candidates are uniform. Scores are
    raised to at least 0.05 of their mean (a deviation; it also bounds the weights).

    Source: Katharopoulos and Fleuret, "Not All Samples Are Created Equal: Deep Learning with
    Importance Sampling", ICML 2018, algorithm 1 and equations 20 and 26.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        presample: Candidates for each example of the batch, at least 1.
        threshold: ``tau`` above which importance sampling is on; None for the break-even.
        tau_decay: Decay of the smoothing of ``tau``, in [0, 1).

    Attributes:
        scorer: Function from indices to logits, or None.

    Examples:
        >>> from hpo_mab.samplers import GradNormSampler
        >>> GradNormSampler([0, 1] * 50, batch_size=10, presample=4).draw().shape
        torch.Size([10])
    """

    needs_logits = True
    asks_network = True
    _tensors = ("_scores", "_tau")

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        presample: int = 3,
        threshold: float | None = None,
        tau_decay: float = 0.9,
        **common: Unpack[CommonArguments],
    ) -> None:
        check_integer("presample", presample, 1)
        require(threshold is None or threshold >= 0, "threshold", "at least 0", threshold)
        require(0 <= tau_decay < 1, "tau_decay", "in [0, 1)", tau_decay)
        super().__init__(labels, **common)
        self.scorer: Callable[[Tensor], Tensor] | None = None
        self.presample = presample
        self.threshold = (presample + 3) / 3 if threshold is None else threshold
        self.tau_decay = tau_decay
        self._scores = self._new_table(-1.0)  # Negative: never seen.
        self._tau = torch.zeros((), device=self.device)

    @property
    def tau(self) -> float:
        """The smoothed variance reduction; waits for the device."""
        return float(self._tau)

    def _draw(self) -> Draw:
        shuffled = self._take(self.batch_size)
        on = self._tau > self.threshold
        # Reading ``on`` waits for the device. That costs less than K forward passes whose scores
        # are not used.
        if self.scorer is not None and not bool(on):
            return Draw(self._count(shuffled), context=(shuffled, on))
        candidates = self._candidates(self.presample * self.batch_size)
        scores = self._candidate_scores(candidates)
        chosen, probability = choose_with_replacement(
            scores, self.batch_size, generator=self._generator
        )
        self._smooth_tau(scores, torch.ones_like(scores, dtype=torch.bool), when=on)
        positions = torch.where(on, candidates[chosen], shuffled)
        weights = torch.where(on, 1 / (len(candidates) * probability), 1.0)
        return Draw(self._count(positions), weights, (positions, on))

    def _candidate_scores(self, candidates: Tensor) -> Tensor:
        """Positive scores of the candidates, float32 [K]."""
        if self.scorer is None:
            scores = self._scores[candidates]
        else:
            logits = self._logits_of(candidates, self.scorer)
            scores = gradient_bound(logits, self._targets[candidates])
        known = torch.isfinite(scores) & (scores >= 0)
        count = known.sum()
        mean = torch.where(known, scores, 0.0).sum() / count.clamp_min(1)
        mean = torch.where(mean > 0, mean, 1.0)
        return torch.where(known, scores, mean).clamp_min(_LEAST * mean)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions, on = draw.context
        if logits is None:  # Only for the type checker: `update` raises before.
            return
        scores = gradient_bound(logits, self._targets_of(positions, targets))
        keep = torch.isfinite(losses) & torch.isfinite(scores)
        replace(self._scores, positions, scores, keep=keep)
        self._smooth_tau(scores, keep, when=~on)

    def _smooth_tau(self, scores: Tensor, keep: Tensor, *, when: Tensor) -> None:
        """Move ``tau`` towards ``sqrt(m sum(g^2))`` of m kept scores, with g = s / sum(s)."""
        scores = torch.where(keep, scores, 0.0)
        total = scores.sum()
        reduction = torch.sqrt(keep.sum() * (scores**2).sum()) / total
        smoothed = self.tau_decay * self._tau + (1 - self.tau_decay) * reduction
        self._tau = torch.where(when & (total > 0), smoothed, self._tau)


#: Bound of the squared score, ``||softmax(z) - onehot(y)||^2 <= 2``.
_LARGEST_SQUARE = 2.0


class AdamBSSampler(LearningSampler):
    """Bandit sampling with importance weights (Liu, Wu, Mozafari 2020), for any optimiser.

    A distribution ``p`` over the ``n`` examples is kept at or above ``p_min = floor / n``. A draw
    takes ``B`` examples with replacement with probabilities ``p``; losses are weighted by
    ``1 / (n p_i)``, so that the weighted mean loss is unbiased. The variance of that mean is least
    where all ``g_i^2 / p_i^2`` are equal (``p_i`` in proportion to the gradient norm ``g_i``). An
    exponential-weights bandit with reward ``g_i^2 / p_i^2`` moves towards that point. In terms of
    ``q_i = n p_i``, whose mean is 1, each draw of ``i`` does

        q_i <- q_i exp(min(1, step * (g_i / q_i)^2 / 2 / q_i)),

    after which ``q`` is projected back on mean 1 and ``q_i >= floor``:
    ``q_i <- max(floor, c q_i)``. ``g_i`` is the bound ``||softmax(z_i) - onehot(y_i)||``, which the
    paper uses in its experiments, at most ``sqrt(2)``; the last division by ``q_i`` is the
    estimate's own importance weight.

    Deviations: the paper's algorithm gives a drawn example the loss ``L^2 / p_min^2 - g^2 / p^2``,
    here it gets the reward ``g^2 / p^2``. Both agree in expectation, up to a factor common to all
    examples; the loss has far more noise. ``step`` is the exponent of one visit at ``q_i = 1`` with
    the largest ``g_i``; exponents are cut at 1. The constant ``c`` is found by two passes over the
    examples instead of a segment tree; normalising the probabilities removes its remaining error.
    Drawing costs O(n) a batch. Every example has a positive chance in every draw.

    Source: Liu, Wu, Mozafari, "Adam with Bandit Sampling for Deep Learning", NeurIPS 2020,
    algorithms 1 and 2.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        step: Learning rate of the distribution, at least 0; 0 is uniform sampling.
        floor: Least probability in units of ``1 / n``, in (0, 1]; weights are at most about
            ``1 / floor``.

    Examples:
        >>> from hpo_mab.samplers import AdamBSSampler
        >>> AdamBSSampler([0, 1] * 50, batch_size=10, step=0.5).draw().shape
        torch.Size([10])
    """

    needs_logits = True
    _tensors = ("_ratios",)

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        step: float = 1.0,
        floor: float = 0.2,
        **common: Unpack[CommonArguments],
    ) -> None:
        require(step >= 0, "step", "at least 0", step)
        require(0 < floor <= 1, "floor", "in (0, 1]", floor)
        super().__init__(labels, **common)
        self.step = step
        self.floor = floor
        self._ratios = self._new_table(1.0)
        self._growth = self._new_table(0.0)

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
        if logits is None:  # Only for the type checker: `update` raises before.
            return
        squares = gradient_bound(logits, self._targets_of(positions, targets)) ** 2
        keep = torch.isfinite(losses) & torch.isfinite(squares)
        # step (g / q)^2 / 2 / q, see above: `ratios` are the q of the time of the draw.
        exponents = (self.step * squares / _LARGEST_SQUARE / ratios**3).clamp_max(1.0)
        accumulate(self._growth, positions, exponents, keep=keep)
        # An example drawn twice has the same growth in both of its places, so both writes are
        # equal.
        self._ratios[positions] *= self._growth[positions].exp()
        self._growth.index_fill_(0, positions, 0.0)
        self._project(self._ratios[:-1], when=keep.any())

    def _project(self, ratios: Tensor, *, when: Tensor) -> None:
        """Project on mean 1 and the floor, by the least Kullback-Leibler divergence, in place.

        The projection is ``max(floor, c q)``, with c such that the mean is 1. For a given set of
        floored ratios, c is what is left of the total over the sum of the others. Rounding changes
        even ratios that meet both, so nothing changes unless ``when``.
        """
        total = ratios.sum()
        # Few ratios cross the floor in a step, so one correction of the scale is enough.
        floored = ratios * (self.num_examples / total) <= self.floor
        left = self.num_examples - self.floor * floored.sum()
        above = total - (ratios * floored).sum()
        # If all ratios are floored, there is nothing to scale, and the clamp below sets them.
        scale = torch.where(above > 0, left / above, 0.0)
        ratios.mul_(torch.where(when, scale, 1.0)).clamp_min_(self.floor)
