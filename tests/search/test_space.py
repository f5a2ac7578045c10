"""The search space of a trial and its points."""

from __future__ import annotations

from typing import Any

import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import MABSampler
from hpo_mab.search._space import SearchSpace


def _space(*, loop: dict[str, Any] | None = None, **given: Any) -> SearchSpace:
    own = {"batch_size": 8, "warmup": 0.0, "label_smoothing": 0.0, "average": 0.0, **(loop or {})}
    known = {"optimizer": {"name": "sgd"}, "sampler": {"kind": "mab"}, "model": {}, **given}
    return SearchSpace(**known, loop=own)


def test_a_point_is_named_by_parameters_of_items() -> None:
    prior = [{"low": 0.5, "high": 2.0}, {"low": 1, "high": 4}]
    space = _space(sampler={"kind": "mab", "prior": prior})
    params = {"sampler.prior_alpha": 1.5, "sampler.prior_beta": 2}
    assert space.at(params).sampler.options["prior"] == [1.5, 2]


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": {"name": "sgd", "momentum": {"low": 0, "high": 1}}},
        {"sampler": {"kind": "mab", "floor": {"low": 0, "high": 1}}},
        {"loop": {"label_smoothing": {"low": 0, "high": 1}}},
    ],
)
def test_two_integers_are_no_range_of_fractions(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"write low = [01]\.0 for fractions, or choices"):
        _space(**given)


def test_integers_may_be_searched_where_fractions_are_taken() -> None:
    space = _space(
        optimizer={"name": "sgd", "momentum": {"low": 0.0, "high": 1}},
        sampler={"kind": "mab", "memory": {"low": 50, "high": 500}},
    )
    assert space.at({"momentum": 0.5, "sampler.memory": 60}).sampler.options["memory"] == 60


def test_a_class_of_ours_has_its_short_name() -> None:
    assert _space(sampler={"kind": MABSampler, "floor": 0.1}).sampler.name == "mab"
