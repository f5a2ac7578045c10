"""The knobs of the bandits, checked once for both engines."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hpo_mab._errors import ArgumentError, UnknownNameError

#: ``memory="auto"`` counts the last pulls of a bandit, as many as this share of its arms.
AUTO_MEMORY_SHARE = 0.25

POLICIES = ("epsilon_greedy", "softmax", "thompson", "ucb1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BanditSettings:
    """Knobs of the bandits; `hpo_mab.samplers.MABSampler` documents each.

    Raises:
        ArgumentError: A knob outside its bound, or two that exclude each other.
    """

    policy: str = "thompson"
    prior: tuple[float, float] = (1.0, 1.0)
    loss_decay: float = 0.99
    memory: int | Literal["auto"] | None = "auto"
    discount: float | None = None
    floor: float = 0.0
    correction: float = 0.0
    replacement: bool | Literal["auto"] = "auto"
    active: float = 1.0
    epsilon: float = 0.1
    temperature: float = 0.1
    exploration: float = 1.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UnknownNameError("policy", self.policy, POLICIES)
        if len(self.prior) != 2 or not all(0.1 <= value <= 1000 for value in self.prior):
            raise ArgumentError(f"prior must be two numbers in [0.1, 1000], got {self.prior}.")
        for name in ("floor", "correction", "active", "epsilon"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ArgumentError(f"{name} must be in [0, 1], got {value}.")
        if not 0 <= self.loss_decay < 1:
            raise ArgumentError(f"loss_decay must be in [0, 1), got {self.loss_decay}.")
        if not 0 < self.temperature < float("inf"):
            raise ArgumentError(f"temperature must be positive, got {self.temperature}.")
        if not 0 <= self.exploration < float("inf"):
            raise ArgumentError(f"exploration must be at least 0, got {self.exploration}.")
        self._check_replacement()
        self._check_forgetting()

    @property
    def uniform(self) -> float:
        """Probability of a uniform pick in place of the policy's, floor and epsilon together."""
        epsilon = self.epsilon if self.policy == "epsilon_greedy" else 0.0
        return 1 - (1 - self.floor) * (1 - epsilon)

    @property
    def shuffles(self) -> bool:
        """Whether arms drawn regardless of rewards come from shuffled passes."""
        return not self.correction if self.replacement == "auto" else not self.replacement

    def window(self, arms: float) -> int | None:
        """How many of a bandit's last pulls count, for a mean number of arms; None for all."""
        if self.memory != "auto":
            return self.memory
        return None if self.discount is not None else max(1, round(AUTO_MEMORY_SHARE * arms))

    def _check_replacement(self) -> None:
        if self.replacement not in (True, False, "auto"):
            raise ArgumentError(
                f"replacement must be True, False or 'auto', got {self.replacement!r}."
            )
        if self.correction and self.replacement is False:
            raise ArgumentError(
                "correction needs draws with replacement, whose probabilities are exact: got "
                f"correction={self.correction} and replacement=False; leave replacement out."
            )

    def _check_forgetting(self) -> None:
        memory, discount = self.memory, self.discount
        if not (memory is None or memory == "auto" or (type(memory) is int and memory >= 1)):
            raise ArgumentError(
                f"memory must be at least 1 pull, 'auto', or None for all, got {memory!r}."
            )
        if discount is None:
            return
        if not 0 < discount < 1:
            raise ArgumentError(f"discount must be in (0, 1), or None for none, got {discount}.")
        if isinstance(memory, int):
            raise ArgumentError(
                f"memory and discount exclude each other, got memory={memory} and "
                f"discount={discount}; leave one out."
            )
        if self.correction and self.policy == "thompson":
            raise ArgumentError(
                "correction with policy='thompson' needs whole counts, which discount does not "
                f"keep: got correction={self.correction} and discount={discount}; use memory."
            )
