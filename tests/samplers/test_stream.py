"""Batches cut from one pass after another."""

from __future__ import annotations

import torch

from hpo_mab.samplers._generator import make_generator
from hpo_mab.samplers._stream import PlanStream


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
