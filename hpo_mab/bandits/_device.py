"""The engine in tensors, for CUDA, discounted counts and all policies: it makes a key for each arm.

Draws and updates do not make the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_mab.bandits._settings import (
    BanditEngine,
    BanditSettings,
    MovingAverage,
    checked_rewards,
    draw_statistics,
)
from hpo_mab.bandits._tensor_policies import TENSOR_POLICIES, TensorKnobs, TensorPasses


class TensorCounts:
    """Counts of every arm, updated in place by one pull of each bandit.

    Args:
        shape: (B, A).
        memory: How many of each bandit's last pulls count, int64 [B]; None for all.
        capacity: Greatest memory that a bandit may have.
        discount: Factor on all counts of a bandit at each of its pulls, float [B, 1]; None for
            none.
        device: Device of the tensors.
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
        """Count a pull of each bandit and remove the pull that leaves its window.

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
        """Write pulls to the ring; returns old arms, old rewards and where a pull was replaced."""
        positions = (self._pushed % memory)[:, None]
        old_arms = self._ring_arms.gather(1, positions)[:, 0]
        old_rewards = self._ring_rewards.gather(1, positions)[:, 0]
        full = valid & (self._pushed >= memory)
        # All rows are written, some with what they hold: choosing rows would wait for the device.
        kept_arms = torch.where(valid, arms.to(torch.int32), old_arms)
        kept_rewards = torch.where(valid, rewards.to(torch.uint8), old_rewards)
        self._ring_arms.scatter_(1, positions, kept_arms[:, None])
        self._ring_rewards.scatter_(1, positions, kept_rewards[:, None])
        self._pushed.add_(valid)
        return old_arms.long(), old_rewards.bool(), full

    def _count(self, arms: Tensor, rewards: Tensor, amount: Tensor) -> None:
        # Gather and scatter, not scatter_add, whose order of additions on CUDA is not fixed. Each
        # row has one arm, so no two writes have the same address.
        positions = arms[:, None]
        for counts, chosen in ((self.successes, rewards), (self.failures, ~rewards)):
            found = counts.gather(1, positions)
            counts.scatter_(1, positions, found + (amount * chosen)[:, None])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state."""
        return {
            "successes": self.successes,
            "failures": self.failures,
            "pushed": self._pushed,
            "window_arms": self._ring_arms,
            "window_rewards": self._ring_rewards,
        }


class DeviceEngine(BanditEngine):
    """Bandits in tensors on one device, of one network or of a stack of ``K``.

    `draw` and `learn` never make the host wait, and change state in place. So a CUDA graph can
    capture them. The bandits of a stack are rows below one another, ``K * B`` in all; `B` stands
    for that number in the shapes here. Networks of a stack share policy, reward, ``replacement``,
    the way of forgetting, and the prior where there is a ``correction``; all numbers may differ.

    Args:
        shares: Examples of each bandit, [B, A]; shorter shares end in -1.
        settings: Knobs of all bandits, until `begin` gives a network others.
        generator: Source of every draw; its device is the engine's.
        stack: Networks, ``K``; it divides the number of bandits.
        capacity: Greatest ``memory`` that `begin` may give; None: that of ``settings``.
    """

    def __init__(
        self,
        shares: NDArray[np.int32],
        settings: BanditSettings,
        generator: torch.Generator,
        *,
        stack: int = 1,
        capacity: int | None = None,
    ) -> None:
        device = generator.device
        self._generator = generator
        self._settings = settings
        self._stack = stack
        #: Examples of each network.
        self._examples = int((shares >= 0).sum()) // stack
        self._shares = torch.from_numpy(shares).to(device)
        held = self._shares >= 0
        self._sizes = held.sum(dim=1)
        self._mean_size = float(self._sizes.double().mean())
        bandits = len(shares) // stack
        window = settings.window(self._mean_size)
        self._knobs = TensorKnobs(
            settings, bandits=bandits, stack=stack, arms=self._mean_size, device=device
        )
        self._counts = TensorCounts(
            (shares.shape[0], shares.shape[1]),
            memory=None if window is None else self._knobs.memory,
            capacity=capacity or window or 0,
            discount=None if settings.discount is None else self._knobs.discount,
            device=device,
        )
        self._policy = TENSOR_POLICIES[settings.policy](settings, self._knobs, held, generator)
        self._uniform_passes = TensorPasses(self._sizes, generator)
        # Separate passes for arms without pulls. Those skip all other arms; with shared passes the
        # skipped arms would lose their uniform picks.
        self._unpulled_passes = TensorPasses(self._sizes, generator)
        self._rule = settings.rule
        self._average = MovingAverage(self._knobs.loss_decay)
        self._draws = torch.zeros(shares.shape, dtype=torch.int32, device=device)
        #: Pulls rewarded, and pulls judged, since `statistics`.
        self._tally = torch.zeros(stack, 2, dtype=torch.int64, device=device)
        # Whether uniform picks are drawn. With a `capacity`, `begin` may give a network a floor
        # later; the engine of a `MABSampler` keeps its settings.
        self._floors = capacity is not None or settings.uniform > 0

    def begin(
        self, slot: int, shares: NDArray[np.int32], settings: BanditSettings, *, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reset the bandits of one network of the stack: no pulls, new shares and knobs.

        The first arms are drawn here, uniformly, because `draw` would advance all networks.

        Args:
            slot: The network, in [0, K).
            shares: Examples of each of its bandits, of the shape and the sizes of the others'.
            settings: Its knobs.
            seed: Seed of the first arms.

        Returns:
            Examples int64 [B], importance weights float32 [B] and arms int64 [B] of the first
            batch, which waits for its losses.
        """
        rows = slice(slot * len(shares), (slot + 1) * len(shares))
        self._knobs.fill(slot, settings)
        self._shares[rows] = torch.from_numpy(shares).to(self._shares.device)
        self._policy.held[rows] = self._shares[rows] >= 0
        sizes = (shares >= 0).sum(axis=1)
        self._sizes[rows] = torch.from_numpy(sizes).to(self._sizes.device)
        for passes in (self._uniform_passes, self._unpulled_passes):
            passes.begin(rows, sizes)
        for tensor in (*self._counts.tensors().values(), self._draws):
            tensor[rows] = 0
        for tensor in (*self._average.tensors().values(), self._tally):
            tensor[slot] = 0
        # Not [seed, 0], the stream that a sampler splits its shares by.
        first = np.random.default_rng([seed, 1]).integers(sizes)
        arms = torch.from_numpy(first).to(self._shares.device)
        self._draws[rows].scatter_(1, arms[:, None], 1)
        # 1 / (A p) of a uniform pick, p = 1 / size.
        weights = (self._mean_size / torch.from_numpy(sizes).double()) ** -settings.correction
        examples = torch.from_numpy(shares[np.arange(len(shares)), first].astype(np.int64))
        return examples, weights.float(), arms

    @property
    def generator(self) -> torch.Generator:
        """The device's random generator."""
        return self._generator

    def draw(self, *, uniform: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Draw one arm of each bandit."""
        arms = self._uniform_passes.select() if uniform else self._select()
        positions = arms[:, None]
        self._draws.scatter_(1, positions, self._draws.gather(1, positions) + 1)
        indices = self._shares.gather(1, positions)[:, 0].long()
        if uniform or not self._settings.correction:
            return indices, None, arms
        propensity = self.propensities().gather(1, positions)[:, 0]
        weights = (self._mean_size * propensity) ** -self._knobs.correction
        return indices, weights.float(), arms

    def learn(self, arms: Any, losses: Tensor) -> None:
        """Reward the arms by their losses."""
        rows = losses.to(self._sizes.device).view(self._stack, -1)
        average, valid = self._average.before(rows)
        valid = valid.expand_as(rows)
        rewards = checked_rewards(self._rule(rows, average), rows) & valid
        self._counts.add(arms, rewards.flatten(), valid.flatten())
        self._tally += torch.stack((rewards, valid), dim=2).sum(dim=1)

    def counts(self) -> Tensor:
        """Successes and failures of each arm that count, float64 [B, A, 2]."""
        return torch.stack((self._counts.successes, self._counts.failures), dim=-1).double()

    def propensities(self) -> Tensor:
        """Probability of each arm in the next draw by the policy, float64 [B, A]."""
        policy = self._policy.propensities(self._counts.successes, self._counts.failures)
        share = self._knobs.uniform[:, None]
        return share * self._policy.held / self._sizes[:, None].double() + (1 - share) * policy

    def statistics(self) -> dict[str, float]:
        """Statistics of the first network; waits for the device."""
        (statistics,) = self.statistics_of([0])
        return statistics

    def statistics_of(self, slots: Sequence[int]) -> list[dict[str, float]]:
        """Statistics of some networks of the stack, in order, read together from the device."""
        rows = torch.tensor(slots, device=self._tally.device)
        draws = self._draws.view(self._stack, -1)[rows]
        found = draw_statistics(draws, self._tally[rows], examples=self._examples)
        self._tally.index_fill_(0, rows, 0)
        return found

    def state(self) -> dict[str, Any]:
        """State as tensors."""
        state = {name: tensor.clone() for name, tensor in self._tensors().items()}
        return {**state, "rng": self._generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self._generator.set_state(state["rng"].cpu())

    def rows(self) -> dict[str, Tensor]:
        """The state's tensors, not copied, with a leading dimension of the stack's networks."""
        return {
            name: tensor.view(self._stack, len(tensor) // self._stack, *tensor.shape[1:])
            for name, tensor in self._tensors().items()
        }

    def _select(self) -> Tensor:
        """One arm of each bandit by the policy, or a uniform one, int64 [B]."""
        settings, counts = self._settings, self._counts
        arms = self._policy.keys(counts.successes, counts.failures).argmax(dim=1)
        if settings.shuffles:
            unknown = (counts.successes + counts.failures == 0) & self._policy.held
            fresh = unknown.gather(1, arms[:, None])[:, 0]
            arms = torch.where(fresh, self._unpulled_passes.advance_to(fresh, unknown), arms)
        if not self._floors:
            return arms
        uniforms = torch.rand(len(arms), device=arms.device, generator=self._generator)
        chosen = uniforms < self._knobs.uniform
        anywhere = (
            self._uniform_passes.advance(chosen)
            if settings.shuffles
            else self._uniform_passes.below(self._sizes)
        )
        return torch.where(chosen, anywhere, arms)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **self._counts.tensors(),
            **self._uniform_passes.tensors(),
            **{f"order_{name}": tensor for name, tensor in self._unpulled_passes.tensors().items()},
            **self._average.tensors(),
            "draws": self._draws,
            "tally": self._tally,
        }
