"""Prediction variance against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hpo_mab.samplers import PredictionVarianceSampler

#: Probabilities of the true label, by example; example 3 is seen once.
HISTORY = {0: [0.2, 0.4, 0.9], 1: [0.5, 0.5], 2: [0.1, 0.7], 3: [0.3]}


def _after_history(**knobs: float) -> PredictionVarianceSampler:
    sampler = PredictionVarianceSampler(torch.zeros(4), batch_size=1, **knobs)  # type: ignore[arg-type]
    left = {index: list(values) for index, values in HISTORY.items()}
    while any(left.values()):
        (index,) = sampler.draw().tolist()
        loss = -math.log(left[index].pop()) if left[index] else math.nan
        sampler.update(torch.tensor([loss]))
    return sampler


def _scores() -> torch.Tensor:
    scores = []
    for index in range(3):
        variance = float(torch.tensor(HISTORY[index]).var())
        scores.append(math.sqrt(variance + variance**2 / (len(HISTORY[index]) - 1)))
    return torch.tensor([*scores, max(scores)])  # Too few visits: the largest.


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_probabilities(smoothing: float) -> None:
    scores = _scores() + smoothing * _scores().mean()
    torch.testing.assert_close(
        _after_history(smoothing=smoothing).probabilities(),
        scores / scores.sum(),
        atol=2e-4,  # float32 sums of squares.
        rtol=0,
    )


def test_weight_form_shuffles_and_weights_with_mean_one() -> None:
    sampler = PredictionVarianceSampler(torch.zeros(6), batch_size=6, form="weight")
    answers = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert sorted(sampler.draw().tolist()) == list(range(6))
        sampler.update(torch.rand(6, generator=answers))
    expected = 6 * sampler.probabilities()
    indices = sampler.draw()
    losses = torch.rand(6, generator=answers)
    loss = sampler.update(losses)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(loss, (expected[indices] * losses).mean())


def test_sample_form_prefers_the_undecided() -> None:
    sampler = PredictionVarianceSampler(torch.zeros(10), batch_size=5)
    counts = torch.zeros(10)
    for step in range(600):
        indices = sampler.draw()
        if step >= 100:
            counts += torch.bincount(indices, minlength=10)
        swinging = torch.tensor([0.1, 2.3])[step % 2]
        sampler.update(torch.where(indices == 4, swinging, 0.7))
    share = float(counts[4] / counts.sum())
    assert share == pytest.approx(float(sampler.probabilities()[4]), abs=0.05)
    assert share > 0.4


def test_refuses_an_unknown_form() -> None:
    with pytest.raises(ValueError, match=r"Unknown form 'weights'\. Did you mean 'weight'"):
        PredictionVarianceSampler([0, 1], batch_size=1, form="weights")  # type: ignore[arg-type]
