"""Selection policies on counts in tensors: keys whose greatest wins, and propensities."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits._settings import BanditSettings
from hpo_mab.bandits._tensor_thompson import ThompsonTable

#: Values that differ by less are taken for equal (rounding of single precision).
TIE = 1e-6


class TensorKnobs:
    """Numeric knobs of every bandit as tensors, which `fill` changes in place.

    A CUDA graph that reads them serves trials of other knobs, too.

    Args:
        settings: Knobs of every bandit to begin with.
        bandits: Bandits of one network, ``B``.
        stack: Networks, ``K``.
        arms: Mean number of arms of a bandit.
        device: Where the tensors live.

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
        """Give all bandits of a network other knobs."""
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
        settings: Knobs that are no numbers, or the same for all bandits.
        knobs: Those of each bandit.
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
        """Random keys, float32 [B, A]: the arm of the greatest is selected."""

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
    """The arm of the best posterior mean; equals are drawn uniformly."""

    def values(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Value of each arm, the greatest of which is selected, [B, A]."""
        return self.mean(successes, failures)

    def best(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Whether each arm is among the best of its bandit, bool [B, A]."""
        values = self.values(successes, failures).masked_fill(~self.held, -torch.inf)
        return values >= values.amax(dim=1, keepdim=True) - TIE

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Noise for the best arms, less than any noise elsewhere, [B, A]."""
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
        # At once where every draw needs it: a table cannot be made during graph capture.
        self._table = self._make_table() if settings.correction else None

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Logit of a Beta draw, which near 1 keeps the precision that the draw would lose."""
        alpha, beta = self._prior(successes)
        logit = self._log_gamma(successes + alpha) - self._log_gamma(failures + beta)
        return logit.masked_fill(~self.held, -torch.inf)

    def propensities(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Probability that an arm's draw beats all others of its bandit, [B, A].

        Raises:
            ArgumentError: Counts are discounted, hence not whole.
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
