"""Comparison of samplers with uniform sampling on a few pairs, and the choice made by it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import optuna
from numpy.typing import NDArray

from hpo_mab._attributes import CHOICE_KEY
from hpo_mab.advantage import Estimate
from hpo_mab.advantage._pairs import interpolate

Floats = NDArray[np.float64]


def fewest_pairs(error: float) -> int:
    """Fewest pairs ``n`` for an error of the signed-rank test; its least error is ``2 ** -n``."""
    return math.ceil(-math.log2(error))


def signed_rank_estimate(differences: Sequence[float], *, error: float) -> Estimate:
    """Centre of paired differences, with the interval of Wilcoxon's signed-rank test.

    The estimate is Hodges and Lehmann's: the median of the means of every two differences (each
    with itself included). A few large differences, such as those at a far too low learning rate,
    hardly move it. The interval is exact where the differences are symmetric about their centre,
    and needs no other assumption.

    Args:
        differences: One a pair, [n].
        error: Highest probability that the centre lies below the interval, and that it lies above.

    Returns:
        The estimate; its interval is unbounded where ``n`` is below `fewest_pairs`.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    means = np.sort(_walsh_means(values))
    outside = _outside(count, error)
    low, high = (means[outside - 1], means[-outside]) if outside else (-math.inf, math.inf)
    return Estimate(
        value=float(np.median(means)) if count else math.nan,
        low=float(low),
        high=float(high),
        n=count,
        confidence=1 - 2 * error,
    )


def can_be_shown(differences: Sequence[float], *, pairs: int, error: float) -> bool:
    """Whether the interval of `signed_rank_estimate` can lie above 0 once there are more pairs.

    Args:
        differences: Those of the pairs so far.
        pairs: Pairs in the end.
        error: As in `signed_rank_estimate`.
    """
    means = _walsh_means(np.asarray(differences, dtype=np.float64))
    # At best every further difference outweighs those so far.
    return int((means <= 0).sum()) < _outside(pairs, error)


def _walsh_means(values: Floats) -> Floats:
    """Means of every two values, each with itself included, [n (n + 1) / 2]."""
    rows, columns = np.triu_indices(len(values))
    means: Floats = (values[rows] + values[columns]) / 2
    return means


def _outside(count: int, error: float) -> int:
    """Place of the interval's lower end among the sorted means, from 1; 0 where there is none."""
    # Under symmetry about 0 each rank is positive with probability 1/2.
    chances = np.ones(1)
    for rank in range(1, count + 1):
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    return int((chances.cumsum() <= error * (1 + 1e-9)).sum())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a trial has ended.

    Attributes:
        accuracy: Its validation accuracy; 0 if it has diverged.
        curve: Accuracy by step reported.
        seconds: Of training.
    """

    accuracy: float
    curve: Mapping[int, float]
    seconds: float

    def at(self, share: float) -> float:
        """Its accuracy at a share of its budget."""
        steps = sorted(self.curve)
        if share == 1 or not steps or self.accuracy == 0:
            return self.accuracy
        curve = np.asarray([self.curve[step] for step in steps])
        where = np.asarray([share * steps[-1]])
        return float(interpolate(np.asarray(steps, dtype=np.float64), curve, where)[0])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A challenger compared with uniform sampling.

    Attributes:
        name: The challenger.
        examples: Accuracy minus uniform's over pairs at equal examples, see
            `signed_rank_estimate`.
        seconds: The same at equal seconds. A slower challenger is read at the earlier part of its
            training that takes as long as uniform's. Its learning rate has not decayed by then, so
            the estimate is cautious.
        cost: Training seconds divided by uniform's, median over pairs; NaN if not known.
        open: Whether further pairs could still show that it is ahead.
    """

    name: str
    examples: Estimate
    seconds: Estimate
    cost: float
    open: bool = dataclasses.field(default=True, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The standing as JSON values."""
        estimates = {"examples": self.examples.to_json(), "seconds": self.seconds.to_json()}
        cost = round(self.cost, 4) if math.isfinite(self.cost) else None
        return {"name": self.name, **estimates, "cost": cost}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The standing that `to_json` wrote."""
        return cls(
            name=stored["name"],
            examples=Estimate.from_json(stored["examples"]),
            seconds=Estimate.from_json(stored["seconds"]),
            cost=math.nan if stored["cost"] is None else stored["cost"],
        )

    @classmethod
    def of(
        cls,
        name: str,
        pairs: Sequence[tuple[Ended, Ended]],
        *,
        error: float,
        judged: str = "examples",
        final: int | None = None,
    ) -> Self:
        """Measure it on pairs of a challenger's and uniform's trainings.

        Args:
            name: The challenger.
            pairs: Its training and uniform's, each.
            error: Of the intervals, on each side.
            judged: At equal ``"examples"`` or ``"seconds"``.
            final: Pairs at the end of the race; None for those given.
        """
        ratios = [one.seconds / other.seconds for one, other in pairs if other.seconds > 0]
        cost = float(np.median(ratios)) if ratios else math.nan
        share = 1 / cost if cost > 1 else 1.0
        equal = [one.accuracy - other.accuracy for one, other in pairs]
        earlier = [one.at(share) - other.accuracy for one, other in pairs]
        return cls(
            name=name,
            examples=signed_rank_estimate(equal, error=error),
            seconds=signed_rank_estimate(earlier, error=error),
            cost=cost,
            open=can_be_shown(
                earlier if judged == "seconds" else equal,
                pairs=len(pairs) if final is None else final,
                error=error,
            ),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The sampler with which a study continues after its race.

    Attributes:
        sampler: Its name in the portfolio.
        why: One sentence with the figures.
        pairs: Pairs that the choice rests on.
        evidence: Digest of the evidence, kept as ``hpo_mab:evidence``; None if there was none.
        judged: At equal ``"examples"`` or ``"seconds"``.
        standings: Each challenger's standing when it left the race.
        twins: Trainings of the race, in addition to the study's trials.
        examples: Training examples of these.
        seconds: Training seconds of these.
    """

    sampler: str
    why: str
    pairs: int = 0
    evidence: str | None = None
    judged: str = "examples"
    standings: tuple[Standing, ...] = ()
    twins: int = 0
    examples: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON values."""
        standings = [standing.to_json() for standing in self.standings]
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"version": 2, **fields, "standings": standings}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The choice that `to_json`, or an earlier version, wrote."""
        fields = {key: value for key, value in stored.items() if key != "version"}
        standings = map(Standing.from_json, fields.pop("standings", ()))
        return cls(**fields, standings=tuple(standings))


def stored_choice(study: optuna.Study) -> Choice | None:
    """The choice of the study's race; None before it is decided."""
    stored = study.user_attrs.get(CHOICE_KEY)
    return None if stored is None else Choice.from_json(stored)
