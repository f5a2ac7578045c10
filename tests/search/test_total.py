from __future__ import annotations

import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.search._total import TotalBudget


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("45s", 45, "seconds"),
        ("30m", 1800, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("200 epochs", 200, "epochs"),
        ("1000examples", 1000, "examples"),
    ],
)
def test_amounts_with_units_are_read(text: str, amount: float, unit: str) -> None:
    assert TotalBudget.parse(text) == TotalBudget(amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "30", "0m", "m30", "-5s", "10 parsecs", "nan s"])
def test_other_texts_are_refused_with_the_text(text: str) -> None:
    with pytest.raises(ArgumentError, match="total budget") as caught:
        TotalBudget.parse(text)
    assert repr(text) in str(caught.value)


def test_the_share_counts_its_own_unit_only() -> None:
    spent = {"seconds": 30.0, "examples": 500, "epoch_examples": 100}
    assert TotalBudget.parse("60s").share_spent(**spent) == 0.5
    assert TotalBudget.parse("20epochs").share_spent(**spent) == 0.25
    assert TotalBudget.parse("400examples").share_spent(**spent) == 1.25
