"""The batches of a stack of trainings: its bandits' draws, and batches planned by samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.samplers import BatchSampler, HardMiningSampler, MABSampler

#: Most steps whose batches are planned ahead, for samplers that do not learn.
PLANNED_STEPS = 64
#: Batches are planned in three parts, as ranges of steps. The device waits for the first part, so
#: that is short. While the device takes the steps of a part, the host plans the next one.
_PLANNED_RANGES = (range(4), range(4, 20), range(20, PLANNED_STEPS))


class StackBatches:
    """Batches of the next step of all slots. Each slot's sampler is served in one of three ways.

    - By bandits: `MABSampler` with ``active = 1``. The stack's bandits draw and learn on the
      device, within the step.
    - By choice: `HardMiningSampler`. The host plans candidates, and the step chooses among them.
      Nothing learns. All slots of a stack are served so, or none.
    - By plan: any other. The host draws many steps ahead, or one for a sampler that learns.

    Args:
        slots: Trainings, ``K``.
        batch_size: Examples a batch of each, ``B``.
        device: Device of the tensors.
        seed: Seed of the bandits' draws.

    Attributes:
        engine: Bandits of all slots, in rows slot by slot; None until a slot needs them.
        candidates: Number of candidates that the step chooses each slot's batch from; 0 without
            choice. The sampler of the first slot to begin decides; None before.
        samplers: Samplers of the slots served by plan or by choice, by slot.
    """

    def __init__(self, slots: int, batch_size: int, device: torch.device, *, seed: int) -> None:
        self.engine: DeviceEngine | None = None
        self.candidates: int | None = None
        self.samplers: dict[int, BatchSampler] = {}
        self._seed = seed
        #: What all bandits share: the structure of their settings, and the number of examples.
        self._shared_structure: tuple[Any, int] | None = None
        self._ring_capacity = 0
        shape = (slots, PLANNED_STEPS, batch_size)
        #: Planned examples, or the candidates to choose them from, [K, steps, B or candidates].
        self._planned = torch.zeros(shape, dtype=torch.int64, device=device)
        self._planned_weights = torch.ones(shape, device=device)
        #: Slots that have had planned weights.
        self._slots_with_weights: set[int] = set()
        #: Examples chosen among the planned candidates, [K, steps, B].
        self._chosen = torch.zeros_like(self._planned)
        self._planned_step = torch.zeros(1, dtype=torch.int64, device=device)
        #: The bandits' batch of the next step.
        self._drawn = torch.zeros(slots, batch_size, dtype=torch.int64, device=device)
        self._drawn_weights = torch.ones(slots, batch_size, device=device)
        #: Arms of the bandits' outstanding draws, [K, B].
        self._arms = torch.zeros_like(self._drawn)
        #: Whether the slot is served by bandits, bool [K, 1].
        self._by_bandits = torch.zeros(slots, 1, dtype=torch.bool, device=device)

    def takes(self, sampler: BatchSampler) -> bool:
        """Whether the stack can serve a sampler, see `StackedTrainer.takes`."""
        if cannot_be_stacked(type(sampler)):
            return False
        if self.candidates not in (None, _candidates_of(sampler)):
            return False
        if not by_bandits(sampler) or self.engine is None:
            return True
        common = (sampler.settings.structure, sampler.num_examples)
        return common == self._shared_structure and window_of(sampler) <= self._ring_capacity

    def begin(self, slot: int, sampler: BatchSampler) -> bool:
        """Serve a sampler in a slot from the next step on; returns whether `engine` is new."""
        if not self.takes(sampler):
            raise ArgumentError(
                f"{type(sampler).__name__} does not fit this stack: it needs a Training, or a "
                "stack of its own, see StackedTrainer.takes."
            )
        if self.candidates is None:
            self.candidates = _candidates_of(sampler)
            if self.candidates:
                self._planned = self._planned.new_zeros(*self._planned.shape[:2], self.candidates)
        self._by_bandits[slot] = by_bandits(sampler)
        if not by_bandits(sampler):
            self.samplers[slot] = sampler
            return False
        is_first = self.engine is None
        self.samplers.pop(slot, None)
        self._begin_bandits(slot, sampler)
        return is_first

    def _begin_bandits(self, slot: int, sampler: MABSampler) -> None:
        shares, settings = sampler.shares.numpy(), sampler.settings
        if self.engine is None:
            self._shared_structure = (settings.structure, sampler.num_examples)
            # The ring of pulls has a fixed size: as many pulls as a bandit has arms, or the first
            # sampler's window if larger.
            self._ring_capacity = max(shares.shape[1], window_of(sampler))
            self.engine = DeviceEngine(
                np.tile(shares, (len(self._drawn), 1)),
                settings,
                torch.Generator(self._drawn.device).manual_seed(self._seed),
                stack=len(self._drawn),
                capacity=self._ring_capacity,
            )
        indices, weights, arms = self.engine.begin(slot, shares, settings, seed=sampler.seed)
        self._drawn[slot] = indices
        self._drawn_weights[slot] = weights
        self._arms[slot] = arms

    def forget(self, slots: Iterable[int]) -> None:
        """Drop the samplers of slots without a training."""
        for slot in slots:
            self.samplers.pop(slot, None)

    @property
    def steps_at_once(self) -> int:
        """Steps whose batches are planned ahead.

        Samplers that do not learn draw many steps ahead: no host work then separates replays of the
        graph. A learner's next draw needs the losses of this step.
        """
        return 1 if any(map(_learns, self.samplers.values())) else PLANNED_STEPS

    def rewind(self) -> None:
        """Return to the first of the planned batches."""
        self._planned_step.zero_()

    def plan(self, slot: int, progress: Mapping[int, float]) -> None:
        """Draw batches of a slot's sampler, by step, with the share of the budget before each."""
        sampler = self.samplers[slot]
        for step, share in progress.items():
            if by_choice(sampler):
                self._planned[slot, step] = sampler.candidates()
                continue
            sampler.set_progress(share)
            draw = sampler.next_draw()
            self._planned[slot, step] = draw.indices
            if draw.weights is not None:
                self._planned_weights[slot, step] = draw.weights
                self._slots_with_weights.add(slot)
            elif slot in self._slots_with_weights:
                self._planned_weights[slot, step] = 1
            if not sampler._learns:
                sampler.discard()

    def next(self, losses_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Indices int64 [K, B] and importance weights float32 [K, B] of this step.

        ``losses_of`` returns each network's losses of candidates, float32 [K, n]. Of each row's
        candidates those of highest loss are chosen. A loss that is not finite comes first, see
        `HardMiningSampler`.
        """
        planned = self._planned.index_select(1, self._planned_step)[:, 0]
        weights = self._planned_weights.index_select(1, self._planned_step)[:, 0]
        self._planned_step += 1
        if self.candidates:
            losses = losses_of(planned).nan_to_num(nan=torch.inf)
            chosen = planned.gather(1, losses.topk(self._drawn.shape[1], dim=1).indices)
            self._chosen.index_copy_(1, self._planned_step - 1, chosen[:, None])
            return chosen, weights
        # New tensors: the backward pass needs the weights after the next draw has been made.
        return (
            torch.where(self._by_bandits, self._drawn, planned),
            torch.where(self._by_bandits, self._drawn_weights, weights),
        )

    def count_chosen(self, *, steps: int) -> None:
        """Count the examples that the last steps have chosen among candidates."""
        for slot, sampler in self.samplers.items():
            if by_choice(sampler):
                sampler.count(self._chosen[slot, :steps])

    def update_samplers(self, losses: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Update the samplers that learn: losses [K, B], logits [K, B, C], targets [K, B]."""
        for slot, sampler in self.samplers.items():
            if _learns(sampler):
                # Copies, because a sampler may keep them and the next replay overwrites these.
                own = losses[slot].clone(), logits[slot].clone(), targets[slot].clone()
                sampler.update(own[0], logits=own[1], targets=own[2])

    def update_bandits(self, losses: Tensor) -> None:
        """Reward the bandits' arms by the losses [K, B] and store their batch of the next step."""
        if self.engine is None:
            return
        self.engine.learn(self._arms.flatten(), losses.flatten())
        indices, weights, arms = self.engine.draw(uniform=False)
        self._drawn.copy_(indices.view_as(self._drawn))
        if weights is not None:
            self._drawn_weights.copy_(weights.view_as(self._drawn_weights))
        self._arms.copy_(arms.view_as(self._arms))

    def statistics(self, slots: Sequence[int]) -> dict[int, dict[str, float]]:
        """Statistics of some slots' samplers or bandits, see `BatchSampler.statistics`."""
        found = {slot: self.samplers[slot].statistics() for slot in slots if slot in self.samplers}
        drawn = [slot for slot in slots if slot not in self.samplers]
        if drawn and self.engine is not None:
            found.update(zip(drawn, self.engine.statistics_of(drawn), strict=True))
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The bandits' batch of the next step; the first dimension is the row."""
        return {"drawn": self._drawn, "drawn_weights": self._drawn_weights, "arms": self._arms}


def planned_parts(steps: int) -> list[range]:
    """The parts in which the batches of some steps are planned, at most `PLANNED_STEPS`."""
    return [range(p.start, min(p.stop, steps)) for p in _PLANNED_RANGES if p.start < steps]


def by_bandits(sampler: BatchSampler) -> TypeGuard[MABSampler]:
    """Whether a sampler is served by the stack's bandits, see `StackBatches`."""
    # A subclass may draw or learn in another way.
    return type(sampler) is MABSampler and sampler.settings.active == 1


def by_choice(sampler: BatchSampler) -> TypeGuard[HardMiningSampler]:
    """Whether a sampler is served by the step's choice, see `StackBatches`."""
    return type(sampler) is HardMiningSampler


def _candidates_of(sampler: BatchSampler) -> int:
    """Candidates that the step chooses a batch from; 0 where it does not choose."""
    return sampler.num_candidates if by_choice(sampler) else 0


def _learns(sampler: BatchSampler) -> bool:
    """Whether a sampler learns from the losses of each step; not where the step chooses for it."""
    return sampler._learns and not by_choice(sampler)


def cannot_be_stacked(sampler: type[BatchSampler]) -> bool:
    """Whether samplers of a class need a `Training`, whose loop gives them network or losses."""
    return sampler is not HardMiningSampler and (sampler.asks_network or sampler.weighs_by_losses)


def window_of(sampler: MABSampler) -> int:
    """Pulls in a bandit's window; 1 without a window."""
    return sampler.settings.window(sampler.num_examples / sampler.batch_size) or 1
