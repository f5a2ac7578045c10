"""Samplers of PyTorch's interface, as batch samplers of ours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, Sampler

from hpo_mab import samplers
from hpo_mab._errors import ArgumentError
from hpo_mab.samplers._foreign import ForeignSampler

LABELS = torch.arange(50) % 5


class Epochs(Sampler[int]):
    """The examples in order, from the number of the epoch on."""

    def __init__(self, data_source: torch.Tensor, *, first: int = 0) -> None:
        self._size = len(data_source)
        self._epoch = first

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._epoch, self._size))


def batches(labels: torch.Tensor, batch_size: int, *, drop_last: bool = False) -> BatchSampler:
    return BatchSampler(RandomSampler(labels), batch_size, drop_last)


def _draws(sampler: samplers.BatchSampler, count: int) -> list[list[int]]:
    drawn = [sampler.draw().tolist() for _ in range(count)]
    for _ in drawn:
        sampler.discard()
    return drawn


def test_indices_are_cut_into_batches_across_passes() -> None:
    sampler = samplers.create(Epochs, LABELS[:10], batch_size=4)
    assert _draws(sampler, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 1, 2], [3, 4, 5, 6]]


def test_a_short_batch_at_the_end_of_a_pass_is_left_out() -> None:
    sampler = samplers.create(batches, LABELS, batch_size=16, seed=1)
    drawn = _draws(sampler, 6)
    assert {len(batch) for batch in drawn} == {16}
    assert len({index for batch in drawn[:3] for index in batch}) == 48


def test_what_it_draws_follows_from_its_seed_alone() -> None:
    def drawn(seed: int, *, disturb: bool) -> list[list[int]]:
        sampler = samplers.create(batches, LABELS, batch_size=8, seed=seed)
        found = []
        for _ in range(20):
            if disturb:
                torch.rand(3)
            found += _draws(sampler, 1)
        return found

    before = torch.get_rng_state()
    assert drawn(1, disturb=False) == drawn(1, disturb=True) != drawn(2, disturb=False)
    torch.set_rng_state(before)
    samplers.create(batches, LABELS, batch_size=8, seed=5).draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_pytorchs_foreign_samplers_have_names() -> None:
    sampler = samplers.create("torch.utils.data:RandomSampler", LABELS, batch_size=10, seed=2)
    assert isinstance(sampler, ForeignSampler)
    assert sorted(index for batch in _draws(sampler, 5) for index in batch) == list(range(50))


def test_a_function_may_pass_its_arguments_on_to_a_sampler_of_ours() -> None:
    def make(labels: torch.Tensor, **arguments: Any) -> samplers.BatchSampler:
        return samplers.MABSampler(labels, **arguments)

    sampler = samplers.create(make, LABELS, batch_size=8, seed=3, floor=0.1)
    assert isinstance(sampler, samplers.MABSampler)
    assert (sampler.seed, sampler.settings.floor) == (3, 0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: 3, "must be an iterable of indices or of batches of them, got int"),
        (lambda: [], "must draw batches of 8 indices, got 0"),
        (lambda batch_size: [[1, 2]], "must draw batches of 8 indices, got 2"),
        (lambda: [list(range(9))], "must draw batches of 8 indices, got 9"),
        (lambda batch_size: [[50] * batch_size], r"must draw indices in \[0, 49\], got 50 to 50"),
        (lambda batch_size: [[-1] * batch_size], r"must draw indices in \[0, 49\], got -1 to -1"),
        (lambda batch_size: [[0.5] * batch_size], "must draw integers, got torch.float32"),
        (lambda batch_size: [["a"] * batch_size], "must draw integers: too many dimensions"),
        (lambda: [[[1, 2], [3]] * 4], "must draw integers: expected sequence of length 2"),
    ],
)
def test_what_is_no_batch_of_examples_is_refused_at_once(
    make: Callable[..., Any], words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        samplers.create(make, LABELS, batch_size=8)


def test_only_the_last_batch_of_a_pass_may_be_short() -> None:
    sampler = samplers.create(lambda: [[1] * 8, [1] * 7, [1] * 8], LABELS, batch_size=8)
    sampler.draw()
    with pytest.raises(ArgumentError, match="got 7; only the last batch"):
        sampler.draw()


def test_no_batch_may_be_too_large() -> None:
    sampler = samplers.create(lambda: [[1] * 8, [1] * 9], LABELS, batch_size=8)
    sampler.draw()
    with pytest.raises(ArgumentError, match="got 9"):
        sampler.draw()
    # An endless pass has no end at which its batches could be judged.
    with pytest.raises(ArgumentError, match="got 9"):
        samplers.create(lambda: itertools.repeat([1] * 9), LABELS, batch_size=8)


def test_a_sampler_that_can_be_read_once_is_refused_when_it_ends() -> None:
    once = iter([[1] * 8])
    sampler = samplers.create(lambda: once, LABELS, batch_size=8)
    sampler.draw()
    with pytest.raises(ArgumentError, match="must draw batches of 8 indices, got 0"):
        sampler.draw()


def test_a_state_of_other_options_is_refused() -> None:
    one = samplers.create(RandomSampler, LABELS, batch_size=8, replacement=True)
    state = one.state_dict()
    samplers.create(RandomSampler, LABELS, batch_size=8, replacement=True).load_state_dict(state)
    with pytest.raises(ArgumentError, match=r"options is .*True.* there and .*False.* here"):
        samplers.create(RandomSampler, LABELS, batch_size=8, replacement=False).load_state_dict(
            state
        )
