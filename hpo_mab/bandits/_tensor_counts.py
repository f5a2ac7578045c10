"""Successes and failures in tensors, with forgetting, and no wait for the host."""

from __future__ import annotations

import torch
from torch import Tensor


class TensorCounts:
    """Counts of every arm, updated in place by one pull of each bandit.

    Args:
        shape: (B, A).
        memory: How many of each bandit's last pulls count, int64 [B]; None for all.
        capacity: Greatest memory that a bandit may have.
        discount: Factor on all counts of a bandit at each of its pulls, float [B, 1]; None for
            none.
        device: Where the tensors live.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        memory: Tensor | None,
        capacity: int,
        discount: Tensor | None,
        device: torch.device,
    ) -> None:
        self.successes = torch.zeros(shape, device=device)
        self.failures = torch.zeros(shape, device=device)
        self._memory = memory
        self._discount = discount
        ring = (shape[0], 0 if memory is None else capacity)
        self._pushed = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self._ring_arms = torch.zeros(ring, dtype=torch.int32, device=device)
        self._ring_rewards = torch.zeros(ring, dtype=torch.uint8, device=device)

    def add(self, arms: Tensor, rewards: Tensor, valid: Tensor) -> None:
        """Count a pull of each bandit and forget what its memory no longer holds.

        Args:
            arms: Arms pulled, int64 [B].
            rewards: Whether they were rewarded, bool [B].
            valid: Whether the pull counts, bool [B]; where not, nothing at all changes.
        """
        if self._discount is not None:
            factor = torch.where(valid[:, None], self._discount.to(self.failures.dtype), 1.0)
            self.successes.mul_(factor)
            self.failures.mul_(factor)
        if self._memory is not None:
            old_arms, old_rewards, full = self._push(self._memory, arms, rewards, valid)
            self._count(old_arms, old_rewards, -full.float())
        self._count(arms, rewards, valid.float())

    def _push(
        self, memory: Tensor, arms: Tensor, rewards: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put pulls into the ring; returns what they displace, and where they displace a pull."""
        slots = (self._pushed % memory)[:, None]
        old_arms = self._ring_arms.gather(1, slots)[:, 0]
        old_rewards = self._ring_rewards.gather(1, slots)[:, 0]
        full = valid & (self._pushed >= memory)
        kept_arms = torch.where(valid, arms.to(torch.int32), old_arms)
        kept_rewards = torch.where(valid, rewards.to(torch.uint8), old_rewards)
        self._ring_arms.scatter_(1, slots, kept_arms[:, None])
        self._ring_rewards.scatter_(1, slots, kept_rewards[:, None])
        self._pushed.add_(valid)
        return old_arms.long(), old_rewards.bool(), full

    def _count(self, arms: Tensor, rewards: Tensor, amount: Tensor) -> None:
        # Gather and scatter rather than scatter_add: one arm a row, so the order is no matter, and
        # neither is whether the device adds atomically.
        places = arms[:, None]
        for counts, chosen in ((self.successes, rewards), (self.failures, ~rewards)):
            found = counts.gather(1, places)
            counts.scatter_(1, places, found + (amount * chosen)[:, None])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state."""
        return {
            "successes": self.successes,
            "failures": self.failures,
            "pushed": self._pushed,
            "window_arms": self._ring_arms,
            "window_rewards": self._ring_rewards,
        }
