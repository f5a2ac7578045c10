"""Selection policies on arms grouped by state: which state wins, and how likely each arm is."""

from __future__ import annotations

import abc
from typing import NamedTuple

import numpy as np

from hpo_mab.bandits._arrays import Counts, Floats, Ints
from hpo_mab.bandits._window import PullWindow

#: Values of two states that differ by less are taken for equal (rounding of prior plus counts).
TIE = 1e-9


class Groups(NamedTuple):
    """Arms of one bandit that are in one state: a group for each pair in use.

    Attributes:
        cells: Places in the flattened counts of arms by bandit and state, ascending, [G].
        columns: States, [G].
        capacity: Number of states there is room for.
        window: The pulls that count.
    """

    cells: Ints
    columns: Ints
    capacity: int
    window: PullWindow

    @property
    def bandits(self) -> Ints:
        """Bandit of each group, ascending, [G]."""
        return self.cells // self.capacity


class GroupedPolicy(abc.ABC):
    """A rule that selects arms by their successes and failures alone.

    Every group of ``n`` arms of one state enters with ``race = log(E / n)``, ``E ~ Exp(1)``: the
    smallest of independent ``E / (n w)`` falls on a group with probability proportional to
    ``n w``, which makes a categorical choice, and ``1 - exp(-E / n)`` is the upper-tail
    probability of the best of ``n`` draws, which makes Thompson sampling.

    Args:
        prior: Beta parameters of an arm without pulls, both positive.
    """

    def __init__(self, prior: tuple[float, float]) -> None:
        self.prior = prior
        self.mean = np.zeros(0)
        self.pulls = np.zeros(0)

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` states."""
        self.mean = np.resize(self.mean, capacity)
        self.pulls = np.resize(self.pulls, capacity)

    def define(self, column: int, successes: int, failures: int) -> None:
        """Fill in the state of a column."""
        alpha, beta = self.prior
        self.pulls[column] = alpha + beta + successes + failures
        self.mean[column] = (alpha + successes) / self.pulls[column]

    @abc.abstractmethod
    def costs(self, race: Floats, groups: Groups) -> Floats:
        """Cost of each group; the group of the smallest wins its bandit.

        Args:
            race: ``log(E / n)`` of each group, [G]; may be overwritten.
            groups: The groups.

        Returns:
            Costs, [G].
        """

    @abc.abstractmethod
    def propensities(self, counts: Counts, totals: Ints) -> Floats:
        """Probability that one given arm of a state is selected.

        Args:
            counts: Arms of each bandit in each state, [B, S].
            totals: Pulls that count, of each bandit, [B].

        Returns:
            Probabilities, [B, S]; their sum weighted by ``counts`` is 1 for each bandit.
        """


class SoftmaxPolicy(GroupedPolicy):
    """Boltzmann selection: ``p`` proportional to ``exp(mean / temperature)``."""

    def __init__(self, prior: tuple[float, float], temperature: float) -> None:
        super().__init__(prior)
        self.temperature = temperature

    def costs(self, race: Floats, groups: Groups) -> Floats:
        """Log of ``E / (n w)`` with ``w = exp(mean / temperature)``, [G]."""
        return race - self.mean[groups.columns] / self.temperature

    def propensities(self, counts: Counts, totals: Ints) -> Floats:
        """Softmax over the arms of a bandit, by state, [B, S]."""
        logits = np.where(counts > 0, self.mean / self.temperature, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Floats = weights / (counts * weights).sum(axis=1, keepdims=True)
        return found


class GreedyPolicy(GroupedPolicy):
    """The arm of the best posterior mean; equals are drawn uniformly."""

    def values(
        self,
        bandits: Ints,
        columns: Ints,
        totals: Ints,
    ) -> Floats:
        """Value of each group, the greatest of which is selected, [G]."""
        means: Floats = self.mean[columns]
        return means

    def costs(self, race: Floats, groups: Groups) -> Floats:
        """The race among the groups of the best value, infinite elsewhere, [G]."""
        bandits = groups.bandits
        values = self.values(bandits, groups.columns, groups.window.totals)
        starts = np.flatnonzero(np.diff(bandits, prepend=-1))
        best = np.maximum.reduceat(values, starts)
        return np.where(values >= best[bandits] - TIE, race, np.inf)

    def propensities(self, counts: Counts, totals: Ints) -> Floats:
        """One over the number of best arms, for these; 0 elsewhere, [B, S]."""
        bandits, columns = np.nonzero(counts)
        values = np.full(counts.shape, -np.inf)
        values[bandits, columns] = self.values(bandits, columns, totals)
        best = values >= values.max(axis=1, keepdims=True) - TIE
        found: Floats = best / (counts * best).sum(axis=1, keepdims=True)
        return found


class UCBPolicy(GreedyPolicy):
    """UCB1 (Auer et al. 2002): ``mean + exploration sqrt(2 ln t / n)``.

    Mean and ``n`` are the posterior's, the prior's parameters counted as pulls: arms without pulls
    come by their bonus. The literal "every arm once first" is the limit of a vanishing prior.
    """

    def __init__(self, prior: tuple[float, float], exploration: float) -> None:
        super().__init__(prior)
        self.exploration = exploration

    def values(
        self,
        bandits: Ints,
        columns: Ints,
        totals: Ints,
    ) -> Floats:
        """Upper confidence bound of each group, [G]."""
        log_total = np.log(np.maximum(totals, 1))[bandits]
        return self.mean[columns] + self.exploration * np.sqrt(2 * log_total / self.pulls[columns])
