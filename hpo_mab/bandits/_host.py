"""The engine of the CPU: grouped bandits in numpy, tensors only at the edge."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_mab.bandits._arrays import Floats, Ints, Rewards
from hpo_mab.bandits._binarizer import LossBinarizer
from hpo_mab.bandits._engine import BanditEngine, Figures
from hpo_mab.bandits._grouped import GroupedBandits
from hpo_mab.bandits._passes import UniformPasses
from hpo_mab.bandits._policies import (
    GreedyPolicy,
    GroupedPolicy,
    SoftmaxPolicy,
    UCBPolicy,
)
from hpo_mab.bandits._settings import BanditSettings
from hpo_mab.bandits._thompson import ThompsonPolicy

#: Most pulls of an arm that is counted by state where a bandit remembers more pulls than it has
#: arms. ``benchmarks/long_memory.py`` has what other numbers cost.
MOST_PULLS = 12

#: Steps whose draws and rewards are counted at once.
_COUNTED_AT_ONCE = 32


class HostEngine(BanditEngine):
    """Bandits on the CPU, exact in distribution at a cost independent of the number of arms.

    Args:
        shares: Examples of each bandit, [B, A]; shorter shares end in -1.
        settings: Knobs; ``discount`` must be None.
        rng: Source of every draw.
    """

    def __init__(
        self, shares: NDArray[np.int32], settings: BanditSettings, rng: np.random.Generator
    ) -> None:
        self._shares = shares
        self._settings = settings
        self._rng = rng
        self._starts = np.arange(len(shares)) * shares.shape[1]
        self._sizes = (shares >= 0).sum(axis=1)
        self._mean_size = float(self._sizes.mean())
        self._passes = UniformPasses(self._sizes, rng)
        memory = settings.window(self._mean_size)
        self._bandits = GroupedBandits(
            self._sizes,
            policy=_policy(settings, shares.shape[1]),
            memory=memory,
            rng=rng,
            passes=UniformPasses(self._sizes, rng) if settings.shuffles else None,
            limit=MOST_PULLS if memory is None or memory > self._mean_size else None,
        )
        self._binarizer = LossBinarizer(settings.loss_decay)
        self._draws = np.zeros(shares.shape, dtype=np.uint16)
        self._uncounted_draws: list[Ints] = []
        self._uncounted_rewards: list[Rewards] = []
        self._rewarded = 0
        self._judged = 0

    @property
    def shares(self) -> Tensor:
        """Examples of each bandit, int32 [B, A]."""
        return torch.from_numpy(self._shares)

    def draw(self, *, uniform: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Draw one arm of each bandit."""
        arms = self._passes.select() if uniform else self._select()
        places = self._starts + arms
        self._uncounted_draws.append(places)
        if len(self._uncounted_draws) == _COUNTED_AT_ONCE:
            self._count()
        indices = torch.from_numpy(self._shares.ravel()[places].astype(np.int64))
        if uniform or not self._settings.correction:
            return indices, None, arms
        return indices, torch.from_numpy(self._weights(arms)), arms

    def learn(self, arms: Any, losses: Tensor) -> None:
        """Reward the arms by their losses."""
        rewards, valid = self._binarizer.rewards(losses.cpu().numpy())
        self._bandits.learn(arms, rewards, valid)
        self._uncounted_rewards.append(rewards)
        self._judged += len(rewards) if valid is None else int(np.count_nonzero(valid))

    def counts(self) -> Tensor:
        """Successes and failures of each arm that count, float64 [B, A, 2]."""
        return torch.from_numpy(self._bandits.counts().astype(np.float64))

    def propensities(self) -> Tensor:
        """Probability of each arm in the next draw by the policy, float64 [B, A]."""
        uniform = (self._shares >= 0) / self._sizes[:, None]
        mixed = self._mixed(self._bandits.propensities(), uniform)
        return torch.from_numpy(mixed)

    def figures(self) -> Figures:
        """Counts since the last call."""
        self._count()
        rewarded, judged = self._rewarded, self._judged
        self._rewarded = self._judged = 0
        draws = self._draws.ravel()
        top = max(1, round(int(self._sizes.sum()) / 10))
        # Padding is never drawn: counted along, it changes no sum.
        most = np.partition(draws, len(draws) - top)[-top:]
        return Figures(rewarded, judged, int(draws.sum()), int(most.sum()))

    def state(self) -> dict[str, Any]:
        """State as tensors and plain values."""
        self._count()
        arrays = {**self._bandits.state(), **self._passes.state(), "draws": self._draws}
        return {
            **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
            "loss_total": self._binarizer.total,
            "loss_weight": self._binarizer.weight,
            "rewarded": self._rewarded,
            "judged": self._judged,
            # JSON, because its integers are wider than what weights-only loading takes.
            "rng": json.dumps(self._rng.bit_generator.state),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state made by `state`."""
        arrays = {key: value.numpy() for key, value in state.items() if torch.is_tensor(value)}
        self._bandits.load_state(arrays)
        self._passes.load_state(arrays)
        self._draws[:] = arrays["draws"]
        self._uncounted_draws.clear()
        self._uncounted_rewards.clear()
        self._binarizer.total = state["loss_total"]
        self._binarizer.weight = state["loss_weight"]
        self._rewarded = state["rewarded"]
        self._judged = state["judged"]
        self._rng.bit_generator.state = json.loads(state["rng"])

    def _count(self) -> None:
        self._rewarded += sum(int(np.count_nonzero(one)) for one in self._uncounted_rewards)
        self._uncounted_rewards.clear()
        if not self._uncounted_draws:
            return
        places, times = np.unique(np.concatenate(self._uncounted_draws), return_counts=True)
        self._uncounted_draws.clear()
        draws = self._draws.ravel()
        # Saturates: a count that wrapped around would turn the most-drawn into the least-drawn.
        draws[places] = np.minimum(draws[places] + times, np.iinfo(draws.dtype).max)

    def _select(self) -> Ints:
        arms = self._bandits.select()
        if self._settings.uniform:
            chosen = np.flatnonzero(self._rng.random(len(arms)) < self._settings.uniform)
            if self._settings.shuffles:
                arms[chosen] = self._passes.advance(chosen)
            else:
                arms[chosen] = self._rng.integers(self._sizes[chosen])
        return arms

    def _weights(self, arms: Ints) -> NDArray[np.float32]:
        """``(1 / (A p))^correction`` with the mean number of arms ``A = N / B``, [B]."""
        propensity = self._mixed(self._bandits.propensities_of(arms), 1 / self._sizes)
        weights = (self._mean_size * propensity) ** -self._settings.correction
        return weights.astype(np.float32)

    def _mixed(self, policy: Floats, uniform: Floats) -> Floats:
        share = self._settings.uniform
        return share * uniform + (1 - share) * policy


def _policy(settings: BanditSettings, arms: int) -> GroupedPolicy:
    match settings.policy:
        case "thompson":
            return ThompsonPolicy(settings.prior, arms)
        case "softmax":
            return SoftmaxPolicy(settings.prior, settings.temperature)
        case "ucb1":
            return UCBPolicy(settings.prior, settings.exploration)
        case _:
            return GreedyPolicy(settings.prior)
