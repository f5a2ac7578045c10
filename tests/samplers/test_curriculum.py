"""Samplers that use the difficulty of each example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import BatchSampler, create
from hpo_mab.samplers._registry import SAMPLERS
from hpo_mab.samplers._selective import CurriculumSampler, easiest

LABELS = torch.arange(120) % 3
#: The first examples are the easiest.
DIFFICULTY = torch.arange(120) / 120


def _drawn(sampler: BatchSampler, batches: int) -> Tensor:
    found = []
    for _ in range(batches):
        found.append(sampler.draw())
        sampler.update(torch.rand(sampler.batch_size))
    return torch.cat(found)


def _curriculum(**options: Any) -> CurriculumSampler:
    return CurriculumSampler(LABELS, **{"batch_size": 12, "difficulty": DIFFICULTY, **options})


def test_easy_examples_first_and_all_later() -> None:
    sampler = _curriculum(start=0.6, end=0.5)
    first = _drawn(sampler, 12)
    # Two whole passes over the easiest 60% of each class.
    assert first.bincount(minlength=120).tolist() == [2] * 72 + [0] * 48
    sampler.draw()
    sampler.update(torch.rand(12))
    sampler.set_progress(0.49)
    assert int(_drawn(sampler, 3).max()) < 72
    sampler.set_progress(0.5)
    assert _drawn(sampler, 10).bincount(minlength=120).tolist() == [1] * 120


def test_the_hardest_are_left_out_throughout() -> None:
    sampler = _curriculum(start=1.0, trim=0.1)
    assert sorted(_drawn(sampler, 9).tolist()) == list(range(108))
    sampler.set_progress(0.9)
    assert int(_drawn(sampler, 90).max()) == 107


def test_each_class_keeps_its_share() -> None:
    # One class is harder than the others.
    found = easiest(DIFFICULTY + (LABELS == 1), LABELS, share=0.25)
    assert LABELS[found].bincount().tolist() == [10, 10, 10]
    assert easiest(DIFFICULTY, LABELS, share=0.0).tolist() == [0, 1, 2]


def test_without_a_difficulty_draws_are_those_of_uniform_sampling() -> None:
    one = create("curriculum", LABELS, batch_size=7, seed=3, start=0.5, trim=0.2)
    other = create("uniform", LABELS, batch_size=7, seed=3)
    for share in np.linspace(0, 1, 60):
        one.set_progress(share)
        assert one.draw().tolist() == other.draw().tolist()
        one.discard()
        other.discard()


def test_a_state_continues_within_the_easy_part() -> None:
    sampler = _curriculum()
    _drawn(sampler, 4)
    state = sampler.state_dict()
    other = _curriculum().load_state_dict(state)
    for share in (0.4, 0.6, 0.7):
        sampler.set_progress(share)
        other.set_progress(share)
        assert _drawn(sampler, 2).tolist() == _drawn(other, 2).tolist()


def test_unknown_difficulty_is_the_mean() -> None:
    known = DIFFICULTY.clone()
    known[::2] = torch.nan
    sampler = _curriculum(difficulty=known, start=0.25)
    drawn = set(_drawn(sampler, 10).tolist())
    assert {1, 3, 5} <= drawn
    assert not drawn & {0, 2, 4, 119}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, r"start must be in \(0, 1\], got 0.0"),
        ({"end": 1.5}, r"end must be in \[0, 1\], got 1.5"),
        ({"trim": 1.0}, r"trim must be in \[0, 1\), got 1.0"),
        ({"difficulty": [1.0, 2.0]}, r"one number an example, \[120\], got \[2\]"),
        ({"difficulty": DIFFICULTY * torch.inf}, "must be finite"),
    ],
)
def test_arguments_outside_their_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        _curriculum(**options)


def test_a_part_smaller_than_a_batch_is_all_examples() -> None:
    assert _drawn(_curriculum(start=0.05), 10).bincount(minlength=120).tolist() == [1] * 120


def test_difficulty_is_no_knob() -> None:
    assert set(SAMPLERS.options("curriculum")) == {"start", "end", "trim"}
    assert create("uniform", LABELS, batch_size=7, difficulty=DIFFICULTY).batch_size == 7


def test_a_first_part_smaller_than_a_batch_has_no_trimmed_example() -> None:
    labels = torch.arange(120) % 2
    difficulty = torch.arange(120).float()
    sampler = CurriculumSampler(labels, batch_size=50, start=0.3, trim=0.1, difficulty=difficulty)
    drawn = torch.cat([sampler.draw() for _ in range(20)])
    assert int(drawn.max()) < 108
