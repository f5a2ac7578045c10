"""The knobs of the bandits, shares, and which losses are rewarded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.bandits._settings import (
    BanditSettings,
    LossBinarizer,
    MovingAverage,
    above_average,
    draw_statistics,
    stratified_shares,
)

BAD: list[tuple[str, Any]] = [
    ("prior", (0.0, 1.0)),
    ("prior", (1.0, math.nan)),
    ("prior", (1.0,)),
    ("prior", 2.0),
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
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_error_names_argument_and_value(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"^{name} must be .*, got ") as caught:
        BanditSettings(**{name: value})
    assert str(value) in str(caught.value)


def test_numpy_numbers_are_python_numbers() -> None:
    settings = BanditSettings(memory=np.int64(50), prior=(np.float32(1), 2), floor=np.float64(0))
    assert settings == BanditSettings(memory=50, prior=(1.0, 2), floor=0.0)
    assert list(BanditSettings(prior=np.array([1.0, 2.0])).prior) == [1.0, 2.0]
    assert {type(settings.memory), type(settings.prior[0])} == {int, float}


def test_unknown_policy_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'softmax'"):
        BanditSettings(policy="soft-max")


def test_memory_and_discount_exclude_each_other() -> None:
    with pytest.raises(
        ArgumentError, match=r"memory must be in \[1, 2\*\*31\) pulls, .* got 2147483648"
    ):
        BanditSettings(memory=2**31)
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


@given(
    labels=st.lists(st.sampled_from([-256, 0, 1, 2, 300]), min_size=1, max_size=90),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_shares_hold_every_example_once_and_each_class_evenly(
    labels: list[int], share: float, seed: int
) -> None:
    bandits = 1 + int(share * (len(labels) - 1))
    classes = np.array(labels)
    shares = stratified_shares(classes, bandits, np.random.default_rng(seed))
    held = shares >= 0
    assert sorted(shares[held].tolist()) == list(range(len(labels)))
    assert shares.shape == (bandits, -(-len(labels) // bandits))
    # Padding is nowhere but at the end of a row.
    assert held[:, :-1].all()
    for label in set(labels):
        counts = ((classes[shares] == label) & held).sum(axis=1)
        assert np.ptp(counts) <= 1


def test_shares_are_random_and_reproducible() -> None:
    labels = np.zeros(40, dtype=np.int64)
    first, again, other = (
        stratified_shares(labels, 4, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_odd_examples_go_to_any_bandit() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    rng = np.random.default_rng(0)
    # Bandit 0 holds the fifth example, the one of class 1, in about a quarter of the splits.
    longer = [int((stratified_shares(labels, 4, rng)[0] >= 0).sum() == 2) for _ in range(400)]
    # Binomial(400, 1/4) leaves [60, 140] with probability below 1e-5.
    assert 60 <= sum(longer) <= 140


@pytest.mark.parametrize("bandits", [1, 7])
def test_one_bandit_and_one_arm_each(bandits: int) -> None:
    shares = stratified_shares(np.arange(7), bandits, np.random.default_rng(0))
    assert shares.shape == (bandits, 7 // bandits)


def test_bandits_of_different_rules_do_not_share_a_stack() -> None:
    one, other = (BanditSettings(reward=rule) for rule in (lambda x, m: x >= m, lambda x, m: x < m))
    assert one.structure != other.structure
    assert BanditSettings().structure == BanditSettings(reward="above_average").structure


def test_a_rule_of_reward_may_return_a_tensor_for_an_array() -> None:
    rule = LossBinarizer(0.97, lambda losses, average: torch.as_tensor(losses) > 1)
    rewards = rule.rewards(np.array([1.0, 2.0], dtype=np.float32))
    assert rewards is not None
    assert rewards.tolist() == [0, 1]


@pytest.mark.parametrize("loss", [0.1, 1.7, 2.302585])
def test_a_loss_equal_to_the_average_is_rewarded_by_either_engine(loss: float) -> None:
    host = LossBinarizer(0.97, above_average)
    device = MovingAverage(torch.tensor([0.97], dtype=torch.float64))
    losses = torch.full((7,), loss)
    for _ in range(200):
        rewards = host.rewards(losses.numpy())
        average, _ = device.before(losses[None])
        assert rewards is not None
        assert rewards.all()
        assert above_average(losses, average).all()


def test_a_batch_with_a_loss_that_is_not_finite_moves_no_average() -> None:
    averages = MovingAverage(torch.tensor([0.5, 0.5], dtype=torch.float64))
    losses = torch.tensor([[1.0, 3.0], [1.0, math.inf]])
    before, valid = averages.before(losses)
    assert before[0].tolist() == [2.0]
    assert valid.tolist() == [[True], [False]]
    before, valid = averages.before(losses.clamp(max=9.0))
    assert before.tolist() == [[2.0], [5.0]]
    assert valid.all()


def test_figures_without_a_value_are_left_out() -> None:
    draws = torch.tensor([[4, 1, 0, 3, 2, 0], [0] * 6])
    assert draw_statistics(draws, torch.tensor([[3, 4], [0, 2]]), examples=4) == [
        {"reward_rate": 0.75, "concentration": 0.4},
        {"reward_rate": 0.0},
    ]
    assert draw_statistics(draws, torch.zeros(2, 2), examples=11) == [{"concentration": 0.7}, {}]
