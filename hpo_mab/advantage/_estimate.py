"""An estimate with its interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure, the interval around it, and how many observations it rests on.

    Attributes:
        value: The estimate; NaN where nothing was observed.
        low: Lower end of the interval; ``-inf`` where the data give none.
        high: Upper end of the interval; ``inf`` where the data give none.
        n: Observations (pairs, configurations or seeds) the estimate rests on.
        confidence: Coverage the interval was made for, in (0, 1).
        censored: Whether the truth lies beyond what was observed, so that ``value`` reads
            "at least ``value``".
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95
    censored: bool = False

    @property
    def bounded(self) -> bool:
        """Whether both ends of the interval are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def above(self, reference: float) -> bool:
        """Whether the whole interval lies above ``reference``."""
        return self.low > reference

    def below(self, reference: float) -> bool:
        """Whether the whole interval lies below ``reference``."""
        return self.high < reference

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values; what is not finite becomes None."""
        fields = dataclasses.asdict(self)
        return {key: _finite_or_none(value) for key, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The estimate that `to_json` wrote."""
        absent: dict[str, Any] = {"value": math.nan, "low": -math.inf, "high": math.inf}
        return cls(**{k: absent[k] if v is None else v for k, v in fields.items()})


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
