"""Samplers by name."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_type_hints

import numpy as np
import pytest
from tools import saved

from hpo_mab import samplers
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.samplers._registry import SAMPLERS


def test_create_makes_the_class_of_the_kind() -> None:
    sampler = samplers.create("csgd", [0, 1] * 8, batch_size=4, seed=3, budget=0.5)
    assert type(sampler) is samplers.CSGDSampler
    assert (sampler.batch_size, sampler.seed, sampler.budget) == (4, 3, 0.5)


def test_create_passes_every_common_argument() -> None:
    sampler = samplers.create("uniform", [0, 1] * 8, batch_size=2, rank=1, world_size=4)
    assert (sampler.rank, sampler.world_size, sampler.num_examples) == (1, 4, 4)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'infobatsch'\. Did you mean 'infobatch'"):
        samplers.create("infobatsch", [0, 1], batch_size=1)
    with pytest.raises(UnknownNameError, match=r"Valid: .*it has none"):
        samplers.create("uniform", [0, 1], batch_size=1, floor=0.5)


def test_knobs_are_the_constructor_options_without_the_common_ones() -> None:
    found = {name: option.default for name, option in SAMPLERS.options("psgd").items()}
    assert found == {"budget": 0.3, "smoothing": 1.0, "corrected": False}
    assert not SAMPLERS.options("uniform")


def test_every_signature_has_the_arguments_of_every_sampler() -> None:
    common = inspect.signature(samplers.BatchSampler).parameters
    assert {"labels", *samplers.CommonArguments.__annotations__} == common.keys()
    hints = get_type_hints(samplers.BatchSampler.__init__)
    assert hints.items() >= get_type_hints(samplers.CommonArguments).items()
    for kind in samplers.available():
        found = inspect.signature(type(samplers.create(kind, [0, 1] * 4, batch_size=2))).parameters
        assert [found[name] for name in common] == list(common.values())
        own = found.keys() - common.keys() - {"difficulty"}
        assert own == SAMPLERS.options(kind).keys()


def test_options_of_a_base_class_are_part_of_a_samplers_state() -> None:
    class Forward(samplers.MABSampler):
        def __init__(self, labels: Any, size: int = 3, **common: Any) -> None:
            super().__init__(labels, **common)

    class Loose(samplers.MABSampler):
        def __init__(self, *args: Any, **common: Any) -> None:
            super().__init__(*args, **common)

    for cls in (Forward, Loose):
        state = cls([0, 1] * 4, batch_size=2).state_dict()
        with pytest.raises(ArgumentError, match=r"floor is 0\.0 there and 0\.5 here"):
            cls([0, 1] * 4, batch_size=2, floor=0.5).load_state_dict(state)


def test_options_given_by_position_are_part_of_a_samplers_state() -> None:
    class Ordered(samplers.UniformSampler):
        def __init__(self, labels: Any, size: int, batch_size: int, **common: Any) -> None:
            super().__init__(labels, batch_size=batch_size, **common)

    state = Ordered([0, 1] * 4, 3, 2).state_dict()
    with pytest.raises(ArgumentError, match="another sampler: size is 3 there and 4 here"):
        Ordered([0, 1] * 4, 4, 2).load_state_dict(state)


def test_available_is_sorted_and_each_class_exported() -> None:
    assert list(samplers.available()) == sorted(samplers.available())
    classes = {type(samplers.create(k, [0, 1] * 4, batch_size=2)) for k in samplers.available()}
    assert {sampler_class.__name__ for sampler_class in classes} <= set(samplers.__all__)
    for name in samplers.__all__:
        assert getattr(samplers, name) is not None


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sampler'"):
        samplers.Sampler  # noqa: B018


@pytest.mark.parametrize(
    ("sampler_class", "knob", "bound", "value"),
    [
        (samplers.AdamBSSampler, "step", "at least 0", -1.0),
        (samplers.AdamBSSampler, "floor", "in (0, 1]", 0.0),
        (samplers.AdamBSSampler, "floor", "in (0, 1]", 1.5),
        (samplers.ContextualSampler, "candidates", "an integer of at least 1", 0),
        (samplers.ContextualSampler, "candidates", "an integer of at least 1", 2.5),
        (samplers.ContextualSampler, "scale", "at least 0", -1.0),
        (samplers.ContextualSampler, "floor", "in [0, 1]", 1.5),
        (samplers.ContextualSampler, "decay", "in (0, 1]", 0.0),
        (samplers.ContextualSampler, "loss_decay", "in [0, 1)", 1.0),
        (samplers.CSGDSampler, "budget", "in (0, 1]", 0.0),
        (samplers.CSGDSampler, "budget", "in (0, 1]", 1.1),
        (samplers.CSGDSampler, "smoothing", "at least 0", -0.1),
        (samplers.GradNormSampler, "presample", "an integer of at least 1", 0),
        (samplers.GradNormSampler, "presample", "an integer of at least 1", 2.5),
        (samplers.GradNormSampler, "threshold", "at least 0", -1.0),
        (samplers.GradNormSampler, "tau_decay", "in [0, 1)", 1.0),
        (samplers.HardMiningSampler, "presample", "an integer of at least 1", 0),
        (samplers.HardMiningSampler, "presample", "an integer of at least 1", 2.5),
        (samplers.ImponSampler, "presample", "an integer of at least 1", 0),
        (samplers.ImponSampler, "presample", "an integer of at least 1", 2.5),
        (samplers.ImponSampler, "smoothing", "above 0", 0.0),
        (samplers.ImponSampler, "decay", "in (0, 1]", 1.5),
        (samplers.ImponSampler, "loss_decay", "in [0, 1)", -1.0),
        (samplers.InfoBatchSampler, "ratio", "in [0, 1)", 1.0),
        (samplers.InfoBatchSampler, "ratio", "in [0, 1)", -0.1),
        (samplers.InfoBatchSampler, "delta", "in [0, 1]", 1.5),
        (samplers.PSGDSampler, "budget", "in (0, 1]", 0.0),
        (samplers.PSGDSampler, "budget", "in (0, 1]", 1.1),
        (samplers.PSGDSampler, "smoothing", "at least 0", -0.1),
    ],
)
def test_a_knob_outside_its_bounds_is_refused(
    sampler_class: type[samplers.BatchSampler], knob: str, bound: str, value: float
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"{knob} must be {bound}, got {value}")):
        sampler_class([0, 1] * 20, batch_size=4, **{knob: value})


#: Of knobs whose default is no number, one that is.
NUMBERS = {"memory": 3, "discount": 0.9, "threshold": 1.5, "replacement": True, "strength": 2}


def _in_numpy(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_in_numpy, value))
    kinds: dict[type, Any] = {bool: np.bool_, int: np.int64, float: np.float64}
    return kinds[type(value)](value)


@pytest.mark.parametrize("kind", samplers.available())
def test_numbers_may_be_numpys(kind: str) -> None:
    make = type(samplers.create(kind, [0, 1] * 8, batch_size=4))
    plain: list[dict[str, Any]] = [{"batch_size": 4, "seed": 3, "rank": 1, "world_size": 2}]
    for knob, option in SAMPLERS.options(kind).items():
        value = NUMBERS.get(knob, option.default)
        if isinstance(value, bool | int | float | tuple):
            plain.append({"batch_size": 4, knob: value})
    for arguments in plain:
        numpys = {name: _in_numpy(value) for name, value in arguments.items()}
        for made in (make, lambda labels, **rest: samplers.create(kind, labels, **rest)):
            # A file of the state is safe to load, and is that of a sampler with the same numbers.
            state = saved(made([0, 1] * 8, **numpys).state_dict())
            make([0, 1] * 8, **arguments).load_state_dict(state)
