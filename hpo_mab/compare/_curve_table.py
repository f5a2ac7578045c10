"""Recorded learning curves as a table, to be simulated with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hpo_mab.advantage import PairedCurves

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CurveTable:
    """Unpruned learning curves of P configurations under both samplers.

    Attributes:
        source: Where they come from.
        budgets: Training examples at each evaluation [T].
        bandit: Validation accuracy under the bandit [P, T].
        uniform: Validation accuracy under uniform sampling [P, T].
    """

    source: str
    budgets: Floats
    bandit: Floats
    uniform: Floats

    @classmethod
    def from_pairs(cls, pairs: PairedCurves, *, source: str, digits: int = 4) -> Self:
        """The pairs that both samplers took to the end, rounded."""
        whole = np.isfinite(pairs.difference).all(axis=1)
        return cls(
            source=source,
            budgets=pairs.budgets,
            bandit=np.round(pairs.bandit[whole], digits),
            uniform=np.round(pairs.uniform[whole], digits),
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A table that `save` wrote."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        arrays = {key: np.asarray(fields[key], float) for key in ("budgets", "bandit", "uniform")}
        return cls(source=fields["source"], **arrays)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, one configuration a line."""
        lines = {
            key: "[\n" + ",\n".join(json.dumps(row) for row in getattr(self, key).tolist()) + "]"
            for key in ("bandit", "uniform")
        }
        text = (
            f'{{"source": {json.dumps(self.source)},\n"budgets": '
            f'{json.dumps(self.budgets.tolist())},\n"bandit": {lines["bandit"]},\n'
            f'"uniform": {lines["uniform"]}}}\n'
        )
        Path(path).write_text(text, encoding="utf-8")

    def __len__(self) -> int:
        """Number of configurations P."""
        return len(self.bandit)

    def every(self, stride: int) -> Self:
        """The table with every ``stride``-th evaluation, the last one kept."""
        columns = slice(stride - 1, None, stride)
        return dataclasses.replace(
            self,
            budgets=self.budgets[columns],
            bandit=self.bandit[:, columns],
            uniform=self.uniform[:, columns],
        )

    def pairs(self, rows: NDArray[np.int64]) -> PairedCurves:
        """Some of the configurations as pairs."""
        return PairedCurves(
            budgets=self.budgets, bandit=self.bandit[rows], uniform=self.uniform[rows]
        )
