"""The batches of a stack of trainings, one row a training, and the bandits that draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits import REWARDS, BanditSettings, DeviceEngine
from hpo_mab.samplers import BatchSampler, MABSampler

#: Steps whose batches are drawn at once for samplers that do not learn.
PLANNED_STEPS = 64


class DrawRows:
    """Batches of the next step: from the stack's bandits, or planned by a slot's sampler.

    Args:
        slots: Trainings, ``K``.
        batch_size: Examples a batch of each, ``B``.
        device: Device of the tensors.
        seed: Seed of the bandits' draws.

    Attributes:
        engine: Bandits of all slots, in rows below one another; None until a slot needs them.
    """

    def __init__(self, slots: int, batch_size: int, device: torch.device, *, seed: int) -> None:
        self.engine: DeviceEngine | None = None
        self._slots = slots
        self._seed = seed
        self._structure: tuple[Any, ...] | None = None
        self._capacity = 0
        shape = (slots, PLANNED_STEPS, batch_size)
        self._planned = torch.zeros(shape, dtype=torch.int64, device=device)
        self._planned_weights = torch.ones(shape, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(slots, batch_size, dtype=torch.int64, device=device)
        self._drawn_weights = torch.ones(slots, batch_size, device=device)
        #: Arms that the bandits drew, [K * B], which wait for their losses.
        self._arms = torch.zeros(slots * batch_size, dtype=torch.int64, device=device)
        #: Whether the stack's bandits draw for the slot, bool [K, 1].
        self._inside = torch.zeros(slots, 1, dtype=torch.bool, device=device)

    def plan(self, slot: int, sampler: BatchSampler, progress: Sequence[float]) -> None:
        """Draw the next batches of a slot's sampler, with the share of the budget before each."""
        for place, share in enumerate(progress):
            sampler.set_progress(share)
            draw = sampler.next_draw()
            self._planned[slot, place] = draw.indices
            if draw.weights is not None:
                self._planned_weights[slot, place] = draw.weights
            if not learns(sampler):
                sampler.discard()

    def rewind(self) -> None:
        """Go to the first of the planned batches."""
        self._position.zero_()

    def takes(self, sampler: BatchSampler) -> bool:
        """Whether the stack's bandits can serve a sampler, or it draws by itself."""
        if not _is_inside(sampler) or self.engine is None:
            return True
        fits = stack_structure(sampler.settings) == self._structure
        return fits and _memory(sampler) <= self._capacity

    def adopt(self, slot: int, sampler: BatchSampler) -> bool:
        """Begin the stack's bandits for a sampler if they draw for it; returns whether they do.

        Raises:
            ArgumentError: The sampler needs the network, or bandits that do not fit the stack's.
        """
        if not _is_inside(sampler):
            if sampler.asks_network or sampler.weighs_by_losses:
                raise ArgumentError(
                    f"{type(sampler).__name__} needs the network within its step, which a stack "
                    "does not give; use Training."
                )
            self._inside[slot] = False
            return False
        shares, settings = sampler.shares.numpy(), sampler.settings
        if self.engine is None:
            self._structure = stack_structure(settings)
            # The ring of pulls has a fixed size: one pass over all arms, or the first sampler's
            # need if larger.
            self._capacity = max(shares.shape[1], _memory(sampler))
            self.engine = DeviceEngine(
                np.tile(shares, (self._slots, 1)),
                settings,
                torch.Generator(self._drawn.device).manual_seed(self._seed),
                stack=self._slots,
                capacity=self._capacity,
            )
        if not self.takes(sampler):
            raise ArgumentError(
                "bandits of a stack must share policy, reward, replacement and way of forgetting, "
                f"and remember at most {self._capacity} pulls: {stack_structure(settings)} with a "
                f"memory of {_memory(sampler)} does not fit {self._structure}."
            )
        indices, weights, arms = self.engine.begin(slot, shares, settings, seed=sampler.seed)
        size = self._drawn.shape[1]
        self._drawn[slot] = indices
        self._drawn_weights[slot] = weights
        self._arms[slot * size : (slot + 1) * size] = arms
        self._inside[slot] = True
        return True

    def learn_and_draw(self, losses: Tensor) -> None:
        """Reward the bandits' arms by the losses [K, B] and store their batch of the next step."""
        if self.engine is None:
            return
        self.engine.learn(self._arms, losses.flatten())
        indices, weights, arms = self.engine.draw(uniform=False)
        self._drawn.copy_(indices.view_as(self._drawn))
        if weights is not None:
            self._drawn_weights.copy_(weights.view_as(self._drawn_weights))
        self._arms.copy_(arms)

    def tensors(self) -> dict[str, Tensor]:
        """The bandits' batch of the next step; the first dimension is the row."""
        return {
            "drawn": self._drawn,
            "drawn_weights": self._drawn_weights,
            "arms": self._arms.view_as(self._drawn),
        }

    def next(self) -> tuple[Tensor, Tensor]:
        """Indices int64 [K, B] and importance weights float32 [K, B] of this step."""
        planned = self._planned.index_select(1, self._position)[:, 0]
        weights = self._planned_weights.index_select(1, self._position)[:, 0]
        self._position += 1
        # New tensors: the backward pass needs the weights after the next draw has been made.
        return (
            torch.where(self._inside, self._drawn, planned),
            torch.where(self._inside, self._drawn_weights, weights),
        )


def learns(sampler: BatchSampler) -> bool:
    """Whether a sampler's draws depend on losses, so that each must be answered before the next."""
    return type(sampler)._learn is not BatchSampler._learn


def stack_structure(settings: BanditSettings) -> tuple[Any, ...]:
    """The settings that all bandits of a stack must share: they select the kernels of its step."""
    forgets = "window" if settings.discount is None else "discount"
    return (
        settings.policy,
        settings.shuffles,
        forgets if settings.memory is not None or settings.discount is not None else "nothing",
        settings.prior if settings.correction else None,
        REWARDS.name(settings.reward),
    )


def _is_inside(sampler: BatchSampler) -> TypeGuard[MABSampler]:
    """Whether the stack's bandits draw for the sampler."""
    return (
        isinstance(sampler, MABSampler)
        and sampler.settings.active == 1
        and not sampler.starts_from_record
    )


def _memory(sampler: MABSampler) -> int:
    """Pulls in a bandit's window; 1 without a window."""
    return sampler.settings.window(sampler.num_examples / sampler.batch_size) or 1
