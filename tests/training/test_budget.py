from __future__ import annotations

import math
import re

import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.training import Budget


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(steps=7), 7),
        (Budget(examples=1000), 10),
        (Budget(examples=1049), 10),
        (Budget(examples=1051), 11),
        (Budget(examples=3), 1),
        (Budget(epochs=1), 10),
        (Budget(epochs=2.5), 24),
        (Budget(epochs=1e-9), 1),
    ],
)
def test_steps_of_a_budget(budget: Budget, steps: int) -> None:
    assert budget.num_steps(num_examples=960, batch_size=100) == steps


@pytest.mark.parametrize(
    "units", [{}, {"epochs": 1, "steps": 5}, {"epochs": 1, "steps": 5, "examples": 2}]
)
def test_exactly_one_unit(units: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match="exactly one of epochs, steps and examples") as caught:
        Budget(**units)
    assert str(caught.value).endswith(f"got {' and '.join(units) or 'none'}.")


@pytest.mark.parametrize("unit", ["epochs", "steps", "examples"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, 1e308])
def test_values_must_be_positive_and_finite(unit: str, value: float) -> None:
    bound = r"must be above 0 and at most 1e\+15"
    with pytest.raises(
        ArgumentError, match=f"{unit} of the budget {bound}, got {re.escape(str(value))}"
    ):
        Budget(**{unit: value})


@pytest.mark.parametrize("unit", ["steps", "examples"])
def test_steps_and_examples_are_whole(unit: str) -> None:
    with pytest.raises(ArgumentError, match=rf"{unit} .* whole number, got 2\.5"):
        Budget(**{unit: 2.5})
