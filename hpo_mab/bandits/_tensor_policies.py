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


class TensorPolicy(abc.ABC):
    """A rule that selects arms by their successes and failures, float32 [B, A] each.

    Args:
        settings: Knobs.
        held: Where there is an arm and no padding, bool [B, A].
        generator: Source of every draw, of the same device.
    """

    def __init__(self, settings: BanditSettings, held: Tensor, generator: torch.Generator) -> None:
        self.settings = settings
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
        alpha, beta = self.settings.prior
        return (successes + alpha) / (successes + failures + (alpha + beta))

    def noise(self) -> Tensor:
        """Independent draws from Exp(1), float32 [B, A]."""
        race = torch.empty(self.held.shape, device=self.held.device)
        return race.exponential_(generator=self.generator)


class TensorSoftmax(TensorPolicy):
    """Boltzmann selection: ``p`` proportional to ``exp(mean / temperature)``."""

    def logits(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Mean over temperature, -inf for padding, [B, A]."""
        logits = self.mean(successes, failures) / self.settings.temperature
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
        bonus = (2 * log_total / (pulls + sum(self.settings.prior))).sqrt()
        return self.mean(successes, failures) + self.settings.exploration * bonus


class TensorThompson(TensorPolicy):
    """Thompson sampling: the arm of the greatest draw from the posteriors."""

    def __init__(self, settings: BanditSettings, held: Tensor, generator: torch.Generator) -> None:
        super().__init__(settings, held, generator)
        # At once where every draw needs it: a table cannot be made during graph capture.
        self._table = self._make_table() if settings.correction else None

    def keys(self, successes: Tensor, failures: Tensor) -> Tensor:
        """Logit of a Beta draw, which near 1 keeps the precision that the draw would lose."""
        alpha, beta = self.settings.prior
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
