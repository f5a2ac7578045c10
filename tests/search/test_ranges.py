"""Values of a search space: constants and ranges."""

from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.search._ranges import extremes, parse_value, ranges
from hpo_mab.search._space import suggest


def test_constants_stay_as_they_are() -> None:
    for constant in (3, 0.5, "sgd", "none", True, [1, 2]):
        assert parse_value("x", constant) == constant
        assert list(ranges("x", parse_value("x", constant))) == []


def test_items_of_a_list_may_be_ranges() -> None:
    value = parse_value("model.widths", [{"low": 0.5, "high": 2.0}, 1.0])
    expected = FloatDistribution(0.5, 2.0)
    assert dict(ranges("model.widths", value)) == {"model.widths.0": expected}
    trial = optuna.trial.FixedTrial({"model.widths.0": 1.5})
    assert suggest(trial, "model.widths", value) == [1.5, 1.0]


def test_the_items_of_a_prior_have_names() -> None:
    value = parse_value("sampler.prior", [{"low": 0.5, "high": 2.0}, {"low": 1, "high": 4}])
    assert list(dict(ranges("sampler.prior", value))) == [
        "sampler.prior_alpha",
        "sampler.prior_beta",
    ]
    trial = optuna.trial.FixedTrial({"sampler.prior_alpha": 1.5, "sampler.prior_beta": 2})
    assert suggest(trial, "sampler.prior", value) == [1.5, 2]


def test_a_list_of_many_ranges_has_few_extremes() -> None:
    value = parse_value("x", [{"low": 1, "high": 8}] * 40)
    assert list(itertools.islice(extremes(value), 3)) == [[1] * 40, [8] * 40]
    value = parse_value("x", [{"choices": ["a", "b", "c"]}, {"low": 1, "high": 2}, 0.5])
    assert list(extremes(value)) == [["a", 1, 0.5], ["b", 2, 0.5], ["c", 2, 0.5]]
    assert list(extremes([])) == [[]]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"choices": ["none", 50]}, CategoricalDistribution(["none", 50])),
        ({"choices": [1, "a"]}, CategoricalDistribution([1, "a"])),
        ({"low": 1, "high": 8, "log": True}, IntDistribution(1, 8, log=True)),
        ({"low": 1, "high": 9, "step": 2.0}, IntDistribution(1, 9, step=2)),
        ({"low": 1, "high": 3, "step": 0.5}, FloatDistribution(1.0, 3.0, step=0.5)),
        ({"low": 0, "high": 1.0}, FloatDistribution(0.0, 1.0)),
        ({"low": 0, "high": 1, "type": "float"}, FloatDistribution(0.0, 1.0)),
    ],
)
def test_bounds_or_choices_give_a_distribution(raw: Any, expected: Any) -> None:
    assert parse_value("x", raw) == expected


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"low": 2.0, "high": 1.0}, ["optimizer.lr", "low", "2.0", "1.0"]),
        ({"low": 0.0, "high": 1.0, "log": True}, ["optimizer.lr", "low"]),
        ({"low": 1}, ["optimizer.lr", "high"]),
        ({"low": "a", "high": 1}, ["low", "'a'"]),
        ({"low": float("nan"), "high": 1.0}, ["low", "nan"]),
        ({"low": 0.5, "high": 1.5, "type": "int"}, ["int", "0.5"]),
        ({"low": 1, "high": 9, "step": 1.5, "type": "int"}, ["int", "step = 1.5"]),
        ({"low": 1, "high": 2, "type": "log"}, ["type", "'log'"]),
        ({"low": 0.1, "high": 2.0, "log": "no"}, ["log must be true or false", "'no'"]),
        ({"low": 0, "high": 1, "log": True}, ["low must be above 0 with log, got 0"]),
        *(
            (
                {"low": 1, "high": 9, "step": step},
                ["step must be a finite number above 0", str(step)],
            )
            for step in (0, -1, float("inf"), float("nan"), True, "a")
        ),
        ({"choices": []}, ["choices"]),
        ({"choices": [1], "low": 1}, ["choices"]),
        ({"choices": [{"a": 1}]}, ["choices", "{'a': 1}"]),
        ({"choices": [[1, 2]]}, ["choices", "[1, 2]"]),
    ],
)
def test_an_impossible_range_is_refused_by_name(raw: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_value("optimizer.lr", raw)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_key_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'high'"):
        parse_value("optimizer.lr", {"low": 1, "hihg": 2})
