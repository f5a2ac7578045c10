"""How much one training may cost."""

from __future__ import annotations

import dataclasses
import math

from hpo_mab._errors import ArgumentError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The budget of one training, given in exactly one unit.

    Attributes:
        epochs: Passes over the training examples, above 0; may be a fraction.
        steps: Optimiser steps, at least 1.
        examples: Training examples processed, at least 1.

    Raises:
        ArgumentError: None or several units given, or a value that is not positive and finite.
    """

    epochs: float | None = None
    steps: int | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        given = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        if len(given) != 1:
            raise ArgumentError(
                "a budget needs exactly one of epochs, steps and examples, "
                f"got {' and '.join(given) or 'none'}."
            )
        (name, value), *_ = given.items()
        if not (value > 0 and math.isfinite(value)):
            raise ArgumentError(f"{name} of the budget must be above 0, got {value}.")
        if name != "epochs" and value != int(value):
            raise ArgumentError(f"{name} of the budget must be a whole number, got {value}.")

    def num_steps(self, *, num_examples: int, batch_size: int) -> int:
        """Optimiser steps the budget pays for, at least 1, rounded to the nearest.

        Args:
            num_examples: Training examples in one epoch, ``N``.
            batch_size: Examples a step, ``B``.
        """
        if self.steps is not None:
            return int(self.steps)
        examples = self.examples if self.examples is not None else (self.epochs or 0) * num_examples
        return max(1, round(examples / batch_size))
