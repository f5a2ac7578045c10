"""Uniform sampling."""

from __future__ import annotations

import torch

from hpo_mab.samplers import UniformSampler


def test_each_example_once_every_n_draws() -> None:
    sampler = UniformSampler(torch.zeros(23), batch_size=5, seed=1)
    taken = torch.cat([sampler.draw() for _ in range(46)])
    for start in range(0, 230, 23):
        assert sorted(taken[start : start + 23].tolist()) == list(range(23))


def test_no_batch_holds_an_example_twice() -> None:
    sampler = UniformSampler(torch.zeros(23), batch_size=20, seed=1)
    for _ in range(100):
        assert len(set(sampler.draw().tolist())) == 20


def test_passes_differ() -> None:
    sampler = UniformSampler(torch.zeros(64), batch_size=64)
    assert not torch.equal(sampler.draw(), sampler.draw())


def test_ranks_do_not_share_a_stream() -> None:
    first, second = (
        UniformSampler(torch.zeros(40), batch_size=20, rank=rank, world_size=2) for rank in range(2)
    )
    order_of_first = torch.searchsorted(first.examples, first.draw())
    order_of_second = torch.searchsorted(second.examples, second.draw())
    assert not torch.equal(order_of_first, order_of_second)


def test_ranks_with_different_seeds_split_the_examples() -> None:
    ranks = [
        UniformSampler(torch.arange(40) % 3, batch_size=4, seed=rank, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert sorted(torch.cat([rank.examples for rank in ranks]).tolist()) == list(range(40))


def test_update_is_the_plain_mean() -> None:
    sampler = UniformSampler(torch.zeros(8), batch_size=4)
    sampler.draw()
    assert float(sampler.update(torch.tensor([1.0, 2.0, 3.0, 6.0]))) == 3.0
