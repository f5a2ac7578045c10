"""Common parts of the samplers that learn.

A memory of each example, the moving average of the loss, weighted random choice, the scores of a
forward pass, and `LearningSampler` with its generator, state and counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from hpo_mab.samplers._base import CommonArguments
from hpo_mab.samplers._uniform import StreamSampler

# Per-example memories. Writes do not wait for the device and give the same result on every run.
#
# A memory has one entry more than there are examples, to which values are written that must not
# count. Where a batch holds an example twice, plain indexed assignment on CUDA would store either
# value, depending on the run.


def make_memory(length: int, value: float, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A memory of ``length`` examples, all ``value``: [length + 1]."""
    return torch.full((length + 1,), value, dtype=dtype, device=device)


def remember(memory: Tensor, positions: Tensor, values: Tensor, *, keep: Tensor) -> None:
    """Replace entries. Of the values of a repeated example, the largest is stored.

    Args:
        memory: From `make_memory`, changed in place.
        positions: Examples, int64 [B].
        values: Their values [B]; ignored where ``keep`` is false.
        keep: Bool [B].
    """
    dropped = ~keep
    slots = positions.masked_fill(dropped, len(memory) - 1)
    values = values.masked_fill(dropped, 0).to(memory.dtype)
    memory.scatter_reduce_(0, slots, values, reduce="amax", include_self=False)


def accumulate(memory: Tensor, positions: Tensor, values: Tensor, *, keep: Tensor) -> None:
    """Add to entries, once for each occurrence of an example.

    Args:
        memory: From `make_memory`, changed in place.
        positions: Examples, int64 [B].
        values: Numbers to add [B]; ignored where ``keep`` is false.
        keep: Bool [B].
    """
    values = values.masked_fill(~keep, 0).to(memory.dtype)
    memory.index_put_((positions,), values, accumulate=True)


def concentration(counts: Tensor) -> float:
    """Share of all draws that fell on the most-drawn tenth of the examples; 0.1 is uniform.

    Args:
        counts: Draws of each example, int64 [n].

    Returns:
        The share, in [0.1, 1] where ten divides n; NaN before the first draw.
    """
    tenth = -(-len(counts) // 10)
    most = torch.topk(counts, tenth).values.sum()
    return float(most / counts.sum())


class MovingAverage:
    """Bias-corrected exponential moving average of batch means of the finite losses.

    Args:
        decay: Decay a batch, in [0, 1).
        device: Device of the average.
    """

    def __init__(self, decay: float, *, device: torch.device) -> None:
        self._decay = decay
        self._sums = torch.zeros(2, device=device)

    def before(self, losses: Tensor, *, finite: Tensor) -> Tensor:
        """Add a batch [B]; the average *before* it, a scalar (for the first batch its mean)."""
        count = finite.sum()
        mean = torch.where(finite, losses, 0.0).sum() / count.clamp_min(1)
        before = torch.where(self._sums[1] > 0, self._sums[0] / self._sums[1], mean)
        batch = torch.stack([mean, torch.ones_like(mean)])
        after = self._decay * self._sums + (1 - self._decay) * batch
        self._sums = torch.where(count > 0, after, self._sums)
        return before

    def state(self) -> Tensor:
        """Weighted sum and sum of weights, float32 [2]."""
        return self._sums.clone()

    def load_state(self, state: Tensor) -> None:
        """Continue where `state` was taken."""
        self._sums = state.to(self._sums.device).clone()


# Weighted random choice that is exact, repeatable on every device, and never waits for a device.
#
# `torch.multinomial` checks its input on the host, and a floating-point `torch.cumsum` on CUDA may
# round differently from run to run; both are avoided here.

#: Weights are drawn in whole units of 2**-24 of the largest weight, and at least one unit.
_UNITS = 2**24


def choose_with_replacement(
    weights: Tensor, count: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw positions independently, in proportion to ``weights``. Cost O(n + count log n).

    Weights are rounded to whole units of ``2**-24`` of the largest, at least one. So every position
    has a positive chance. The probabilities returned are those of the rounded weights, so that
    importance weights made of them are exact.

    Args:
        weights: Non-negative and finite, float [n]; all equal if all are zero.
        count: Number of positions to draw.
        generator: Source of randomness, on the device of ``weights``.

    Returns:
        Positions int64 [count] and the probability of each in one draw, float32 [count].
    """
    largest = weights.max().clamp_min(torch.finfo(weights.dtype).tiny)
    units = (weights / largest * _UNITS).to(torch.int64).clamp_min_(1)
    edges = units.cumsum(0)
    total = edges[-1]
    # Below 2**50 for 50 million examples, so the remainder is uniform to one part in 2**13 there
    # and in 2**23 for 50 thousand.
    ticket = torch.randint(2**63 - 1, (count,), generator=generator, device=weights.device) % total
    positions = torch.searchsorted(edges, ticket, right=True)
    return positions, units[positions].to(torch.float32) / total.to(torch.float32)


def choose_without_replacement(
    weights: Tensor, count: int, *, generator: torch.Generator
) -> Tensor:
    """Draw distinct positions one after another, each in proportion to the weights left.

    The same law as ``numpy.random.choice(n, count, replace=False, p=...)``, by an exponential race
    (Efraimidis and Spirakis 2006): the ``count`` smallest of ``E_i / w_i`` with ``E_i ~ Exp(1)``.

    Args:
        weights: Non-negative and finite, float [n]. Zero weights are drawn last.
        count: Number of positions to draw, at most n.
        generator: Source of randomness, on the device of ``weights``.

    Returns:
        Positions int64 [count], in the order drawn.
    """
    times = torch.empty_like(weights, dtype=torch.float32).exponential_(generator=generator)
    return torch.topk(times / weights, count, largest=False, sorted=True).indices


def true_label_probability(losses: Tensor, logits: Tensor | None, targets: Tensor) -> Tensor:
    """Probability the model gives the true label, float [B], NaN where the loss is not finite.

    With ``logits`` it is the softmax at the target. Without, it is ``exp(-loss)``, cut to at most
    1: exact for plain cross-entropy. For a loss with label smoothing or weights it is only a
    decreasing function of the loss.

    Args:
        losses: Float [B].
        logits: Float [B, C], if known.
        targets: Int64 [B].
    """
    if logits is None:
        probability = torch.exp(-losses).clamp_max(1.0)
    else:
        probability = torch.softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    return torch.where(torch.isfinite(losses), probability, math.nan)


def gradient_bound(logits: Tensor, targets: Tensor) -> Tensor:
    """Norm of the loss gradient at the network's output, ``||softmax(z) - onehot(y)||_2``.

    An upper bound of the norm of the example's whole gradient, up to a factor common to the batch.
    At most ``sqrt(2)``. Source: Katharopoulos and Fleuret 2018, equation 20.

    Args:
        logits: Float [B, C].
        targets: Int64 [B].

    Returns:
        Float [B].
    """
    difference = torch.softmax(logits, dim=1)
    difference = difference.scatter_add(
        1, targets[:, None], torch.full_like(targets[:, None], -1, dtype=difference.dtype)
    )
    norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return norm


class LearningSampler(StreamSampler):
    """A sampler whose state is a generator, a stream and named tensors.

    Inside, an example is its *position* among this rank's ``n`` examples, in [0, n).
    """

    #: Tensors of the state, by attribute, in addition to generator, stream and draw counts.
    _tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(labels, **common)
        self._targets = self.labels[self._examples.cpu()].to(self.device)
        self._draws = self._memory(0, dtype=torch.int64)
        self._ones = torch.ones(self.batch_size, dtype=torch.int64, device=self.device)
        #: Losses that were rewarded, and losses judged, since the last `statistics`.
        self._rewards = torch.zeros(2, device=self.device)

    @property
    def _plan_labels(self) -> int:
        return self.num_examples

    def _plan(self) -> Tensor:
        """Positions of the stream's next pass; a shuffle unless overridden."""
        return torch.randperm(self.num_examples, generator=self._generator, device=self.device)

    def _memory(self, value: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
        return make_memory(self.num_examples, value, dtype=dtype, device=self.device)

    def _count(self, positions: Tensor) -> Tensor:
        """Count a draw and return the indices, int64 [B], into the whole data set."""
        self._draws.index_add_(0, positions, self._ones)
        return self._examples.index_select(0, positions)

    def _targets_of(self, positions: Tensor, targets: Tensor | None) -> Tensor:
        """Labels of a batch: ``targets`` if given, else those of the sampler."""
        return self._targets[positions] if targets is None else targets.to(self.device)

    def _reward(self, rewarded: Tensor, judged: Tensor) -> None:
        """Count the rewarded and the judged losses of a batch, bool [B] each."""
        self._rewards += torch.stack([rewarded.sum(), judged.sum()])

    def statistics(self) -> dict[str, float]:
        """``reward_rate`` since the last call, where losses are judged, and ``concentration``."""
        counts = self._draws[:-1]
        figures = {"concentration": concentration(counts)} if bool(counts.any()) else {}
        rewarded, judged = self._rewards.tolist()
        self._rewards.zero_()
        return {**figures, "reward_rate": rewarded / judged} if judged else figures

    def _state(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).clone() for name in ("_draws", *self._tensors)}
        return {**super()._state(), "tensors": tensors}

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        for name, tensor in state["tensors"].items():
            getattr(self, name).copy_(tensor)
