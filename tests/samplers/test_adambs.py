"""Bandit sampling of Liu et al.: distribution and weights."""

from __future__ import annotations

import math

import pytest
import torch

from hpo_mab.samplers import AdamBSSampler

LABELS = torch.arange(30) % 2


def _logits(indices: torch.Tensor) -> torch.Tensor:
    """Every tenth example is badly wrong, the others right."""
    margin = torch.where(indices % 10 == 0, -3.0, 3.0)
    return margin[:, None] * torch.nn.functional.one_hot(LABELS[indices], 2)


def _squares(indices: torch.Tensor) -> torch.Tensor:
    truth = torch.nn.functional.one_hot(LABELS[indices], 2)
    return (torch.softmax(_logits(indices), 1) - truth).square().sum(1)


def _step(sampler: AdamBSSampler) -> torch.Tensor:
    indices = sampler.draw()
    sampler.update(torch.ones(len(indices)), logits=_logits(indices))
    return indices


def test_first_step_by_hand() -> None:
    sampler = AdamBSSampler(LABELS, batch_size=6, step=0.5, floor=0.01)
    indices = _step(sampler)
    ratios = torch.ones(30)
    for index, square in zip(indices.tolist(), _squares(indices).tolist(), strict=True):
        ratios[index] *= math.exp(min(1.0, 0.5 * square / 2))
    torch.testing.assert_close(sampler.probabilities(), ratios / ratios.sum())


def test_probabilities_sum_to_one_and_keep_the_floor() -> None:
    sampler = AdamBSSampler(LABELS, batch_size=6, step=4.0, floor=0.5)
    for _ in range(300):
        _step(sampler)
        probabilities = sampler.probabilities()
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
        assert float(probabilities.min()) >= 0.5 / 30 * 0.97
    assert float(probabilities.min()) == pytest.approx(0.5 / 30, rel=0.03)
    assert float(probabilities.max()) > 2 / 30


def test_weights_are_inverse_probabilities() -> None:
    sampler = AdamBSSampler(LABELS, batch_size=6)
    for _ in range(50):
        _step(sampler)
    probabilities = sampler.probabilities()
    indices = sampler.draw()
    losses = torch.rand(6, generator=torch.Generator().manual_seed(0))
    loss = sampler.update(losses, logits=_logits(indices))
    expected = (losses / (30 * probabilities[indices])).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    assert float(probabilities.max() / probabilities.min()) > 2


def test_settles_where_probability_is_proportional_to_the_gradient_norm() -> None:
    """The variance-minimising point, within the floor."""
    sampler = AdamBSSampler(LABELS, batch_size=6, step=0.3, floor=0.05)
    norms = torch.where(torch.arange(30) < 10, 1.2, 0.6)
    learned = torch.zeros(30)
    for step in range(1200):
        indices = sampler.draw()
        # Two classes: the bound is sqrt(2) (1 - p) at p(true) = sigmoid(margin).
        probability = 1 - norms[indices] / math.sqrt(2)
        margin = torch.log(probability / (1 - probability))
        logits = margin[:, None] * torch.nn.functional.one_hot(LABELS[indices], 2)
        sampler.update(torch.ones(6), logits=logits)
        if step >= 400:
            learned += sampler.probabilities()
    ratio = float(learned[:10].mean() / learned[10:].mean())
    assert ratio == pytest.approx(2.0, rel=0.1)


def test_step_of_zero_and_floor_of_one_are_uniform() -> None:
    for knobs in ({"step": 0.0}, {"floor": 1.0}):
        sampler = AdamBSSampler(LABELS, batch_size=6, **knobs)
        for _ in range(20):
            _step(sampler)
        torch.testing.assert_close(sampler.probabilities(), torch.full((30,), 1 / 30))


@pytest.mark.parametrize(("name", "value"), [("step", -1.0), ("floor", 0.0), ("floor", 1.5)])
def test_refuses_knobs_outside_their_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        AdamBSSampler(LABELS, batch_size=4, **{name: value})
