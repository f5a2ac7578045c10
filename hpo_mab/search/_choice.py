"""The batch sampler that ``auto`` chooses, and how it compares with uniform sampling on pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import optuna

from hpo_mab._attributes import CHOICE_KEY
from hpo_mab._errors import json_values
from hpo_mab._stored_settings import TotalBudget
from hpo_mab.advantage import Estimate
from hpo_mab.advantage._pairs import interpolate
from hpo_mab.advantage._signed_rank import can_be_shown, signed_rank_estimate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairedTrial:
    """A trial that has ended.

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
        # A trial that has diverged counts as 0 at every share, not as what it reached before.
        if share == 1 or not steps or self.accuracy == 0:
            return self.accuracy
        curve = np.asarray([self.curve[step] for step in steps])
        where = np.asarray([share * steps[-1]])
        return float(interpolate(np.asarray(steps, dtype=np.float64), curve, where)[0])

    def ahead_of(self, other: PairedTrial, *, cost: float) -> float:
        """Its accuracy minus another trial's when both have trained for the same seconds.

        Both are compared at the time of the other trial's second-to-last evaluation, or of its only
        one. Its last evaluation may use other weights and more validation images.

        ``cost`` is this trial's seconds divided by those of the other one.
        """
        steps = sorted(other.curve)
        share = steps[-2] / steps[-1] if len(steps) > 1 else 1.0
        return self.at(share / cost) - other.at(share)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A challenger compared with uniform sampling.

    Attributes:
        name: The challenger.
        examples: Accuracy minus uniform's over pairs at equal examples, see
            `signed_rank_estimate`.
        seconds: The same at equal seconds. A slower challenger is compared at the time of uniform
            sampling's second-to-last evaluation, see `PairedTrial.ahead_of`.
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
        cost = json_values(round(self.cost, 4))
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
        pairs: Sequence[tuple[PairedTrial, PairedTrial]],
        *,
        error: float,
        judged: str = "examples",
        final: int | None = None,
    ) -> Self:
        """Compare a challenger with uniform sampling on pairs of (its training, uniform's).

        ``error`` is that of the intervals, on each side. Both samplers spend equal ``judged``,
        ``"examples"`` or ``"seconds"``. The race ends after ``final`` pairs; None takes the number
        of ``pairs``.
        """
        ratios = [one.seconds / other.seconds for one, other in pairs if other.seconds > 0]
        cost = float(np.median(ratios)) if ratios else math.nan
        equal = [one.accuracy - other.accuracy for one, other in pairs]
        # A faster challenger is read at its end: what it would reach later is not known.
        earlier = [one.ahead_of(other, cost=cost) for one, other in pairs] if cost > 1 else equal
        return cls(
            name=name,
            examples=signed_rank_estimate(equal, error=error),
            seconds=signed_rank_estimate(earlier, error=error),
            cost=cost,
            open=all(
                can_be_shown(differences, pairs=len(pairs) if final is None else final, error=error)
                for differences in ((equal, earlier) if judged == "seconds" else (equal,))
            ),
        )

    def gains(self, by: str) -> tuple[Estimate, ...]:
        """The gains that must lie above 0: at equal examples; by seconds, also at equal seconds."""
        return (self.examples, self.seconds) if by == "seconds" else (self.examples,)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The sampler with which a study continues after its race.

    Attributes:
        sampler: Its name in the portfolio.
        why: One sentence with the numbers.
        pairs: Pairs that the choice rests on.
        evidence: Digest of the evidence stored as ``hpo_mab:evidence``; None if none was stored.
        judged: What samplers spent equally, ``"examples"`` or ``"seconds"``.
        standings: Each challenger's standing when it left the race.
        twins: Trainings of the race, in addition to the study's trials.
        examples: Training examples of these.
        seconds: Training seconds of these.
        data: Digest of the data, see `hpo_mab.data._identity.source_digest`; empty if not known.
        source: Name of the study whose race and trainings these are; empty for the study itself.
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
    data: str = ""
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON values."""
        standings = [standing.to_json() for standing in self.standings]
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"version": 3, **fields, "standings": standings}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The choice that `to_json` wrote."""
        fields = {key: value for key, value in stored.items() if key != "version"}
        standings = map(Standing.from_json, fields.pop("standings"))
        return cls(**fields, standings=tuple(standings))


def stored_choice(study: optuna.Study) -> Choice | None:
    """The choice of the study's race; None before it is decided."""
    stored = study.user_attrs.get(CHOICE_KEY)
    return None if stored is None else Choice.from_json(stored)


def race_unit(total: str | None) -> Literal["examples", "seconds"]:
    """What racing samplers spend equally: seconds if a study's total budget is a time."""
    timed = total is not None and TotalBudget.parse(total).unit == "seconds"
    return "seconds" if timed else "examples"
