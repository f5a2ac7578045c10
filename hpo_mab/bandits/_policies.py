"""Selection policies on arms grouped by state: which state wins, and how likely each arm is."""

from __future__ import annotations

import abc
from typing import NamedTuple

import numpy as np

from hpo_mab.bandits._arrays import Counts, Floats, Ints
from hpo_mab.bandits._window import PullWindow

#: Values of two states that differ by less are taken for equal (rounding of prior plus counts).
TIE = 1e-9


class Singles(NamedTuple):
    """Arms that are a group each: those with so many pulls that hardly two have the same.

    Attributes:
        bandits: Bandit of each arm, ascending, [V].
        pairs: Successes and failures of each arm, [V, 2].
        rng: Source of their draws.
    """

    bandits: Ints
    pairs: Counts
    rng: np.random.Generator


class Groups(NamedTuple):
    """Arms of one bandit that are in one state: a group for each pair in use.

    Attributes:
        cells: Places in the flattened counts of arms by bandit and state, ascending, [G].
        columns: States, [G].
        capacity: Number of states there is room for.
        window: The pulls that count.
        singles: Further groups, of one arm each, that come after these; None where there are none.
    """

    cells: Ints
    columns: Ints
    capacity: int
    window: PullWindow
    singles: Singles | None = None

    @property
    def bandits(self) -> Ints:
        """Bandit of each group, [G + V]."""
        bandits = self.cells // self.capacity
        return bandits if self.singles is None else np.append(bandits, self.singles.bandits)


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

    def moments(self, columns: Ints, pairs: Counts | None) -> tuple[Floats, Floats]:
        """Posterior mean and pulls, the prior's among them, of columns and of further states.

        Args:
            columns: States, [n].
            pairs: Successes and failures of states without a column, [m, 2]; None for none.

        Returns:
            Means and pulls, [n + m] each.
        """
        means, pulls = self.mean[columns], self.pulls[columns]
        if pairs is None:
            return means, pulls
        alphas, more = self.prior[0] + pairs[:, 0], sum(self.prior) + pairs.sum(axis=1)
        return np.append(means, alphas / more), np.append(pulls, more)

    @abc.abstractmethod
    def costs(self, race: Floats, groups: Groups) -> Floats:
        """Cost of each group; the group of the smallest wins its bandit.

        Args:
            race: ``log(E / n)`` of each group, [G + V]; may be overwritten.
            groups: The groups, V of them single arms.

        Returns:
            Costs, [G + V].
        """

    @abc.abstractmethod
    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """Probability that one given arm of a state is selected.

        Args:
            counts: Arms of each bandit in each state, [B, S], the last M without a column.
            totals: Pulls that count, of each bandit, [B].
            more: Successes and failures of these M states, [M, 2]; None for none.

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
        means, _ = self.moments(groups.columns, _pairs(groups))
        return race - means / self.temperature

    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """Softmax over the arms of a bandit, by state, [B, S]."""
        means, _ = self.moments(_columns(counts, more), more)
        logits = np.where(counts > 0, means / self.temperature, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Floats = weights / (counts * weights).sum(axis=1, keepdims=True)
        return found


class GreedyPolicy(GroupedPolicy):
    """The arm of the best posterior mean; equals are drawn uniformly."""

    def values(self, means: Floats, pulls: Floats, totals: Ints) -> Floats:
        """Value of groups, the greatest of which is selected, [G].

        Args:
            means: Posterior means, [G].
            pulls: Pulls, the prior's among them, [G].
            totals: Pulls that count of the group's bandit, [G].
        """
        return means

    def costs(self, race: Floats, groups: Groups) -> Floats:
        """The race among the groups of the best value, infinite elsewhere, [G + V]."""
        bandits = groups.bandits
        totals = groups.window.totals
        values = self.values(*self.moments(groups.columns, _pairs(groups)), totals[bandits])
        best = np.full(len(totals), -np.inf)
        np.maximum.at(best, bandits, values)
        return np.where(values >= best[bandits] - TIE, race, np.inf)

    def propensities(self, counts: Counts, totals: Ints, more: Counts | None = None) -> Floats:
        """One over the number of best arms, for these; 0 elsewhere, [B, S]."""
        means, pulls = self.moments(_columns(counts, more), more)
        bandits, columns = np.nonzero(counts)
        values = np.full(counts.shape, -np.inf)
        values[bandits, columns] = self.values(means[columns], pulls[columns], totals[bandits])
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

    def values(self, means: Floats, pulls: Floats, totals: Ints) -> Floats:
        """Upper confidence bound of groups, [G]."""
        bonus = np.sqrt(2 * np.log(np.maximum(totals, 1)) / pulls)
        return means + self.exploration * bonus


def _pairs(groups: Groups) -> Counts | None:
    return None if groups.singles is None else groups.singles.pairs


def _columns(counts: Counts, more: Counts | None) -> Ints:
    """States of a table of counts, [B, S], that have a column."""
    return np.arange(counts.shape[1] - (0 if more is None else len(more)))
