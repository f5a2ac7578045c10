"""Evidence: what a set of pairs says of early pruning, small enough to be stored with a study."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage._estimate import Estimate

_VERSION = 1
#: Digits kept: accuracies and shares are not known better, and attributes should be small.
_DIGITS = 6
_SERIES = ("advantage", "acceleration", "fidelity")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Where the evidence lets a rung of uniform training be decided.

    Attributes:
        budget: Where uniform training has the rung, as a share of a trial's budget.
        decided_at: Where a bandit-trained trial is judged instead; ``budget`` if not moved.
        equivalent: Uniform-equivalent budget ``e(decided_at)``, as a share.
        fidelity: Kendall tau under the bandit at ``decided_at`` (of a refused rung: where it came
            nearest to being moved) minus uniform's at ``budget``, with a paired interval; None
            where no earlier budget was equivalent.
        refused: Which condition no earlier budget met: ``"advantage"`` (none is
            uniform-equivalent to the rung) or ``"fidelity"``; None if the rung is moved.
    """

    budget: float
    decided_at: float
    equivalent: float
    fidelity: Estimate | None = None
    refused: Literal["advantage", "fidelity"] | None = None

    @property
    def moved(self) -> bool:
        """Whether the rung is decided earlier than uniform's."""
        return self.decided_at < self.budget


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Advantage, acceleration and fidelity over shares of a trial's budget, and what follows.

    Attributes:
        budgets: Shares of a trial's budget in (0, 1], increasing [T].
        advantage: ``D(t)`` [T].
        acceleration: ``k(t)`` [T].
        fidelity: Kendall tau of the bandit minus that of uniform at the same ``t`` [T], both with
            uniform's final accuracy.
        rungs: Where a rung at each budget is decided [T].
        pairs: Pairs the evidence rests on.
        margin: How much lower tau may be at a moved rung.
        source: Where the pairs come from, e.g. ``"pilot"``.
        data: Data set, "" if not known.
        model: Network, "" if not known.
    """

    budgets: tuple[float, ...]
    advantage: tuple[Estimate, ...]
    acceleration: tuple[Estimate, ...]
    fidelity: tuple[Estimate, ...]
    rungs: tuple[Rung, ...]
    pairs: int
    margin: float
    source: str = ""
    data: str = ""
    model: str = ""

    @property
    def moves(self) -> bool:
        """Whether any rung is decided earlier than under uniform sampling."""
        return any(rung.moved for rung in self.rungs)

    @property
    def digest(self) -> str:
        """Eight characters that name exactly this evidence in records."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

    def rung(self, share: float) -> Rung | None:
        """The rung at the first known budget that is at least ``share``; None beyond the last.

        A rung between two budgets is thus held to the later one's conditions.
        """
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
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The evidence that `to_json` wrote.

        Raises:
            ArgumentError: The mapping is no evidence, or of a later version.
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

    def save(self, path: str | Path) -> None:
        """Write the evidence to a JSON file."""
        Path(path).write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The evidence in a JSON file.

        Raises:
            ArgumentError: The file cannot be read or holds something else.
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


def _pack(estimate: Estimate) -> list[Any]:
    fields = estimate.to_json()
    for key in ("value", "low", "high"):
        if fields[key] is not None:
            fields[key] = round(fields[key], _DIGITS)
    return [fields[key] for key in ("value", "low", "high", "n", "confidence", "censored")]


def _unpack(packed: list[Any]) -> Estimate:
    names = ("value", "low", "high", "n", "confidence", "censored")
    return Estimate.from_json(dict(zip(names, packed, strict=True)))


def _pack_rung(rung: Rung) -> dict[str, Any]:
    return {
        "budget": round(rung.budget, _DIGITS),
        "decided_at": round(rung.decided_at, _DIGITS),
        "equivalent": round(rung.equivalent, _DIGITS),
        "fidelity": None if rung.fidelity is None else _pack(rung.fidelity),
        "refused": rung.refused,
    }


def _unpack_rung(packed: Mapping[str, Any]) -> Rung:
    fidelity = packed["fidelity"]
    return Rung(**{**packed, "fidelity": None if fidelity is None else _unpack(fidelity)})
