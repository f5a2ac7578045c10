"""Evidence for early pruning: measured from pairs of trials, and stored with a study."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from hpo_mab._errors import ArgumentError, require
from hpo_mab.advantage._advantage import Estimate, acceleration, advantage, equivalent_budget
from hpo_mab.advantage._fidelity import compare_fidelity
from hpo_mab.advantage._pairs import Floats, PairedCurves

_VERSION = 1
#: Digits stored: accuracies are less exact, and attributes should be small.
_DIGITS = 6
_SERIES = ("advantage", "acceleration", "fidelity")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A rung of uniform training, and the earlier budget at which it may be decided.

    Attributes:
        budget: Where uniform training has the rung, as a share of a trial's budget.
        decided_at: Where a bandit-trained trial is compared instead; ``budget`` if not moved.
        equivalent: Uniform-equivalent budget ``e(decided_at)``, as a share.
        fidelity: Kendall tau under the bandit at ``decided_at`` minus uniform's at ``budget``, with
            a paired interval. Of a rung that is not moved: at the budget that came nearest to a
            move; None where no earlier budget was equivalent.
    """

    budget: float
    decided_at: float
    equivalent: float
    fidelity: Estimate | None = None

    @property
    def moved(self) -> bool:
        """Whether the rung is decided earlier than uniform's."""
        return self.decided_at < self.budget


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Advantage, acceleration, fidelity and rungs at shares of a trial's budget.

    Without pairs there are no budgets, and at most the outcome of a race.

    Attributes:
        budgets: Shares of a trial's budget in (0, 1], increasing [T].
        advantage: ``D(t)`` [T].
        acceleration: ``k(t)`` [T].
        fidelity: Kendall tau of the bandit minus that of uniform at the same ``t`` [T], each with
            its own final accuracy.
        rungs: Where a rung at each budget is decided [T].
        pairs: Number of pairs measured.
        margin: How much lower tau may be at a moved rung.
        source: Where the pairs come from, e.g. ``"pilot"``.
        data: Data set, "" if not known.
        model: Network, "" if not known.
        race: Outcome of a race of ``sampler.kind = "auto"`` as JSON values; None if there is none.

    Examples:
        >>> from hpo_mab.advantage import Evidence
        >>> evidence = Evidence.load("studies/fashion_mnist/evidence.json")
        >>> evidence.pairs, len(evidence.rungs) == len(evidence.budgets)
        (40, True)
    """

    budgets: tuple[float, ...] = ()
    advantage: tuple[Estimate, ...] = ()
    acceleration: tuple[Estimate, ...] = ()
    fidelity: tuple[Estimate, ...] = ()
    rungs: tuple[Rung, ...] = ()
    pairs: int
    margin: float
    source: str = ""
    data: str = ""
    model: str = ""
    race: Mapping[str, Any] | None = None

    @property
    def moves(self) -> bool:
        """Whether any rung is decided earlier than under uniform sampling."""
        return any(rung.moved for rung in self.rungs)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify this evidence in records."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

    def rung(self, share: float) -> Rung | None:
        """The rung at the first known budget that is at least ``share``; None beyond the last.

        A rung between two budgets must therefore meet the later one's conditions.
        """
        # Stored budgets are rounded, so equal shares may differ in the last digit.
        return next((rung for rung in self.rungs if rung.budget >= share - 1e-9), None)

    def to_json(self) -> dict[str, Any]:
        """The evidence as JSON values, some 200 bytes a budget."""
        return {
            "version": _VERSION,
            "pairs": self.pairs,
            "margin": self.margin,
            "source": self.source,
            "data": self.data,
            "model": self.model,
            "budgets": [round(share, _DIGITS) for share in self.budgets],
            **{key: [_pack(one) for one in getattr(self, key)] for key in _SERIES},
            "rungs": [_pack_rung(rung) for rung in self.rungs],
            **({} if self.race is None else {"race": dict(self.race)}),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The evidence that `to_json` wrote.

        Raises:
            ArgumentError: The mapping is not evidence, or has another version.
        """
        fields = dict(stored)
        version = fields.pop("version", None)
        if version != _VERSION:
            raise ArgumentError(f"evidence must have version {_VERSION}, got {version!r}.")
        try:
            fields.update({key: tuple(map(_unpack, fields[key])) for key in _SERIES})
            fields["rungs"] = tuple(map(_unpack_rung, fields["rungs"]))
            fields["budgets"] = tuple(fields["budgets"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"evidence cannot be read: {error!r}.") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The evidence in a JSON file.

        Raises:
            ArgumentError: The file cannot be read or does not hold evidence.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ArgumentError(
                f"evidence '{path}' cannot be read: {error.strerror}; "
                "'hpo-mab evidence' writes one."
            ) from None
        except ValueError as error:
            raise ArgumentError(f"evidence '{path}' is not JSON: {error}.") from None
        if not isinstance(stored, Mapping):
            raise ArgumentError(f"evidence '{path}' must hold a JSON object.")
        return cls.from_json(stored)


#: Evidence as users give it.
EvidenceLike = Evidence | Mapping[str, Any] | str | Path


def read_evidence(given: EvidenceLike) -> Evidence:
    """The evidence, from any form of `EvidenceLike`."""
    if isinstance(given, Evidence):
        return given
    if isinstance(given, Mapping):
        return Evidence.from_json(given)
    return Evidence.load(given)


def difference_of_task(evidence: Evidence, data: str, model: str) -> str:
    """How data set or network of evidence differs from a study's; empty if equal or not known."""
    named = (("data", evidence.data, data), ("network", evidence.model, model))
    for what, one, other in named:
        if one and other and one != other:
            return f"{what} '{one}', this study is of '{other}'"
    return ""


def _pack(estimate: Estimate) -> list[Any]:
    values = estimate.to_json().values()
    return [round(one, _DIGITS) if isinstance(one, float) else one for one in values]


def _unpack(packed: list[Any]) -> Estimate:
    names = (field.name for field in dataclasses.fields(Estimate))
    return Estimate.from_json(dict(zip(names, packed, strict=True)))


def _pack_rung(rung: Rung) -> dict[str, Any]:
    return {
        "budget": round(rung.budget, _DIGITS),
        "decided_at": round(rung.decided_at, _DIGITS),
        "equivalent": round(rung.equivalent, _DIGITS),
        "fidelity": None if rung.fidelity is None else _pack(rung.fidelity),
    }


def _unpack_rung(packed: Mapping[str, Any]) -> Rung:
    fidelity = packed["fidelity"]
    return Rung(
        budget=packed["budget"],
        decided_at=packed["decided_at"],
        equivalent=packed["equivalent"],
        fidelity=None if fidelity is None else _unpack(fidelity),
    )


#: With fewer pairs there is no ranking to compare.
FEWEST_PAIRS = 4
#: Largest accepted loss of Kendall tau at a moved rung.
DEFAULT_MARGIN = 0.1

_Difference = Callable[[int, int], Estimate]


def measure_evidence(
    pairs: PairedCurves,
    *,
    margin: float = DEFAULT_MARGIN,
    resamples: int = 2000,
    source: str = "",
    data: str = "",
    model: str = "",
) -> Evidence:
    """Measure the advantage on pairs, and place rungs by it.

    A rung at uniform budget ``r`` is decided at the earliest ``t`` that meets two conditions. The
    equivalent budget ``e(t)`` is at least ``r``. And the fidelity is no worse than uniform's at
    ``r``. That is: the paired difference of Kendall taus has an interval above ``-margin``. Here
    both taus are with uniform's final accuracy. Uniform's early accuracies come from the same
    trainings, so the comparison is biased against moving a rung.

    Args:
        pairs: At least 4 pairs at T budgets, the last of which is a trial's full budget.
        margin: Largest accepted loss of tau, in [0, 1].
        resamples: Bootstrap resamples, at least 100.
        source: Where the pairs come from.
        data: Data set, if known.
        model: Network, if known.

    Raises:
        ArgumentError: Fewer than 4 pairs that ran to their end, or an argument outside its bound.
    """
    if pairs.ended < FEWEST_PAIRS:
        raise ArgumentError(
            f"evidence needs at least {FEWEST_PAIRS} pairs, got {pairs.ended} that have ended."
        )
    require(0.0 <= margin <= 1.0, "margin", "in [0, 1]", margin)
    relative = dataclasses.replace(pairs, budgets=pairs.budgets / pairs.budgets[-1])
    ahead = advantage(relative, resamples=resamples)
    faster = acceleration(relative, resamples=resamples)

    def difference(early: int, rung: int, final: Floats = relative.reference[:, -1]) -> Estimate:
        return compare_fidelity(
            relative.arm[:, early],
            relative.reference[:, rung],
            final,
            other_final=relative.reference[:, -1],
            resamples=resamples,
        ).difference

    budgets = [float(share) for share in relative.budgets]
    equivalent = [float(share) for share in equivalent_budget(budgets, faster)]
    columns = range(len(budgets))
    return Evidence(
        budgets=tuple(budgets),
        advantage=tuple(ahead),
        acceleration=tuple(faster),
        fidelity=tuple(difference(c, c, relative.arm[:, -1]) for c in columns),
        rungs=tuple(
            _placed_rung(column, budgets, equivalent, difference, margin) for column in columns
        ),
        pairs=pairs.ended,
        margin=margin,
        source=source,
        data=data,
        model=model,
    )


def _placed_rung(
    rung: int,
    budgets: Sequence[float],
    equivalent: Sequence[float],
    difference: _Difference,
    margin: float,
) -> Rung:
    """A rung at its earliest budget that meets both conditions of `measure_evidence`."""
    budget = budgets[rung]
    # Products of budgets and accelerations are rounded, hence the tolerance.
    reaching = [early for early in range(rung) if equivalent[early] >= budget * (1 - 1e-9)]
    if not reaching:
        return Rung(budget=budget, decided_at=budget, equivalent=budget)
    tried = []
    for early in reaching:
        tried.append(loss := difference(early, rung))
        if loss.low >= -margin:
            return Rung(
                budget=budget,
                decided_at=budgets[early],
                equivalent=equivalent[early],
                fidelity=loss,
            )
    nearest = max(tried, key=lambda loss: loss.low)
    return Rung(budget=budget, decided_at=budget, equivalent=budget, fidelity=nearest)
