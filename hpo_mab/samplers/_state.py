"""What samplers that learn have in common: a generator, tensors that make their state, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hpo_mab.samplers._base import BatchSampler
from hpo_mab.samplers._generator import make_generator
from hpo_mab.samplers._memory import concentration, make_memory
from hpo_mab.samplers._stream import PlanStream


class LearningSampler(BatchSampler):
    """A sampler whose state is a generator, a stream and named tensors.

    Inside, an example is its *position* among this rank's ``n`` examples, in [0, n).
    """

    #: Attributes, all tensors, that make the state besides generator, stream and draw counts.
    _tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__(
            labels,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        self._generator = make_generator(seed, rank=rank, device=self.device)
        examples = self.examples
        self._examples = examples.to(self.device)
        self._targets = self.labels[examples].to(self.device)
        self._draws = self._memory(0, dtype=torch.int64)
        self._ones = torch.ones(batch_size, dtype=torch.int64, device=self.device)
        self._stream = PlanStream(
            self._plan, num_labels=self.num_examples, generator=self._generator
        )

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
        """Labels of a batch: those given with its feedback, or else the sampler's own."""
        return self._targets[positions] if targets is None else targets.to(self.device)

    def statistics(self) -> dict[str, float]:
        """See `BatchSampler.statistics`; ``concentration`` once something was drawn."""
        counts = self._draws[:-1]
        return {"concentration": concentration(counts)} if bool(counts.any()) else {}

    def _state(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).clone() for name in ("_draws", *self._tensors)}
        return {
            "generator": self._generator.get_state(),
            "stream": self._stream.state(),
            "tensors": tensors,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._stream.load_state(state["stream"])
        for name, tensor in state["tensors"].items():
            getattr(self, name).copy_(tensor)
