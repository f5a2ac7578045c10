"""Uniform sampling."""

from __future__ import annotations

import torch

from hpo_mab.samplers import UniformSampler
from hpo_mab.samplers._uniform import PlanStream, make_generator


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


def test_update_is_the_plain_mean() -> None:
    sampler = UniformSampler(torch.zeros(8), batch_size=4)
    sampler.draw()
    assert float(sampler.update(torch.tensor([1.0, 2.0, 3.0, 6.0]))) == 3.0


def _stream(sizes: list[int], total: int) -> tuple[PlanStream, list[torch.Tensor]]:
    """A stream over random subsets of the given sizes, and the plans it made."""
    generator = make_generator(0)
    plans: list[torch.Tensor] = []

    def plan() -> torch.Tensor:
        plans.append(torch.randperm(total, generator=generator)[: sizes[len(plans) % len(sizes)]])
        return plans[-1]

    return PlanStream(plan, num_labels=total, generator=generator), plans


def test_every_plan_is_taken_whole_and_in_turn() -> None:
    stream, plans = _stream([10, 7, 9], 10)
    taken = torch.cat([stream.take(4) for _ in range(40)])
    start = 0
    for plan in plans[:-1]:
        part = taken[start : start + len(plan)]
        assert sorted(part.tolist()) == sorted(plan.tolist())
        start += len(plan)
    assert start > 140


def test_straddling_batches_hold_nothing_twice() -> None:
    stream, _ = _stream([11], 11)
    for _ in range(200):
        assert len(set(stream.take(5).tolist())) == 5


def test_straddling_does_not_change_where_examples_come() -> None:
    """Each example is equally likely at each place of the second pass (chi-square, 1e-4)."""
    counts = torch.zeros(7, 7)
    for seed in range(1500):
        generator = make_generator(seed)
        stream = PlanStream(
            lambda g=generator: torch.randperm(7, generator=g), num_labels=7, generator=generator
        )
        second = torch.cat([stream.take(4) for _ in range(4)])[7:14]
        counts[torch.arange(7), second] += 1
    expected = 1500 / 7
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 77.4  # 1 - 1e-4 quantile, 36 degrees of freedom.


def test_plans_shorter_than_a_batch() -> None:
    stream, plans = _stream([3, 2], 10)
    batches = [stream.take(8) for _ in range(5)]
    assert [len(batch) for batch in batches] == [8] * 5
    taken = torch.cat(batches)
    assert set(taken.tolist()) <= set(torch.cat(plans).tolist())


def test_marked_entries_count_as_their_example() -> None:
    generator = make_generator(0)
    stream = PlanStream(
        lambda: torch.randperm(5, generator=generator) + 5 * (torch.arange(5) % 2),
        num_labels=5,
        generator=generator,
    )
    for _ in range(60):
        assert len({entry % 5 for entry in stream.take(3).tolist()}) == 3


def test_restart_drops_the_rest() -> None:
    stream, plans = _stream([10], 10)
    stream.take(3)
    stream.restart()
    assert sorted(stream.take(10).tolist()) == list(range(10))
    assert len(plans) == 2
