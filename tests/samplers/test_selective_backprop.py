"""Selective backpropagation: percentiles, selection, normalisation."""

from __future__ import annotations

import math

import pytest
import torch

from hpo_mab.samplers import SelectiveBackpropSampler


def _kept(sampler: SelectiveBackpropSampler, losses: torch.Tensor) -> torch.Tensor:
    """Answer a draw; the weights that the losses got."""
    sampler.draw()
    losses = losses.clone().requires_grad_()
    sampler.update(losses).backward()
    assert losses.grad is not None
    return losses.grad * len(losses)


def test_keeps_by_percentile_to_the_power_of_beta() -> None:
    """Frequencies against ``(rank / R) ** beta`` over a full history, within 4.5 deviations."""
    sampler = SelectiveBackpropSampler(torch.zeros(8), batch_size=8, beta=2.0, history=8)
    losses = torch.tensor([0.5, 3.0, 1.0, 0.1, 2.0, 7.0, 0.2, 4.0])
    runs = 1000
    kept = torch.stack([_kept(sampler, losses) > 0 for _ in range(runs)]).float().mean(0)
    ranks = losses.argsort().argsort() + 1
    expected = (ranks / 8) ** 2
    error = (expected * (1 - expected) / runs).sqrt()
    assert bool(((kept - expected).abs() <= 4.5 * error + 1e-9).all())


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_share_kept(beta: float) -> None:
    sampler = SelectiveBackpropSampler(torch.zeros(64), batch_size=32, beta=beta)
    answers = torch.Generator().manual_seed(0)
    for _ in range(200):
        sampler.draw()
        sampler.update(torch.rand(32, generator=answers))
    share = sampler.statistics()["reward_rate"]
    assert share == pytest.approx(1 / (1 + beta), abs=0.03)


def test_update_is_the_mean_of_the_kept() -> None:
    sampler = SelectiveBackpropSampler(torch.zeros(16), batch_size=16)
    losses = torch.arange(16.0)
    weights = _kept(sampler, losses)
    kept = weights > 0
    assert 0 < int(kept.sum()) < 16
    torch.testing.assert_close(weights[kept], torch.full((int(kept.sum()),), 16 / kept.sum()))


def test_history_forgets_all_but_the_last() -> None:
    """A loss far below the old ones is at the top of the new ones."""
    sampler = SelectiveBackpropSampler(torch.zeros(4), batch_size=4, beta=50.0, history=8)
    for _ in range(5):
        _kept(sampler, torch.full((4,), 100.0))
    assert _kept(sampler, torch.full((4,), 1.0)).sum() == 0  # Half of the history is higher.
    assert _kept(sampler, torch.full((4,), 1.0)).tolist() == [1.0] * 4


def test_non_finite_losses_enter_neither_batch_nor_history() -> None:
    sampler = SelectiveBackpropSampler(torch.zeros(4), batch_size=4, beta=50.0)
    _kept(sampler, torch.tensor([5.0, math.inf, math.nan, -math.inf]))
    # The history is 5 and these four, so none of them is at the top.
    assert _kept(sampler, torch.full((4,), 1.0)).sum() == 0
    weights = _kept(sampler, torch.tensor([6.0, -math.inf, math.nan, 6.0]))
    assert weights.tolist() == [2.0, 0.0, 0.0, 2.0]


def test_refuses_knobs_outside_their_bounds() -> None:
    with pytest.raises(ValueError, match="beta must be at least 0, got -1"):
        SelectiveBackpropSampler([0, 1], batch_size=1, beta=-1)
    with pytest.raises(ValueError, match="history must be at least 1, got 0"):
        SelectiveBackpropSampler([0, 1], batch_size=1, history=0)
