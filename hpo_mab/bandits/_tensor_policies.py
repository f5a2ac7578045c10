"""Selection policies on counts in tensors; the host never waits for the device.

Random keys, of which the greatest is selected, and propensities.
"""

from __future__ import annotations

import abc

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits._policies import LogitGrid
from hpo_mab.bandits._settings import BanditSettings

#: A state of more pulls is replaced by the nearest one of so many pulls: the table's size grows
#: with the square of this number.
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
        return capped * (capped + 1) // 2 + (successes * scale).round().long()


#: Values that differ by less are equal: single precision rounds them.
TIE = 1e-6


class TensorKnobs:
    """Numeric knobs of every bandit as tensors, which `fill` changes in place.

    A CUDA graph reads them at each replay, so it need not be captured again for other knobs.

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
        exploration: Of UCB1, float64 [K * B, 1].
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
        self.temperature, self.exploration, self.discount = column(), column(), column()
        self.uniform, self.correction = column()[:, 0], column()[:, 0]
        self.memory = torch.ones(stack * bandits, dtype=torch.int64, device=device)
        self.loss_decay = torch.zeros(stack, dtype=torch.float64, device=device)
        for slot in range(stack):
            self.fill(slot, settings)

    def fill(self, slot: int, settings: BanditSettings) -> None:
        """Set the knobs of all bandits of a network."""
        rows = slice(slot * self._bandits, (slot + 1) * self._bandits)
        self.alpha[rows], self.beta[rows] = settings.prior
        self.temperature[rows] = settings.temperature
        self.exploration[rows] = settings.exploration
        self.discount[rows] = settings.discount or 1.0
        self.uniform[rows] = settings.uniform
        self.correction[rows] = settings.correction
        self.memory[rows] = settings.window(self._arms) or 1
        self.loss_decay[slot] = settings.loss_decay


class TensorPolicy(abc.ABC):
    """A rule that selects arms by their successes and failures, float32 [B, A] each.

    Args:
        settings: Knobs that are not numbers or are the same for all bandits.
        knobs: Numeric knobs of each bandit.
        held: Where there is an arm and no padding, bool [B, A].
        generator: Source of every draw, of the same device.
    """

    def __init__(
        self,
        settings: BanditSettings,
        knobs: TensorKnobs,
        held: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        self.knobs = knobs
        self.held = held
        self.generator = generator

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
        return self.knobs.alpha.to(like.dtype), self.knobs.beta.to(like.dtype)

    def noise(self) -> Tensor:
        """Independent draws from Exp(1), float32 [B, A]."""
        race = torch.empty(self.held.shape, device=self.held.device)
        return race.exponential_(generator=self.generator)


class TensorSoftmax(TensorPolicy):
    """Boltzmann selection: ``p`` proportional to ``exp(mean / temperature)``."""

    def logits(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Mean over temperature, -inf for padding, [B, A]."""
        mean = self.mean(successes, failures)
        logits = mean / self.knobs.temperature.to(mean.dtype)
        return logits.masked_fill(~self.held, -torch.inf)

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Logits plus Gumbel noise, [B, A]."""
        return self.logits(successes, failures) - self.noise().log()

    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Softmax of the logits, [B, A]."""
        return self.logits(successes.double(), failures.double()).softmax(dim=1)


class TensorGreedy(TensorPolicy):
    """The arm of the best posterior mean; ties are broken uniformly."""

    def values(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Value of each arm; the greatest is selected, [B, A]."""
        return self.mean(successes, failures)

    def best(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Whether each arm is among the best of its bandit, bool [B, A]."""
        values = self.values(successes, failures).masked_fill(~self.held, -torch.inf)
        return values >= values.amax(dim=1, keepdim=True) - TIE

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Noise for the best arms, minus infinity for all others, [B, A]."""
        return (-self.noise()).masked_fill(~self.best(successes, failures), -torch.inf)

    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """One over the number of best arms, for these; 0 elsewhere, [B, A]."""
        best = self.best(successes, failures).double()
        return best / best.sum(dim=1, keepdim=True)


class TensorUCB(TensorGreedy):
    """UCB1; see `UCBPolicy`."""

    def values(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Upper confidence bound of each arm, [B, A]."""
        pulls = successes + failures
        log_total = pulls.sum(dim=1, keepdim=True).clamp(min=1).log()
        alpha, beta = self._prior(pulls)
        bonus = (2 * log_total / (pulls + (alpha + beta))).sqrt()
        exploration = self.knobs.exploration.to(pulls.dtype)
        return self.mean(successes, failures) + exploration * bonus


class TensorThompson(TensorPolicy):
    """Thompson sampling: the arm of the greatest draw from the posteriors."""

    def __init__(
        self,
        settings: BanditSettings,
        knobs: TensorKnobs,
        held: Tensor,
        generator: torch.Generator,
    ) -> None:
        super().__init__(settings, knobs, held, generator)
        # Made here if every draw needs it: SciPy on the host cannot be captured in a CUDA graph.
        self._table = self._make_table() if settings.correction else None

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Logit of a Beta draw; the draw itself would round to 1 in single precision, [B, A]."""
        alpha, beta = self._prior(successes)
        logit = self._log_gamma(successes + alpha) - self._log_gamma(failures + beta)
        return logit.masked_fill(~self.held, -torch.inf)

    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Probability that an arm's draw beats all others of its bandit, [B, A].

        Raises:
            ArgumentError: Counts are discounted, so they are not whole.
        """
        if self.settings.discount is not None:
            raise ArgumentError(
                "propensities of policy='thompson' need whole counts, which discount does not "
                f"keep: got discount={self.settings.discount}; use memory."
            )
        if self._table is None:
            self._table = self._make_table()
        return self._table.propensities(successes, failures, self.held)

    def _log_gamma(self, shape: Tensor) -> Tensor:
        return torch._standard_gamma(shape, generator=self.generator).log_()

    def _make_table(self) -> ThompsonTable:
        return ThompsonTable(self.settings.prior, self.held.shape[1], self.held.device)


TENSOR_POLICIES: dict[str, type[TensorPolicy]] = {
    "epsilon_greedy": TensorGreedy,
    "softmax": TensorSoftmax,
    "thompson": TensorThompson,
    "ucb1": TensorUCB,
}
