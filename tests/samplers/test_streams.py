"""Streams of passes, tables of examples, weighted choice, scores."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from hpo_mab._errors import ArgumentError
from hpo_mab.samplers._streams import (
    UniformSampler,
    accumulate,
    choose_with_replacement,
    choose_without_replacement,
    make_generator,
    make_table,
    replace,
    true_label_probability,
)


class _Planned(UniformSampler):
    """Passes in random order, each cut to the next of some sizes."""

    _turn = 0.5

    def __init__(self, sizes: list[int], total: int) -> None:
        super().__init__(torch.zeros(total), batch_size=1)
        self.sizes = sizes
        self.plans: list[torch.Tensor] = []

    def _plan(self) -> torch.Tensor:
        size = self.sizes[len(self.plans) % len(self.sizes)]
        self.plans.append(super()._plan()[:size])
        return self.plans[-1]


class _Marked(UniformSampler):
    """Passes in random order whose entries are marked in turn."""

    def _plan(self) -> torch.Tensor:
        order = super()._plan()
        return order + len(order) * (torch.arange(len(order)) % 2)


def test_every_plan_is_taken_whole_and_in_turn() -> None:
    sampler = _Planned([10, 7, 9], 10)
    taken = torch.cat([sampler._take(4) for _ in range(40)])
    start = 0
    for plan in sampler.plans[:-1]:
        part = taken[start : start + len(plan)]
        assert sorted(part.tolist()) == sorted(plan.tolist())
        start += len(plan)
    assert start > 140


def test_straddling_does_not_change_where_examples_come() -> None:
    """Each example is equally likely at each place of the second pass (chi-square, 1e-4)."""
    counts = torch.zeros(7, 7)
    for seed in range(1500):
        sampler = UniformSampler(torch.zeros(7), batch_size=1, seed=seed)
        second = torch.cat([sampler._take(4) for _ in range(4)])[7:14]
        counts[torch.arange(7), second] += 1
    expected = 1500 / 7
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 77.4  # 1 - 1e-4 quantile, 36 degrees of freedom.


def test_plans_shorter_than_a_batch() -> None:
    sampler = _Planned([3, 2], 10)
    batches = [sampler._take(8) for _ in range(5)]
    assert [len(batch) for batch in batches] == [8] * 5
    taken = torch.cat(batches)
    assert set(taken.tolist()) <= set(torch.cat(sampler.plans).tolist())


def test_marked_entries_count_as_their_example() -> None:
    sampler = _Marked(torch.zeros(5), batch_size=1)
    for _ in range(60):
        assert len({entry % 5 for entry in sampler._take(3).tolist()}) == 3


def test_where_plans_change_the_rest_is_dropped() -> None:
    sampler = _Planned([10], 10)
    sampler._take(3)
    sampler.set_progress(0.5)
    assert sampler._take(10).tolist() == sampler.plans[1].tolist()


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_a_share_out_of_its_bound_is_refused_and_drops_nothing(share: float) -> None:
    sampler = _Planned([10], 10)
    sampler._take(3)
    with pytest.raises(ArgumentError, match=rf"share must be in \[0, 1\], got {share}"):
        sampler.set_progress(share)
    assert sampler._take(7).tolist() == sampler.plans[0][3:].tolist()


def test_a_deleted_sampler_frees_its_memory_at_once() -> None:
    sampler = UniformSampler(torch.zeros(5), batch_size=1)
    deleted = weakref.ref(sampler)
    del sampler
    assert deleted() is None


POSITIONS = torch.tensor([2, 0, 2, 3])
KEEP = torch.tensor([True, True, True, False])


def _table(value: float) -> torch.Tensor:
    return make_table(4, value, dtype=torch.float32, device=torch.device("cpu"))


def test_remember_keeps_the_largest_of_a_batch_and_forgets_the_past() -> None:
    table = _table(9.0)
    replace(table, POSITIONS, torch.tensor([5.0, 1.0, 4.0, math.nan]), keep=KEEP)
    assert table[:4].tolist() == [1.0, 9.0, 5.0, 9.0]


def test_accumulate_adds_each_time() -> None:
    table = _table(1.0)
    accumulate(table, POSITIONS, torch.tensor([5.0, 1.0, 4.0, math.inf]), keep=KEEP)
    assert table[:4].tolist() == [2.0, 1.0, 10.0, 1.0]


WEIGHTS = torch.tensor([0.5, 3.0, 0.1, 1.4, 2.0])


def test_with_replacement_follows_the_weights() -> None:
    """Chi-square at level 1e-3."""
    positions, probability = choose_with_replacement(WEIGHTS, 50_000, generator=make_generator(0))
    expected = WEIGHTS.double() / WEIGHTS.double().sum()
    torch.testing.assert_close(probability.double(), expected[positions], rtol=1e-5, atol=0)
    counts = torch.bincount(positions, minlength=5).numpy()
    assert stats.chisquare(counts, expected.numpy() * 50_000).pvalue > 1e-3


@pytest.mark.parametrize("weights", [torch.zeros(4), torch.full((4,), 1e-30)])
def test_equal_weights_are_uniform(weights: torch.Tensor) -> None:
    positions, probability = choose_with_replacement(weights, 4000, generator=make_generator(0))
    assert torch.equal(probability, torch.full((4000,), 0.25))
    assert stats.chisquare(torch.bincount(positions, minlength=4).numpy()).pvalue > 1e-3


def test_zero_weight_keeps_a_chance_that_is_reported() -> None:
    weights = torch.tensor([0.0, 1.0])
    positions, probability = choose_with_replacement(weights, 2**16, generator=make_generator(0))
    assert float(probability[positions == 1][0]) == pytest.approx(1 / (1 + 2**-24))


def test_without_replacement_is_numpys_law() -> None:
    """Ordered pairs against the product of conditional probabilities, chi-square at 1e-3."""
    generator = make_generator(0)
    shares = (WEIGHTS.double() / WEIGHTS.double().sum()).numpy()
    expected = np.array(
        [
            [0 if i == j else shares[i] * shares[j] / (1 - shares[i]) for j in range(5)]
            for i in range(5)
        ]
    )
    counts = np.zeros((5, 5))
    for _ in range(20_000):
        i, j = choose_without_replacement(WEIGHTS, 2, generator=generator).tolist()
        counts[i, j] += 1
    off = ~np.eye(5, dtype=bool)
    assert counts[~off].sum() == 0
    assert stats.chisquare(counts[off], expected[off] * 20_000).pvalue > 1e-3


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-3.0, 4.0, 0.0]])
TARGETS = torch.tensor([0, 2, 0])


def test_probability_from_logits_and_from_the_loss_agree() -> None:
    losses = F.cross_entropy(LOGITS, TARGETS, reduction="none")
    from_losses = true_label_probability(losses, None, TARGETS)
    from_logits = true_label_probability(losses, LOGITS, TARGETS)
    torch.testing.assert_close(from_losses, from_logits)
    assert float(from_logits[1]) == pytest.approx(1 / 3)


def test_logits_win_under_label_smoothing() -> None:
    losses = F.cross_entropy(LOGITS, TARGETS, reduction="none", label_smoothing=0.3)
    probability = true_label_probability(losses, LOGITS, TARGETS)
    assert float(probability[1]) == pytest.approx(1 / 3)


def test_probability_is_nan_where_the_loss_is_not_finite() -> None:
    losses = torch.tensor([math.nan, math.inf, 0.0])
    for logits in (None, LOGITS):
        assert torch.isnan(true_label_probability(losses, logits, TARGETS)).tolist() == [
            True,
            True,
            False,
        ]
