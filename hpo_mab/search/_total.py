"""A budget for a whole study: training seconds, epochs or examples."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, Self

from hpo_mab._errors import ArgumentError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS = ("epochs", "epoch", "examples", *_SECONDS)
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


@dataclasses.dataclass(frozen=True, slots=True)
class TotalBudget:
    """What all trials of a study together may spend.

    Attributes:
        amount: How much, in ``unit``.
        unit: ``"seconds"`` of training (the sampler's cost included, all workers added up),
            ``"epochs"`` or ``"examples"``.
    """

    amount: float
    unit: Literal["seconds", "epochs", "examples"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"45s"``, ``"30m"``, ``"2h"``, ``"200epochs"`` or ``"1000000examples"``.

        Raises:
            ArgumentError: The text is of another form, or the amount is zero.
        """
        match = _FORM.fullmatch(text.lower())
        if match is None or match[2] not in _UNITS or float(match[1]) == 0:
            raise ArgumentError(
                "total budget must be a positive amount with a unit "
                f"(45s, 30m, 2h, 200epochs, 1000000examples), got {text!r}."
            )
        amount, unit = float(match[1]), match[2]
        if unit in _SECONDS:
            return cls(amount * _SECONDS[unit], "seconds")
        return cls(amount, "examples" if unit == "examples" else "epochs")

    def share_spent(self, *, seconds: float, examples: int, epoch_examples: int) -> float:
        """Share of the budget spent; 1 or more means it is used up.

        Args:
            seconds: Training seconds spent.
            examples: Training examples processed.
            epoch_examples: Examples of one epoch.
        """
        spent = {"seconds": seconds, "examples": examples, "epochs": examples / epoch_examples}
        return spent[self.unit] / self.amount
