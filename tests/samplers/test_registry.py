"""Samplers by name."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from hpo_mab import samplers
from hpo_mab._errors import UnknownNameError


def test_create_makes_the_class_of_the_kind() -> None:
    sampler = samplers.create("csgd", [0, 1] * 8, batch_size=4, seed=3, budget=0.5)
    assert type(sampler) is samplers.CSGDSampler
    assert (sampler.batch_size, sampler.seed, sampler.budget) == (4, 3, 0.5)


def test_create_passes_every_common_argument() -> None:
    sampler = samplers.create("uniform", [0, 1] * 8, batch_size=2, rank=1, world_size=4)
    assert (sampler.rank, sampler.world_size, sampler.num_examples) == (1, 4, 4)


def test_unknown_kind_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'infobatsch'\. Did you mean 'infobatch'"):
        samplers.create("infobatsch", [0, 1], batch_size=1)
    with pytest.raises(UnknownNameError, match="Unknown sampler 'pgsd'"):
        samplers.knobs("pgsd")


def test_unknown_knob_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"option of sampler 'psgd' 'budgt'.*'budget'"):
        samplers.create("psgd", [0, 1], batch_size=1, budgt=0.5)
    with pytest.raises(UnknownNameError, match=r"Valid: .*it has none"):
        samplers.create("uniform", [0, 1], batch_size=1, floor=0.5)


def test_knobs_are_the_constructor_options_without_the_common_ones() -> None:
    assert dict(samplers.knobs("psgd")) == {"budget": 0.3, "smoothing": 1.0, "corrected": False}
    assert dict(samplers.knobs("uniform")) == {}
    for kind in samplers.available():
        assert inspect.Parameter.empty not in samplers.knobs(kind).values()


def test_available_is_sorted_and_each_class_exported() -> None:
    assert list(samplers.available()) == sorted(samplers.available())
    classes = {type(samplers.create(k, [0, 1] * 4, batch_size=2)) for k in samplers.available()}
    assert {sampler_class.__name__ for sampler_class in classes} <= set(samplers.__all__)
    for name in samplers.__all__:
        assert getattr(samplers, name) is not None


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sampler'"):
        samplers.Sampler  # noqa: B018


def test_import_is_cheap() -> None:
    code = "import sys, hpo_mab.samplers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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
    for knob, default in samplers.knobs(kind).items():
        value = NUMBERS.get(knob, default)
        if isinstance(value, bool | int | float | tuple):
            plain.append({"batch_size": 4, knob: value})
    for arguments in plain:
        numpys = {name: _in_numpy(value) for name, value in arguments.items()}
        for made in (make, lambda labels, **rest: samplers.create(kind, labels, **rest)):
            # A file of the state is safe to load, and is that of a sampler with the same numbers.
            file = io.BytesIO()
            torch.save(made([0, 1] * 8, **numpys).state_dict(), file)
            file.seek(0)
            make([0, 1] * 8, **arguments).load_state_dict(torch.load(file, weights_only=True))
