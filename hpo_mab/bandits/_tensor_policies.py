"""Selection policies on counts in tensors; the host never waits for the device.

Random keys, of which the greatest is selected, propensities and uniform passes.
"""

from __future__ import annotations

import abc
import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits._settings import BanditSettings, coprime_strides
from hpo_mab.bandits._thompson import LogitGrid


class TensorPasses:
    """`UniformPasses` on a device; see there.

    Args:
        sizes: Arms of each bandit, int64 [B]; changed in place when bandits begin again.
        generator: Source of offsets and strides, of the same device.
    """

    def __init__(self, sizes: Tensor, generator: torch.Generator) -> None:
        self._sizes = sizes
        self._generator = generator
        kinds, kind = np.unique(sizes.cpu().numpy(), return_inverse=True)
        self._kinds = kinds
        strides = [coprime_strides(size) for size in kinds.tolist()]
        self._counts = np.array(list(map(len, strides)))
        table = np.zeros((2, len(strides), max(map(len, strides))), dtype=np.int64)
        for place, (size, row) in enumerate(zip(kinds.tolist(), strides, strict=True)):
            table[0, place, : len(row)] = row
            table[1, place, : len(row)] = [pow(stride, -1, size) for stride in row.tolist()]
        self._kind = torch.from_numpy(kind).to(sizes.device)
        self._strides, self._inverses = torch.from_numpy(table).to(sizes.device)
        self._choices = torch.from_numpy(self._counts[kind]).to(sizes.device)
        self._arms = torch.arange(int(kinds.max()), device=sizes.device)
        self._left = torch.zeros_like(sizes)
        self._place = torch.zeros_like(sizes)
        self._stride = torch.zeros_like(sizes)
        self._inverse = torch.zeros_like(sizes)

    def begin(self, rows: slice, sizes: NDArray[np.int64]) -> None:
        """Begin the passes of some bandits again, whose sizes are among those of the start."""
        kind = np.searchsorted(self._kinds, sizes)
        self._kind[rows] = torch.from_numpy(kind).to(self._kind.device)
        self._choices[rows] = torch.from_numpy(self._counts[kind]).to(self._kind.device)
        for tensor in self.tensors().values():
            tensor[rows] = 0

    def select(self) -> Tensor:
        """The next arm of each bandit, int64 [B]."""
        everyone = torch.ones_like(self._sizes, dtype=torch.bool)
        return self.advance(everyone)

    def advance(self, chosen: Tensor) -> Tensor:
        """The next arm of some bandits, int64 [B]; meaningless for those not chosen, bool [B]."""
        over = self._left == 0
        choice, begin = self.below(self._choices), self.below(self._sizes)
        arms = torch.where(over, begin, self._place)
        left = torch.where(over, self._sizes, self._left) - 1
        self._advance_chosen(chosen, arms, left, self._fresh(over, choice))
        return arms

    def advance_to(self, chosen: Tensor, allowed: Tensor) -> Tensor:
        """The next allowed arm of some bandits; others are skipped.

        The inverse of the stride gives each arm's place in the rest of the pass, or else in the
        next. The first allowed place is the arm that `UniformPasses` finds by a loop; a loop would
        need the host.

        Args:
            chosen: The bandits that draw, each with at least one allowed arm, bool [B].
            allowed: Arms that may be drawn, and no padding, bool [B, A].

        Returns:
            int64 [B]; meaningless for bandits not chosen.
        """
        choice, begin = self.below(self._choices), self.below(self._sizes)
        size, left = self._sizes[:, None], self._left[:, None]
        # An arm comes at the step i with place + stride * i = arm (mod size).
        here = (self._arms - self._place[:, None]) * self._inverse[:, None] % size
        inverse = self._inverses[self._kind, choice][:, None]
        later = (self._arms - begin[:, None]) * inverse % size + size
        order = torch.where(here < left, here, later)
        order = torch.where(allowed, order, 2 * size)
        first, arms = order.min(dim=1)
        over = first >= self._sizes
        passed = torch.where(over, first - self._sizes, first) + 1
        left = torch.where(over, self._sizes, self._left) - passed
        self._advance_chosen(chosen, arms, left, self._fresh(over, choice))
        return arms

    def _fresh(self, over: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Stride and its inverse of each bandit, new where its pass is over, [B] each."""
        return (
            torch.where(over, self._strides[self._kind, choice], self._stride),
            torch.where(over, self._inverses[self._kind, choice], self._inverse),
        )

    def _advance_chosen(
        self, chosen: Tensor, arms: Tensor, left: Tensor, order: tuple[Tensor, Tensor]
    ) -> None:
        """Store the place after ``arms`` and the rest of the pass, of the chosen bandits only."""
        stride, inverse = order
        place = (arms + stride) % self._sizes
        self._place.copy_(torch.where(chosen, place, self._place))
        self._left.copy_(torch.where(chosen, left, self._left))
        self._stride.copy_(torch.where(chosen, stride, self._stride))
        self._inverse.copy_(torch.where(chosen, inverse, self._inverse))

    def below(self, bounds: Tensor) -> Tensor:
        """Uniform integers in [0, bound) for each bound, int64."""
        uniforms = torch.rand(
            bounds.shape, dtype=torch.float64, device=bounds.device, generator=self._generator
        )
        return (uniforms * bounds).long()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state."""
        return {
            "left": self._left,
            "place": self._place,
            "stride": self._stride,
            "inverse": self._inverse,
        }


#: Most pulls of a state in the table; one of more pulls is replaced by that of the nearest success
#: rate. The table's size grows with the square of this number.
MAX_PULLS = 48


class ThompsonTable:
    """Distribution functions of every state of at most `MAX_PULLS` pulls, over a grid.

    ``p_g = integral of (f_g / F_g)(x) prod_h F_h(x)^(n_h) dx``, as two matrix products.

    Args:
        prior: Beta parameters of an arm without pulls.
        arms: Arms of the largest bandit.
        device: Device of the table.
    """

    def __init__(self, prior: tuple[float, float], arms: int, device: torch.device) -> None:
        grid = LogitGrid(prior, arms)
        columns = [
            grid.columns(prior[0] + successes, prior[1] + pulls - successes)
            for pulls in range(MAX_PULLS + 1)
            for successes in range(pulls + 1)
        ]
        # Double precision: counts times logarithms must not be rounded to TF32.
        log_cdf, hazard = (np.stack(part).astype(np.float64) for part in zip(*columns, strict=True))
        self._log_cdf = torch.from_numpy(log_cdf).to(device)
        self._hazard = torch.from_numpy(hazard).to(device)

    def propensities(self, successes: Tensor, failures: Tensor, held: Tensor) -> Tensor:
        """Probability of each arm, float64 [B, A].

        Args:
            successes: Whole numbers, [B, A].
            failures: Whole numbers, [B, A].
            held: Where there is an arm and no padding, bool [B, A].
        """
        states = self._states(successes, failures)
        counts = self._log_cdf.new_zeros(len(states), len(self._log_cdf))
        counts.scatter_add_(1, states, held.double())
        best = (counts @ self._log_cdf).exp()
        table = best @ self._hazard.T
        table = table / (counts * table).sum(dim=1, keepdim=True)
        return table.gather(1, states) * held

    def _states(self, successes: Tensor, failures: Tensor) -> Tensor:
        pulls = successes + failures
        scale = (MAX_PULLS / pulls.clamp(min=1)).clamp(max=1)
        capped = pulls.clamp(max=MAX_PULLS).long()
        # States are in order of pulls p, then successes: p (p + 1) / 2 states have fewer pulls.
        return capped * (capped + 1) // 2 + (successes * scale).round().long()


#: Values that differ by less are equal: single precision rounds them.
TIE = 1e-6


class TensorKnobs:
    """Numeric knobs of every bandit as tensors, which `fill` changes in place.

    A CUDA graph reads them at each replay, so other knobs do not need another capture.

    Args:
        settings: Knobs of every bandit to begin with.
        bandits: Bandits of one network, ``B``.
        stack: Networks, ``K``.
        arms: Mean number of arms of a bandit.
        device: Device of the tensors.

    Attributes:
        alpha: First Beta parameter of an arm without pulls, float64 [K * B, 1].
        beta: Second one, float64 [K * B, 1].
        temperature: Of softmax, float64 [K * B, 1].
        discount: Factor on counts, 1 for none, float64 [K * B, 1].
        uniform: Probability of a uniform pick, float64 [K * B].
        correction: Exponent of the importance weights, float64 [K * B].
        memory: Pulls that count, 1 where all do, int64 [K * B].
        loss_decay: Decay of the moving average of the loss, float64 [K].
    """

    def __init__(
        self,
        settings: BanditSettings,
        *,
        bandits: int,
        stack: int,
        arms: float,
        device: torch.device,
    ) -> None:
        self._bandits = bandits
        self._arms = arms

        def column() -> Tensor:
            return torch.zeros(stack * bandits, 1, dtype=torch.float64, device=device)

        self.alpha, self.beta = column(), column()
        self.temperature, self.discount = column(), column()
        self.uniform, self.correction = column()[:, 0], column()[:, 0]
        self.memory = torch.ones(stack * bandits, dtype=torch.int64, device=device)
        self.loss_decay = torch.zeros(stack, dtype=torch.float64, device=device)
        for slot in range(stack):
            self.fill(slot, settings)

    def fill(self, slot: int, settings: BanditSettings) -> None:
        """Set the knobs of all bandits of a network."""
        rows = slice(slot * self._bandits, (slot + 1) * self._bandits)
        self.alpha[rows], self.beta[rows] = settings.prior
        # Not 0 in single precision: 0 / 0 is no logit.
        self.temperature[rows] = max(settings.temperature, torch.finfo(torch.float32).tiny)
        self.discount[rows] = settings.discount or 1.0
        self.uniform[rows] = settings.uniform
        self.correction[rows] = settings.correction
        self.memory[rows] = settings.window(self._arms) or 1
        self.loss_decay[slot] = settings.loss_decay


@dataclasses.dataclass(eq=False)
class TensorPolicy(abc.ABC):
    """A rule that selects arms by their successes and failures, float32 [B, A] each.

    Args:
        settings: Knobs that are not numbers or are the same for all bandits.
        knobs: Numeric knobs of each bandit.
        held: Where there is an arm and no padding, bool [B, A].
        generator: Source of every draw, of the same device.
    """

    settings: BanditSettings
    knobs: TensorKnobs
    held: Tensor
    generator: torch.Generator

    def __post_init__(self) -> None:  # noqa: B027
        """Make what every draw needs; nothing unless overridden."""

    @abc.abstractmethod
    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Random keys, float32 [B, A]; the arm with the greatest key is selected."""

    @abc.abstractmethod
    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Probability of each arm, float64 [B, A]; 0 for padding."""

    def mean(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Posterior means, [B, A]."""
        alpha, beta = self._prior(successes)
        return (successes + alpha) / (successes + failures + (alpha + beta))

    def _prior(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Beta parameters of an arm without pulls, [B, 1] each, in the type of a tensor."""
        return self.knobs.alpha.to(like.dtype), self.knobs.beta.to(like.dtype)

    def noise(self) -> Tensor:
        """Independent draws from Exp(1), float32 [B, A]."""
        race = torch.empty(self.held.shape, device=self.held.device)
        return race.exponential_(generator=self.generator)


class TensorSoftmax(TensorPolicy):
    """Boltzmann selection: ``p`` proportional to ``exp(mean / temperature)``."""

    def logits(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Mean over temperature, -inf for padding, [B, A]."""
        mean = self.mean(successes, failures).masked_fill(~self.held, -torch.inf)
        # Below the highest one: large logits would round the noise of a draw away.
        return (mean - mean.amax(dim=1, keepdim=True)) / self.knobs.temperature.to(mean.dtype)

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Logits plus Gumbel noise, [B, A]: the greatest sum is a draw from their softmax."""
        # -log E with E ~ Exp(1) is a standard Gumbel variate.
        return self.logits(successes, failures) - self.noise().log()

    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Softmax of the logits, [B, A]."""
        return self.logits(successes.double(), failures.double()).softmax(dim=1)


class TensorGreedy(TensorPolicy):
    """The arm of the best posterior mean; ties are broken uniformly."""

    def best(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Whether each arm is among the best of its bandit, bool [B, A]."""
        values = self.mean(successes, failures).masked_fill(~self.held, -torch.inf)
        return values >= values.amax(dim=1, keepdim=True) - TIE

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Noise for the best arms, minus infinity for all others, [B, A]: a uniform tie-break."""
        return (-self.noise()).masked_fill(~self.best(successes, failures), -torch.inf)

    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """One over the number of best arms, for these; 0 elsewhere, [B, A]."""
        best = self.best(successes, failures).double()
        return best / best.sum(dim=1, keepdim=True)


class TensorThompson(TensorPolicy):
    """Thompson sampling: the arm of the greatest draw from the posteriors."""

    def __post_init__(self) -> None:
        # Made here if every draw needs it: SciPy on the host cannot be captured in a CUDA graph.
        if self.settings.correction:
            _ = self._table

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Logit of a Beta draw; the draw itself would round to 1 in single precision, [B, A]."""
        alpha, beta = self._prior(successes)
        # X / (X + Y) of Gamma variates X, Y is a Beta variate, whose logit is log X - log Y.
        logit = self._log_gamma(successes + alpha) - self._log_gamma(failures + beta)
        return logit.masked_fill(~self.held, -torch.inf)

    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Probability that an arm's draw beats all others of its bandit, [B, A]."""
        if self.settings.discount is not None:
            raise ArgumentError(
                "propensities of policy='thompson' need whole counts, which discount does not "
                f"keep: got discount={self.settings.discount}; use memory."
            )
        return self._table.propensities(successes, failures, self.held)

    def _log_gamma(self, shape: Tensor) -> Tensor:
        return torch._standard_gamma(shape, generator=self.generator).log_()

    @functools.cached_property
    def _table(self) -> ThompsonTable:
        return ThompsonTable(self.settings.prior, self.held.shape[1], self.held.device)


TENSOR_POLICIES: dict[str, type[TensorPolicy]] = {
    "epsilon_greedy": TensorGreedy,
    "softmax": TensorSoftmax,
    "thompson": TensorThompson,
}
