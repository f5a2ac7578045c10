"""The engine of CUDA devices, and of counts that decay: every arm drawn, all in tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_mab.bandits._engine import BanditEngine, Figures
from hpo_mab.bandits._settings import BanditSettings
from hpo_mab.bandits._tensor_binarizer import TensorLossBinarizer
from hpo_mab.bandits._tensor_counts import TensorCounts
from hpo_mab.bandits._tensor_passes import TensorPasses
from hpo_mab.bandits._tensor_policies import TENSOR_POLICIES


class DeviceEngine(BanditEngine):
    """Bandits in tensors on one device.

    `draw` and `learn` never wait for the host, and change state in place: they can be captured in
    a CUDA graph.

    Args:
        shares: Examples of each bandit, [B, A]; shorter shares end in -1.
        settings: Knobs.
        generator: Source of every draw; its device is the engine's.
    """

    def __init__(
        self, shares: NDArray[np.int32], settings: BanditSettings, generator: torch.Generator
    ) -> None:
        device = generator.device
        self._generator = generator
        self._settings = settings
        self._shares = torch.from_numpy(shares).to(device)
        held = self._shares >= 0
        self._sizes = held.sum(dim=1)
        self._mean_size = float(self._sizes.double().mean())
        self._counts = TensorCounts(
            (shares.shape[0], shares.shape[1]),
            memory=settings.window(self._mean_size),
            discount=settings.discount,
            device=device,
        )
        self._policy = TENSOR_POLICIES[settings.policy](settings, held, generator)
        self._passes = TensorPasses(self._sizes, generator)
        # Of their own: walked on by arms without pulls only, they leave every arm the same chance
        # of a uniform pick.
        self._order = TensorPasses(self._sizes, generator)
        self._binarizer = TensorLossBinarizer(settings.loss_decay, device)
        self._draws = torch.zeros(shares.shape, dtype=torch.int32, device=device)
        #: Pulls rewarded, and pulls judged, since `figures`.
        self._tally = torch.zeros(2, dtype=torch.int64, device=device)

    @property
    def generator(self) -> torch.Generator:
        """The device's random generator."""
        return self._generator

    @property
    def shares(self) -> Tensor:
        """Examples of each bandit, int32 [B, A]."""
        return self._shares

    def draw(self, *, uniform: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Draw one arm of each bandit."""
        arms = self._passes.select() if uniform else self._select()
        places = arms[:, None]
        self._draws.scatter_(1, places, self._draws.gather(1, places) + 1)
        indices = self._shares.gather(1, places)[:, 0].long()
        if uniform or not self._settings.correction:
            return indices, None, arms
        propensity = self.propensities().gather(1, places)[:, 0]
        weights = (self._mean_size * propensity) ** -self._settings.correction
        return indices, weights.float(), arms

    def learn(self, arms: Any, losses: Tensor) -> None:
        """Reward the arms by their losses."""
        rewards, valid = self._binarizer.rewards(losses.to(self._sizes.device))
        self._counts.add(arms, rewards, valid)
        self._tally += torch.stack((rewards.sum(), valid.sum()))

    def counts(self) -> Tensor:
        """Successes and failures of each arm that count, float64 [B, A, 2]."""
        return torch.stack((self._counts.successes, self._counts.failures), dim=-1).double()

    def propensities(self) -> Tensor:
        """Probability of each arm in the next draw by the policy, float64 [B, A]."""
        policy = self._policy.propensities(self._counts.successes, self._counts.failures)
        share = self._settings.uniform
        return share * self._policy.held / self._sizes[:, None].double() + (1 - share) * policy

    def figures(self) -> Figures:
        """Counts since the last call; waits for the device."""
        rewarded, judged = self._tally.tolist()
        self._tally.zero_()
        draws = self._draws.flatten()
        top = max(1, round(int(self._sizes.sum()) / 10))
        return Figures(
            rewarded, judged, int(draws.sum()), int(draws.topk(top, sorted=False).values.sum())
        )

    def state(self) -> dict[str, Any]:
        """State as tensors."""
        state = {name: tensor.clone() for name, tensor in self._tensors().items()}
        return {**state, "rng": self._generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state made by `state`."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self._generator.set_state(state["rng"].cpu())

    def _select(self) -> Tensor:
        settings, counts = self._settings, self._counts
        arms = self._policy.keys(counts.successes, counts.failures).argmax(dim=1)
        if settings.shuffles:
            unknown = (counts.successes + counts.failures == 0) & self._policy.held
            fresh = unknown.gather(1, arms[:, None])[:, 0]
            arms = torch.where(fresh, self._order.advance_to(fresh, unknown), arms)
        if not settings.uniform:
            return arms
        uniforms = torch.rand(len(arms), device=arms.device, generator=self._generator)
        chosen = uniforms < settings.uniform
        anywhere = (
            self._passes.advance(chosen) if settings.shuffles else self._passes.below(self._sizes)
        )
        return torch.where(chosen, anywhere, arms)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **self._counts.tensors(),
            **self._passes.tensors(),
            **{f"order_{name}": tensor for name, tensor in self._order.tensors().items()},
            **self._binarizer.tensors(),
            "draws": self._draws,
            "tally": self._tally,
        }
