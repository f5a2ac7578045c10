"""Uniform sampling, and what other samplers share with it: streams of passes over the examples.

Also tables of one value for each example, weighted random choice, and the scores of a forward pass.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from hpo_mab.bandits._settings import draw_statistics
from hpo_mab.samplers._base import BatchSampler, CommonArguments
from hpo_mab.samplers._feedback import Draw


def make_generator(
    seed: int, *, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on ``device`` whose stream differs by seed and by rank.

    The pair is hashed (NumPy's ``SeedSequence``): with ``seed + rank``, neighbouring seeds and
    ranks would share streams.
    """
    entropy = (seed % 2**64, rank)
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    # Halved, so that it fits a signed 64-bit integer.
    return torch.Generator(device).manual_seed(int(state) >> 1)


class StreamSampler(BatchSampler):
    """A sampler that cuts its batches from consecutive plans, each the order of one pass.

    A batch that a plan cannot fill takes its rest from the next plan. A batch must not hold an
    example twice. So the rest leaves out the examples of the batch's first part, if the new plan
    has enough others. The examples left out come later in the new plan.

    Nothing here waits for the device: sizes are known on the host.
    """

    #: Share of the budget at which plans change; 0: never.
    _turn = 0.0

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(labels, **common)
        self._generator = make_generator(self.seed, rank=self.rank, device=self.device)
        self._examples = self.examples.to(self.device)
        #: The rest of the current plan.
        self._order = torch.empty(0, dtype=torch.int64, device=self._generator.device)

    @property
    def _plan_modulus(self) -> int:
        """Number of indices that plans are made of; entries of a plan are taken modulo it."""
        return len(self.labels)

    @abc.abstractmethod
    def _plan(self) -> Tensor:
        """The next plan: indices int64 [n] in random order, on the device.

        It may mark entries by adding multiples of `_plan_modulus` to them.
        """

    def _take(self, count: int) -> Tensor:
        """The next ``count`` indices, int64 [count]."""
        taken, self._order = self._order[:count], self._order[count:]
        while (missing := count - len(taken)) > 0:
            self._order = self._plan()
            if len(taken):
                self._keep_out(taken, missing)
            taken = torch.cat([taken, self._order[:missing]])
            self._order = self._order[missing:]
        return taken

    def _keep_out(self, taken: Tensor, count: int) -> None:
        """Reorder the plan so that its first ``count`` indices are not among ``taken``."""
        modulus, order = self._plan_modulus, self._order
        held = torch.zeros(modulus, dtype=torch.bool, device=order.device)
        held.index_fill_(0, taken % modulus, True)
        # At most len(taken) of the window are held, so at least count are not. Stable, so the head
        # stays a uniform choice among the others.
        window = order[: count + len(taken)]
        window = window[torch.argsort(held[window % modulus].to(torch.uint8), stable=True)]
        # Shuffled again: otherwise the held examples would always come right after this batch.
        rest = torch.cat([window[count:], order[len(window) :]])
        shuffle = torch.randperm(len(rest), generator=self._generator, device=rest.device)
        self._order = torch.cat([window[:count], rest[shuffle]])

    def set_progress(self, share: float) -> None:
        """Set the share of the budget spent; drop the rest of the plan where plans change."""
        turns = self._progress < self._turn <= share
        super().set_progress(share)
        if turns:
            self._order = self._order[:0]

    def _state(self) -> dict[str, Any]:
        stream = {"order": self._order.clone()}
        return {"generator": self._generator.get_state(), "stream": stream}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._order = state["stream"]["order"].to(self._generator.device, copy=True)


class UniformSampler(StreamSampler):
    """Shuffling without replacement, as a continuous stream.

    The first ``N`` indices drawn, the next ``N`` and so on hold each of the ``N`` examples of this
    rank exactly once. Every batch has exactly ``B`` indices. Where ``B`` does not divide ``N``, a
    batch takes its rest from the next epoch instead of being short. That rest has no example of the
    batch's first part. So no batch holds an example twice, and none is short or dropped.

    An epoch's permutation is drawn at once on ``device``; a draw is a slice of it. It learns
    nothing from losses and has no reward rate.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.

    Examples:
        >>> from hpo_mab.samplers import UniformSampler
        >>> sampler = UniformSampler([0, 1] * 4, batch_size=4)
        >>> sorted(index for batch in sampler for index in batch)
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def _plan(self) -> Tensor:
        order = torch.randperm(len(self._examples), generator=self._generator, device=self.device)
        return self._examples[order]

    def _draw(self) -> Draw:
        return Draw(self._take(self.batch_size))


# Tables of one value for each example. Writes do not wait for the device, and the same writes
# always give the same result.
#
# A table has one entry more than there are examples. Values that must not count are written to it.
# Where a batch holds an example twice, plain indexed assignment on CUDA could store either value.


def make_table(length: int, value: float, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A table of ``length`` examples, all ``value``: [length + 1]."""
    return torch.full((length + 1,), value, dtype=dtype, device=device)


def replace(table: Tensor, positions: Tensor, values: Tensor, *, keep: Tensor) -> None:
    """Replace entries. Of the values of a repeated example, the largest is stored.

    Args:
        table: From `make_table`, changed in place.
        positions: Examples, int64 [B].
        values: Their values [B]; ignored where ``keep`` is false.
        keep: Bool [B].
    """
    dropped = ~keep
    slots = positions.masked_fill(dropped, len(table) - 1)
    values = values.masked_fill(dropped, 0).to(table.dtype)
    table.scatter_reduce_(0, slots, values, reduce="amax", include_self=False)


def accumulate(table: Tensor, positions: Tensor, values: Tensor, *, keep: Tensor) -> None:
    """Add to entries, once for each occurrence of an example.

    Args:
        table: From `make_table`, changed in place.
        positions: Examples, int64 [B].
        values: Numbers to add [B]; ignored where ``keep`` is false.
        keep: Bool [B].
    """
    values = values.masked_fill(~keep, 0).to(table.dtype)
    table.index_put_((positions,), values, accumulate=True)


# Weighted random choice that is exact, repeatable on every device, and never waits for a device.
# `torch.multinomial` is not used, because it checks its input on the host. Nor is a floating-point
# `torch.cumsum`, which on CUDA may round differently each time.

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
    # The remainder of a uniform integer below 2**63 is uniform to one part in 2**63 / total. The
    # total is at most 2**24 n: 2**50 for 50 million examples, so one part in 2**13.
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
    # Of exponential times at rates w_i, the first is example i's with probability w_i / sum w. As
    # they have no memory, the next ones follow the same law among the examples left.
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

    #: Tensors of the state, by attribute, in addition to generator, stream, draw counts, rewards.
    _tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(labels, **common)
        self._targets = self.labels[self._examples.cpu()].to(self.device)
        self._draws = self._new_table(0, dtype=torch.int64)
        self._ones = torch.ones(self.batch_size, dtype=torch.int64, device=self.device)
        #: Losses that were rewarded, and losses judged, since the last `statistics`.
        self._rewards = torch.zeros(2, device=self.device)

    @property
    def _plan_modulus(self) -> int:
        return self.num_examples

    def _plan(self) -> Tensor:
        """Positions of the stream's next pass; a shuffle unless overridden."""
        return torch.randperm(self.num_examples, generator=self._generator, device=self.device)

    def _new_table(self, value: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
        return make_table(self.num_examples, value, dtype=dtype, device=self.device)

    def _candidates(self, count: int) -> Tensor:
        """Positions drawn uniformly with replacement, int64 [count]."""
        return torch.randint(
            self.num_examples, (count,), generator=self._generator, device=self.device
        )

    def _logits_of(self, candidates: Tensor, scorer: Callable[[Tensor], Tensor]) -> Tensor:
        """Checked logits of candidates by a function of indices, float32 [K, C]."""
        with torch.no_grad():
            logits = scorer(self._examples[candidates]).to(self.device, torch.float32)
        self.check_outputs(logits)
        return logits

    def _count(self, positions: Tensor) -> Tensor:
        """Count a draw and return the indices, int64 [B], into the whole data set."""
        self._draws.index_add_(0, positions, self._ones)
        return self._examples.index_select(0, positions)

    def _targets_of(self, positions: Tensor, targets: Tensor | None) -> Tensor:
        """Labels of a batch: ``targets`` if given, else those of the sampler."""
        return self._targets[positions] if targets is None else targets

    def _reward(self, rewarded: Tensor, judged: Tensor) -> None:
        """Count the rewarded and the judged losses of a batch, bool [B] each."""
        self._rewards += torch.stack([rewarded.sum(), judged.sum()])

    def statistics(self) -> dict[str, float]:
        """``reward_rate`` since the last call, where losses are judged, and ``concentration``."""
        draws, rewards = self._draws[None, :-1], self._rewards[None]
        (statistics,) = draw_statistics(draws, rewards, examples=self.num_examples)
        self._rewards.zero_()
        return statistics

    def _held(self) -> dict[str, Tensor]:
        """The tensors that make the state, in addition to generator and stream."""
        return {name: getattr(self, name) for name in ("_draws", "_rewards", *self._tensors)}

    def _state(self) -> dict[str, Any]:
        tensors = {name: tensor.clone() for name, tensor in self._held().items()}
        return {**super()._state(), "tensors": tensors}

    def _load_state(self, state: dict[str, Any]) -> None:
        super()._load_state(state)
        for name, tensor in self._held().items():
            tensor.copy_(state["tensors"][name])
