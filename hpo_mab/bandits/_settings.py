"""Common parts of both engines of bandits: settings, rewards, shares of the data, interface."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_mab._errors import ArgumentError, UnknownNameError, plain, require
from hpo_mab._registry import Named, Registry

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Numbers of arms, by bandit and state.
Counts = NDArray[np.int32]
#: Columns of states.
Columns = NDArray[np.int16]
#: Rewards, 0 or 1.
Rewards = NDArray[np.int8]

#: ``memory="auto"`` counts the last pulls of a bandit, as many as this share of its arms.
AUTO_MEMORY_SHARE = 0.25

POLICIES = ("epsilon_greedy", "softmax", "thompson")


def above_average(losses: Any, average: Any) -> Any:
    """Losses that reach the moving average of the training loss."""
    return losses >= average


#: Rules of reward. A rule is called with losses [..., B] and the moving average of the mean loss
#: of the batches before, [..., 1]. It returns which losses are rewarded, as booleans [..., B].
#: `HostEngine` calls it with NumPy arrays [B] and [1], `DeviceEngine` with tensors [K, B] and
#: [K, 1] of a stack. It must neither wait for the device nor change its arguments. `DeviceEngine`
#: may call it with losses that are not finite, and ignores the rewards of that network's batch.
REWARDS = Registry(
    "reward",
    {
        "above_average": above_average,
    },
    given=("losses", "average"),
)


def checked_rewards(found: Any, losses: Any) -> Any:
    """Rewards that a rule has returned for losses.

    Raises:
        ArgumentError: They are not one boolean a loss.
    """
    kind = str(getattr(found, "dtype", type(found).__name__)).removeprefix("torch.")
    shape = getattr(found, "shape", ())
    if kind != "bool" or shape != losses.shape:
        raise ArgumentError(
            f"reward must return a boolean for each loss, {list(losses.shape)}, "
            f"got {list(shape)} of {kind}."
        )
    return found


class LossBinarizer:
    """Rewards losses by a rule, given the moving average ``m`` of the training loss.

    ``m`` is the bias-corrected exponential moving average of the mean loss of the batches *before*
    the one that is judged; the first batch is compared with its own mean. A batch with a loss that
    is not finite has no rewards and does not change ``m``.

    Args:
        decay: Decay of the moving average a batch, in [0, 1).
        rule: Which losses are rewarded, see `hpo_mab.bandits._settings.REWARDS`.
    """

    def __init__(self, decay: float, rule: Callable[[Any, Any], Any]) -> None:
        self.decay = decay
        self._rule = rule
        # Bias-corrected: m is the sum of d^k mean_k over the sum of d^k, k batches back.
        self.total = 0.0
        self.weight = 0.0

    def rewards(self, losses: NDArray[np.float32]) -> Rewards | None:
        """Reward a batch, then add its mean to the average.

        Args:
            losses: Loss of each example, [B].

        Returns:
            Rewards 0 or 1, [B]; None where a loss is not finite.
        """
        # The mean is finite exactly if every loss is. For so few numbers Python's sum is faster
        # than numpy's mean, and it does not warn of infinities.
        mean = sum(losses.tolist()) / len(losses)
        if not math.isfinite(mean):
            return None
        threshold = self.total / self.weight if self.weight else mean
        self.total = self.decay * self.total + (1 - self.decay) * mean
        self.weight = self.decay * self.weight + (1 - self.decay)
        average = np.array([threshold], dtype=losses.dtype)
        return np.asarray(checked_rewards(self._rule(losses, average), losses)).view(np.int8)


class MovingAverage:
    """The moving average of `LossBinarizer` on a device, one for each network of a stack.

    Args:
        decay: Decay of each network's average a batch, in [0, 1), float [K]. The averages have its
            type and device.
    """

    def __init__(self, decay: Tensor) -> None:
        self._decay = decay
        self._total = torch.zeros_like(decay)
        self._weight = torch.zeros_like(decay)

    def before(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch of each network to its average, if all its losses are finite.

        Args:
            losses: Float32 [K, B].

        Returns:
            The averages before the batch (for the first its mean), in the type of the losses, and
            whether the batch was added, bool; [K, 1] each.
        """
        valid = losses.isfinite().all(dim=1)
        mean = losses.mean(dim=1, dtype=self._decay.dtype)
        before = torch.where(self._weight > 0, self._total / self._weight, mean)
        for average, value in ((self._total, mean), (self._weight, 1.0)):
            moved = self._decay * average + (1 - self._decay) * value
            average.copy_(torch.where(valid, moved, average))
        # In the losses' precision, as on the host: otherwise a loss equal to the rounded average
        # could lie below the exact one.
        return before[:, None].to(losses.dtype), valid[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state, [K] each."""
        return {"loss_total": self._total, "loss_weight": self._weight}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BanditSettings:
    """Knobs of the bandits; `hpo_mab.samplers.MABSampler` documents each.

    Raises:
        ArgumentError: A knob outside its bound, or two that exclude each other.
        UnknownNameError: No such policy or rule of reward.
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
    reward: Named = "above_average"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        _ = self.rule
        if self.policy not in POLICIES:
            raise UnknownNameError("policy", self.policy, POLICIES)
        pair = hasattr(self.prior, "__len__") and len(self.prior) == 2
        if not (pair and all(0.1 <= value <= 1000 for value in self.prior)):
            raise ArgumentError(f"prior must be two numbers in [0.1, 1000], got {self.prior}.")
        for name in ("floor", "correction", "active", "epsilon"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, "in [0, 1]", value)
        require(0 <= self.loss_decay < 1, "loss_decay", "in [0, 1)", self.loss_decay)
        require(0 < self.temperature < math.inf, "temperature", "positive", self.temperature)
        self._check_replacement()
        self._check_forgetting()

    @property
    def rule(self) -> Callable[[Any, Any], Any]:
        """The rule of reward, see `REWARDS`."""
        # The default is the function itself: a trial runs through few modules.
        return above_average if self.reward == "above_average" else REWARDS.load(self.reward)

    @property
    def uniform(self) -> float:
        """Probability of a uniform pick in place of the policy's, floor and epsilon together."""
        epsilon = self.epsilon if self.policy == "epsilon_greedy" else 0.0
        return 1 - (1 - self.floor) * (1 - epsilon)

    @property
    def shuffles(self) -> bool:
        """Whether arms that are drawn regardless of rewards are drawn in shuffled passes."""
        return not self.correction if self.replacement == "auto" else not self.replacement

    @property
    def structure(self) -> tuple[Any, ...]:
        """The settings that all bandits of a stack must share: they select its step's kernels."""
        forgets = "window" if self.discount is None else "discount"
        return (
            self.policy,
            self.shuffles,
            forgets if self.memory is not None or self.discount is not None else "nothing",
            self.prior if self.correction else None,
            self.rule,
        )

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
        counted = type(memory) is int and 1 <= memory < 2**31
        if not (memory is None or memory == "auto" or counted):
            raise ArgumentError(
                f"memory must be in [1, 2**31) pulls, 'auto', or None for all, got {memory!r}."
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


def stratified_shares(labels: Ints, bandits: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Split examples at random into shares of the same class mix; every example is an arm.

    A random order is sorted by class with a stable sort and dealt to the bandits round robin. The
    sizes of the shares, and each class's counts in them, then differ by at most 1.

    Args:
        labels: Class of each example, [N].
        bandits: Number of shares, ``B``, in [1, N].
        rng: Source of the shuffles.

    Returns:
        Examples of each bandit, [B, ceil(N / B)]; shorter shares end in one -1.
    """
    order = rng.permutation(len(labels))
    # NumPy's stable sort of up to 16 bits is a radix sort.
    classes = labels - labels.min()
    classes = classes.astype(np.min_scalar_type(classes.max()))
    order = order[np.argsort(classes[order], kind="stable")]
    arms = -(-len(labels) // bandits)
    dealt = np.full(arms * bandits, -1, dtype=np.int32)
    dealt[: len(order)] = order
    # Shuffled: otherwise the class numbers would decide which bandits get one example more.
    return np.ascontiguousarray(dealt.reshape(arms, bandits).T[rng.permutation(bandits)])


def coprime_strides(size: int) -> Ints:
    """Strides in [1, size] coprime to ``size``: ``stride * i mod size`` takes each value once."""
    strides = np.arange(1, size + 1)
    coprime: Ints = strides[np.gcd(strides, size) == 1]
    return coprime


def draw_statistics(draws: Tensor, rewards: Tensor, *, examples: int) -> list[dict[str, float]]:
    """``reward_rate`` and ``concentration`` of each network, left out where they have no value.

    Waits for the device once, however many networks there are.

    Args:
        draws: Draws of each example so far, integers [K, n], 0 for padding.
        rewards: Losses rewarded and losses judged, whole numbers [K, 2].
        examples: Number of examples of a network.
    """
    # A tenth of the examples, at least one.
    most = draws.topk(-(-examples // 10), dim=1, sorted=False).values
    sums = torch.stack([draws.sum(dim=1), most.sum(dim=1)], dim=1)
    found = []
    for rewarded, judged, total, highest in torch.cat([rewards.long(), sums], dim=1).tolist():
        statistics = {"reward_rate": rewarded / judged} if judged else {}
        if total:
            statistics["concentration"] = highest / total
        found.append(statistics)
    return found


class BanditEngine(abc.ABC):
    """``B`` bandits over shares of a data set, which draw batches and learn from losses."""

    @property
    def generator(self) -> torch.Generator | None:
        """The device's random generator; None where there is none."""
        return None

    @abc.abstractmethod
    def draw(self, *, uniform: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Draw one arm of each bandit.

        Args:
            uniform: Draw from uniform passes instead of by the policy.

        Returns:
            Examples int64 [B], importance weights float32 [B] (None for ones), and the arms to
            pass to `learn`.
        """

    @abc.abstractmethod
    def learn(self, arms: Any, losses: Tensor) -> None:
        """Learn from the losses, float32 [B], of arms of any earlier `draw`."""

    @abc.abstractmethod
    def counts(self) -> Tensor:
        """Successes and failures of each arm that count, float64 [B, A, 2]; 0 for padding."""

    @abc.abstractmethod
    def propensities(self) -> Tensor:
        """Probability of each arm in the next draw by the policy, float64 [B, A]; 0 for padding."""

    @abc.abstractmethod
    def statistics(self) -> dict[str, float]:
        """``reward_rate`` since the last call, and ``concentration``; may wait for the device."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """State as tensors and plain values."""

    @abc.abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned, of an engine with the same arguments."""
