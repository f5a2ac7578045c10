"""What a sampler asks of its bandits, wherever they live."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Counts for learning curves.

    Attributes:
        rewarded: Pulls rewarded since the last call.
        judged: Pulls with a finite loss since the last call.
        drawn: Draws so far.
        drawn_most: Draws so far that fell on the most-drawn tenth of the examples.
    """

    rewarded: int
    judged: int
    drawn: int
    drawn_most: int

    def shares(self) -> dict[str, float]:
        """``reward_rate`` and ``concentration``, each left out where it has no value."""
        shares = {}
        if self.judged:
            shares["reward_rate"] = self.rewarded / self.judged
        if self.drawn:
            shares["concentration"] = self.drawn_most / self.drawn
        return shares


class BanditEngine(abc.ABC):
    """``B`` bandits over shares of a data set, which draw batches and learn from losses."""

    @property
    def generator(self) -> torch.Generator | None:
        """The device's random generator; None where there is none."""
        return None

    @property
    @abc.abstractmethod
    def shares(self) -> Tensor:
        """Examples of each bandit, int32 [B, A]; shorter shares end in -1."""

    @abc.abstractmethod
    def draw(self, *, uniform: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Draw one arm of each bandit.

        Args:
            uniform: Pass over the arms uniformly, whatever was learned.

        Returns:
            Examples int64 [B], importance weights float32 [B] (None for ones), and the arms to
            hand back to `learn`.
        """

    @abc.abstractmethod
    def learn(self, arms: Any, losses: Tensor) -> None:
        """Learn from the losses, float32 [B], of arms that `draw` returned, however long ago."""

    @abc.abstractmethod
    def counts(self) -> Tensor:
        """Successes and failures of each arm that count, float64 [B, A, 2]; 0 for padding."""

    @abc.abstractmethod
    def propensities(self) -> Tensor:
        """Probability of each arm in the next draw by the policy, float64 [B, A]; 0 for padding."""

    @abc.abstractmethod
    def figures(self) -> Figures:
        """Counts since the last call; may wait for the device."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """State as tensors and plain values."""

    @abc.abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Take a state made by `state` of an engine made alike."""
