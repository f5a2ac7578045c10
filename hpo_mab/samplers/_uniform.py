"""Uniform sampling, the control of every comparison, and the stream of passes it draws from."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from hpo_mab.samplers._base import BatchSampler, CommonArguments
from hpo_mab.samplers._feedback import Draw


def make_generator(
    seed: int, *, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on ``device`` whose stream differs by seed and by rank.

    The pair is hashed (NumPy's ``SeedSequence``), so that neighbouring seeds and ranks do not share
    streams, as ``seed + rank`` would make them.
    """
    entropy = (seed % 2**64, rank)
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state) >> 1)


class PlanStream:
    """Cuts batches of one size from consecutive plans, each the order of one pass.

    A batch that a plan cannot fill takes its rest from the next plan. A batch must not hold an
    example twice, so the rest has none of the batch's first part if the new plan has enough others.
    Those examples are later in the new plan.

    Nothing here waits for the device: sizes are known on the host.

    Args:
        plan: Returns the next plan: indices int64 [n] in random order, on the stream's device. A
            plan may mark entries by adding multiples of ``num_labels`` to them.
        num_labels: Number of examples; indices are taken modulo it.
        generator: Source of randomness for the reshuffle of a plan with a straddling batch.
    """

    def __init__(
        self, plan: Callable[[], Tensor], *, num_labels: int, generator: torch.Generator
    ) -> None:
        self._plan = plan
        self._num_labels = num_labels
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64, device=generator.device)
        self._position = 0

    def take(self, count: int) -> Tensor:
        """The next ``count`` indices, int64 [count]."""
        end = self._position + count
        if end <= len(self._order):
            taken = self._order[self._position : end]
            self._position = end
            return taken
        taken = self._order[self._position :]
        while len(taken) < count:
            self._order = self._plan()
            if len(taken):
                self._keep_out(taken, count - len(taken))
            self._position = min(count - len(taken), len(self._order))
            taken = torch.cat([taken, self._order[: self._position]])
        return taken

    def restart(self) -> None:
        """Drop what is left of the current plan."""
        self._order = self._order[:0]
        self._position = 0

    def state(self) -> dict[str, Any]:
        """The rest of the current plan; the owner saves the generator."""
        return {"order": self._order.clone(), "position": self._position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._order = state["order"].to(self._generator.device).clone()
        self._position = int(state["position"])

    def _keep_out(self, taken: Tensor, count: int) -> None:
        """Reorder the plan so that its first ``count`` indices are not among ``taken``."""
        held = torch.zeros(self._num_labels, dtype=torch.bool, device=self._order.device)
        held.index_fill_(0, taken % self._num_labels, True)
        # At most len(taken) of the window are held, so at least count are not. Stable, so the head
        # stays a uniform choice among the others.
        window = self._order[: count + len(taken)]
        window = window[torch.argsort(held[window % self._num_labels].to(torch.uint8), stable=True)]
        # Shuffled again: otherwise the held examples would always come right after this batch.
        rest = torch.cat([window[count:], self._order[len(window) :]])
        shuffle = torch.randperm(len(rest), generator=self._generator, device=rest.device)
        self._order = torch.cat([window[:count], rest[shuffle]])


class StreamSampler(BatchSampler):
    """A sampler that draws its batches from consecutive plans, with a generator of its own."""

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(labels, **common)
        self._generator = make_generator(self.seed, rank=self.rank, device=self.device)
        self._examples = self.examples.to(self.device)
        self._stream = PlanStream(
            self._plan, num_labels=self._plan_labels, generator=self._generator
        )

    @property
    def _plan_labels(self) -> int:
        """Number of indices that plans are made of."""
        return len(self.labels)

    @abc.abstractmethod
    def _plan(self) -> Tensor:
        """The order of the next pass, see `PlanStream`."""

    def _state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "stream": self._stream.state()}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._stream.load_state(state["stream"])


class UniformSampler(StreamSampler):
    """Shuffling without replacement, as a continuous stream.

    Every run of ``N`` draws from the start (``N`` examples of this rank) holds each example
    exactly once. Every batch has exactly ``B`` indices. Where ``B`` does not divide ``N``, a batch
    takes its rest from the next epoch instead of being short. That rest has no example of the
    batch's first part. So no batch holds an example twice, and none is short or dropped.

    An epoch's permutation is drawn at once on ``device``; a draw is a slice of it. It learns
    nothing from losses and has no reward rate.

    Args:
        labels: Class of each training example, integers [N].
        **common: Arguments of every sampler, see `BatchSampler`.

    Raises:
        ArgumentError: An argument outside its bound.
    """

    def _plan(self) -> Tensor:
        order = torch.randperm(len(self._examples), generator=self._generator, device=self.device)
        return self._examples[order]

    def _draw(self) -> Draw:
        return Draw(self._stream.take(self.batch_size))
