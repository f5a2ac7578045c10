"""A continuous stream of indices cut from one pass plan after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PlanStream:
    """Cuts batches of one size from consecutive plans, each the order of one pass.

    A batch that a plan cannot fill takes its rest from the next plan. Examples left over from the
    old plan are kept out of that rest as far as the new plan has others, so that a batch does not
    hold an example twice; they keep their place in the new plan, later in it.

    Nothing here waits for the device: sizes are known on the host.

    Args:
        plan: Makes the next plan: indices int64 [n] in random order, on the stream's device. A
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
        """The rest of the current plan; the generator is the owner's to save."""
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
        # Shuffled again, or the held examples would always come right after this batch.
        rest = torch.cat([window[count:], self._order[len(window) :]])
        shuffle = torch.randperm(len(rest), generator=self._generator, device=rest.device)
        self._order = torch.cat([window[:count], rest[shuffle]])
