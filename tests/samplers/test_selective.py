"""InfoBatch and hard mining: what is skipped, weighted and chosen."""

from __future__ import annotations

import math

import pytest
import torch

from hpo_mab import samplers
from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import HardMiningSampler, InfoBatchSampler

#: Mean 2.8: examples 0 to 5 are below, 6 to 9 are not.
LOSSES = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6, 2.4, 3.0, 5.0, 6.5, 8.0])


def _pass_sums(sampler: InfoBatchSampler, passes: int) -> torch.Tensor:
    """Weight that each example got in each full pass, float [passes, 10]; 0 where skipped."""
    sums = []
    weights = torch.zeros(10)
    drawn = torch.zeros(10, dtype=torch.bool)
    while len(sums) < passes:
        (index,) = sampler.draw().tolist()
        assert not drawn[index]
        losses = LOSSES[[index]].clone().requires_grad_()
        sampler.update(losses).backward()
        assert losses.grad is not None
        weights[index] = losses.grad[0]
        drawn[index] = True
        if not len(sampler._order):
            sums.append(weights)
            weights, drawn = torch.zeros(10), torch.zeros(10, dtype=torch.bool)
    return torch.stack(sums)


def test_first_pass_is_whole() -> None:
    sampler = InfoBatchSampler(torch.zeros(10), batch_size=1)
    assert _pass_sums(sampler, 1).tolist() == [[1.0] * 10]


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_skips_and_scales_the_well_learned_only(ratio: float) -> None:
    sampler = InfoBatchSampler(torch.zeros(10), batch_size=1, ratio=ratio)
    weights = _pass_sums(sampler, 200)[1:]
    assert bool((weights[:, 6:] == 1).all())
    low = weights[:, :6]
    assert low.unique().tolist() == pytest.approx([0.0, 1 / (1 - ratio)])
    skipped = float((low == 0).float().mean())
    assert skipped == pytest.approx(ratio, abs=4.5 * (ratio * (1 - ratio) / low.numel()) ** 0.5)


def test_straddling_batches_keep_the_weights_of_their_pass() -> None:
    """A mean over many straddling batches, weighted, is that of the expectation by pass."""
    sampler = InfoBatchSampler(torch.zeros(10), batch_size=7, ratio=0.5)
    for _ in range(10):
        sampler.update(LOSSES[sampler.draw()])
    total, count = torch.zeros(10), 0
    for _ in range(1200):
        indices = sampler.draw()
        losses = LOSSES[indices].clone().requires_grad_()
        sampler.update(losses).backward()
        assert losses.grad is not None
        total.index_add_(0, indices, losses.grad * 7)
        count += 7
    shares = total / total[6:].mean()
    torch.testing.assert_close(shares, torch.ones(10), atol=0.1, rtol=0)


def test_full_passes_at_the_end_of_the_budget() -> None:
    sampler = InfoBatchSampler(torch.zeros(10), batch_size=1, delta=0.75)
    _pass_sums(sampler, 5)
    sampler.draw()
    sampler.update(torch.ones(1))
    sampler.set_progress(0.74)
    sampler.set_progress(0.75)
    assert _pass_sums(sampler, 3).tolist() == [[1.0] * 10] * 3


def test_nothing_is_skipped_where_delta_is_0() -> None:
    sampler = InfoBatchSampler(torch.zeros(10), batch_size=1, delta=0.0)
    assert _pass_sums(sampler, 3).tolist() == [[1.0] * 10] * 3


def test_hard_mining_trains_on_the_half_of_its_candidates_that_the_network_finds_hardest() -> None:
    labels = torch.arange(64) % 2
    sampler = HardMiningSampler(labels, batch_size=8, seed=3)
    asked: list[torch.Tensor] = []

    def scorer(indices: torch.Tensor) -> torch.Tensor:
        """Logits whose cross-entropy rises with the example's number."""
        asked.append(indices)
        wrong = torch.nn.functional.one_hot(1 - labels[indices], 2)
        return wrong * indices[:, None].float()

    sampler.scorer = scorer
    drawn = torch.cat([sampler.draw() for _ in range(4)])
    candidates = torch.cat(asked)
    # Each example is a candidate once a pass.
    assert candidates.sort().values.tolist() == list(range(64))
    hardest = [part.sort().values[8:] for part in candidates.chunk(4)]
    assert [part.sort().values.tolist() for part in drawn.chunk(4)] == [h.tolist() for h in hardest]


def test_hard_mining_without_a_network_goes_by_the_last_visit() -> None:
    sampler = HardMiningSampler(torch.zeros(8), batch_size=4, seed=1)
    first = sampler.draw()
    sampler.update(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    second = sampler.draw()
    # Those never seen come first.
    assert set(second.tolist()) == set(range(8)) - set(first.tolist())
    sampler.update(torch.tensor([0.1, math.nan, 0.1, 5.0]))
    third = sampler.draw()
    # A loss that is not finite is no visit.
    assert set(third.tolist()) == {*first[[2, 3]].tolist(), *second[[1, 3]].tolist()}


def test_labels_beyond_the_outputs_of_the_scorer_are_named() -> None:
    sampler = samplers.create("hard_mining", [0, 1, 2, 9] * 10, batch_size=4)
    sampler.scorer = lambda indices: torch.zeros(len(indices), 4)
    with pytest.raises(ArgumentError, match="9"):
        sampler.draw()
