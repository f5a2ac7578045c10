"""The rows of a stack of trainings, one row a training: numbers and draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits import DeviceEngine
from hpo_mab.samplers import BatchSampler, MABSampler
from hpo_mab.training._device import average_share
from hpo_mab.training._schedule import LearningCurve

#: Steps whose batches are drawn at once for samplers that do not learn.
PLANNED_STEPS = 64


class NumberRows:
    """The numbers that the step of each training depends on: schedule, average, smoothing."""

    def __init__(self, slots: int, device: torch.device) -> None:
        column = torch.zeros(slots, 1, device=device)
        self._done, self._window = column.clone(), column.clone()
        #: See `Schedule.lines`.
        self._lines = [column + 1 for _ in range(4)]
        self.label_smoothing = column.clone()
        self._losses = column[:, 0].clone()

    def begin(self, slot: int, curve: LearningCurve) -> None:
        """Set the numbers of a training that begins in a slot."""
        self._done[slot] = 0
        for column, number in zip(self._lines, curve.schedule.lines, strict=True):
            column[slot] = number
        self._window[slot] = curve.average
        self.label_smoothing[slot] = curve.label_smoothing
        self._losses[slot] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that steps change; the first dimension is the row."""
        return {"done": self._done, "losses": self._losses}

    def factor(self) -> Tensor:
        """Share of the peak learning rate, see `Schedule.factor`, float32 [K, 1]."""
        warm, end, slope, length = self._lines
        fall = (end - slope * self._done) / length
        return torch.minimum((self._done + 1) / warm, fall).clamp(min=0)

    def count(self, losses: Tensor) -> None:
        """Count a step with the losses [K, B] of its batches."""
        self._done += 1
        self._losses += losses.mean(dim=1)

    def average_share(self) -> Tensor:
        """Weight of the newest weights in their average, float32 [K, 1]."""
        return average_share(self._window, self._done)

    def read(self) -> list[float]:
        """Summed mean losses of each slot since `forget`; waits for the device."""
        return [float(loss) for loss in self._losses.tolist()]

    def forget(self, slot: int) -> None:
        """Set the sum of a slot to 0."""
        self._losses[slot] = 0


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
        #: Slots that have had planned weights.
        self._weighted: set[int] = set()
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(slots, batch_size, dtype=torch.int64, device=device)
        self._drawn_weights = torch.ones(slots, batch_size, device=device)
        #: Arms of the bandits' outstanding draws, [K * B].
        self._arms = torch.zeros(slots * batch_size, dtype=torch.int64, device=device)
        #: Whether the stack's bandits draw for the slot, bool [K, 1].
        self._by_bandits = torch.zeros(slots, 1, dtype=torch.bool, device=device)

    def plan(self, slot: int, sampler: BatchSampler, progress: Sequence[float]) -> None:
        """Draw the next batches of a slot's sampler, with the share of the budget before each."""
        for place, share in enumerate(progress):
            sampler.set_progress(share)
            draw = sampler.next_draw()
            self._planned[slot, place] = draw.indices
            if draw.weights is not None:
                self._planned_weights[slot, place] = draw.weights
                self._weighted.add(slot)
            elif slot in self._weighted:
                self._planned_weights[slot, place] = 1
            if not sampler._learns:
                sampler.discard()

    def rewind(self) -> None:
        """Return to the first of the planned batches."""
        self._position.zero_()

    def takes(self, sampler: BatchSampler) -> bool:
        """Whether the stack's bandits can serve a sampler, or it draws by itself."""
        if not _stack_draws_for(sampler) or self.engine is None:
            return True
        fits = sampler.settings.structure == self._structure
        return fits and _window_of(sampler) <= self._capacity

    def begin(self, slot: int, sampler: BatchSampler) -> bool:
        """Reset the stack's bandits for a sampler if they draw for it; returns whether they do.

        Raises:
            ArgumentError: The sampler needs the network, or bandits that do not fit the stack's.
        """
        if not _stack_draws_for(sampler):
            if sampler.asks_network or sampler.weighs_by_losses:
                raise ArgumentError(
                    f"{type(sampler).__name__} needs the network within its step, which a stack "
                    "does not give; use Training."
                )
            self._by_bandits[slot] = False
            return False
        shares, settings = sampler.shares.numpy(), sampler.settings
        if self.engine is None:
            self._structure = settings.structure
            # The ring of pulls has a fixed size: one pass over all arms, or the first sampler's
            # need if larger.
            self._capacity = max(shares.shape[1], _window_of(sampler))
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
                f"and remember at most {self._capacity} pulls: {settings.structure} with a "
                f"memory of {_window_of(sampler)} does not fit {self._structure}."
            )
        indices, weights, arms = self.engine.begin(slot, shares, settings, seed=sampler.seed)
        size = self._drawn.shape[1]
        self._drawn[slot] = indices
        self._drawn_weights[slot] = weights
        self._arms[slot * size : (slot + 1) * size] = arms
        self._by_bandits[slot] = True
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

    def figures(self, slot: int) -> dict[str, float]:
        """Statistics of a slot that the stack's bandits draw for, see `BatchSampler.statistics`."""
        return {} if self.engine is None else self.engine.figures_of(slot).shares()

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
            torch.where(self._by_bandits, self._drawn, planned),
            torch.where(self._by_bandits, self._drawn_weights, weights),
        )


def _stack_draws_for(sampler: BatchSampler) -> TypeGuard[MABSampler]:
    """Whether the stack's bandits draw for the sampler."""
    return (
        isinstance(sampler, MABSampler)
        and sampler.settings.active == 1
        and not sampler.starts_from_record
    )


def _window_of(sampler: MABSampler) -> int:
    """Pulls in a bandit's window; 1 without a window."""
    return sampler.settings.window(sampler.num_examples / sampler.batch_size) or 1
