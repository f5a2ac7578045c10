import math
from typing import Any

import pytest

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.bandits import BanditSettings

BAD: list[tuple[str, Any]] = [
    ("prior", (0.0, 1.0)),
    ("prior", (1.0, math.nan)),
    ("prior", (1.0,)),
    ("loss_decay", 1.0),
    ("loss_decay", -0.1),
    ("memory", 0),
    ("memory", 2.5),
    ("memory", "all"),
    ("memory", True),
    ("discount", 0.0),
    ("discount", 1.0),
    ("floor", 1.01),
    ("floor", math.nan),
    ("correction", -0.5),
    ("active", 2.0),
    ("epsilon", -1.0),
    ("temperature", 0.0),
    ("temperature", math.inf),
    ("exploration", -1.0),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_error_names_argument_and_value(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"^{name} must be .*, got ") as caught:
        BanditSettings(**{name: value})
    assert str(value) in str(caught.value)


def test_unknown_policy_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'softmax'"):
        BanditSettings(policy="soft-max")


def test_memory_and_discount_exclude_each_other() -> None:
    with pytest.raises(ArgumentError, match=r"memory=5 and discount=0.9"):
        BanditSettings(memory=5, discount=0.9)
    with pytest.raises(ArgumentError, match=r"correction=0.5 and discount=0.9"):
        BanditSettings(correction=0.5, discount=0.9)


@pytest.mark.parametrize(
    ("knobs", "arms", "window"),
    [
        ({}, 390, 98),
        ({}, 1.5, 1),
        ({"memory": 7}, 390, 7),
        ({"memory": None}, 390, None),
        ({"discount": 0.99}, 390, None),
    ],
)
def test_auto_memory_is_a_quarter_of_the_arms(
    knobs: dict[str, Any], arms: float, window: int | None
) -> None:
    assert BanditSettings(**knobs).window(arms) == window


def test_epsilon_and_floor_mix() -> None:
    assert BanditSettings(policy="epsilon_greedy", epsilon=0.5, floor=0.5).uniform == 0.75
    assert BanditSettings(epsilon=0.5, floor=0.2).uniform == pytest.approx(0.2)
