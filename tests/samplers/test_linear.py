"""The linear samplers: features, online ridge regression, draws."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import Ridge

from hpo_mab.samplers import ContextualSampler, ImponSampler
from hpo_mab.samplers._linear import FeatureTable, OnlineRidge
from hpo_mab.samplers._streams import make_generator

LABELS = torch.tensor([0, 1, 0, 1])


def _log(value: float, scale: float) -> float:
    return math.log1p(value) / scale


def test_features_by_hand() -> None:
    table = FeatureTable(LABELS)
    keep = torch.tensor([True, True])
    first = torch.tensor([0, 1])
    table.drawn(first)
    table.learn(first, torch.tensor([0.5, -0.5]), keep=keep)
    again = torch.tensor([0, 3])
    table.drawn(again)
    table.learn(again, torch.tensor([1.5, math.nan]), keep=torch.tensor([True, False]))
    table.drawn(torch.tensor([2]))
    # [bias, unseen, level, visits, age, class level]; class 0: (0.5 + 1.5) / 3, class 1: -0.5 / 2.
    expected = [
        [1, 0, 1.5, _log(2, 4), _log(1, 8), 2 / 3],
        [1, 0, -0.5, _log(1, 4), _log(2, 8), -1 / 4],
        [1, 1, 0.0, 0.0, _log(0, 8), 2 / 3],
        [1, 1, 0.0, 0.0, _log(1, 8), -1 / 4],
    ]
    torch.testing.assert_close(table.read(torch.arange(4)), torch.tensor(expected))


def test_reading_changes_nothing() -> None:
    table = FeatureTable(LABELS)
    table.drawn(torch.tensor([1]))
    first = table.read(torch.arange(4))
    assert torch.equal(first, table.read(torch.arange(4)))


CPU = torch.device("cpu")
KEEP = torch.ones(8, dtype=torch.bool)


def _data(batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batches, 8, 3, generator=generator)
    noise = 0.1 * torch.randn(batches, 8, generator=generator)
    return features, features @ torch.tensor([1.0, -2.0, 0.5]) + noise


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_it_is_ridge_regression_on_batches_weighted_by_age(decay: float) -> None:
    features, values = _data(20)
    model = OnlineRidge(3, ridge=2.0, decay=decay, device=CPU)
    for batch, value in zip(features, values, strict=True):
        model.learn(batch, value, keep=KEEP)
    ages = torch.arange(19, -1, -1).repeat_interleave(8)
    reference = Ridge(alpha=2.0, fit_intercept=False).fit(
        features.view(-1, 3), values.view(-1), sample_weight=decay**ages
    )
    torch.testing.assert_close(model.mean(), torch.tensor(reference.coef_).float())


def test_dropped_rows_change_nothing() -> None:
    features, values = _data(2)
    model, reference = (OnlineRidge(3, ridge=1.0, decay=0.9, device=CPU) for _ in range(2))
    keep = KEEP.clone()
    keep[3:] = False
    spoilt = torch.where(keep, values[0], math.nan)
    model.learn(features[0], spoilt, keep=keep)
    reference.learn(features[0, :3], values[0, :3], keep=KEEP[:3])
    model.learn(features[1], torch.full((8,), math.inf), keep=~KEEP)
    torch.testing.assert_close(model.mean(), reference.mean())


def test_samples_have_the_posterior_mean_and_covariance() -> None:
    """Empirical moments of 40,000 draws; errors are about 1 / 200 of a deviation."""
    features, values = _data(1)
    model = OnlineRidge(3, ridge=1.0, decay=1.0, device=CPU)
    model.learn(features[0], values[0], keep=KEEP)
    draws = model.sample(40_000, scale=0.7, generator=make_generator(0))
    precision = torch.eye(3) + features[0].T @ features[0]
    covariance = 0.49 * torch.linalg.inv(precision)
    deviation = covariance.diagonal().sqrt()
    assert bool(((draws.mean(0) - model.mean()).abs() < 0.025 * deviation).all())
    torch.testing.assert_close(
        torch.cov(draws.T), covariance, rtol=0, atol=0.03 * float(deviation.max()) ** 2
    )


CONTEXTUAL_LABELS = torch.arange(400) % 10


def _run(sampler: ContextualSampler | ImponSampler, hard: torch.Tensor) -> float:
    """Share of hard examples among the last 100 of 200 batches; their loss is 3, others' 0.3."""
    noise = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        indices = sampler.draw()
        losses = torch.where(hard[indices], 3.0, 0.3)
        sampler.update(losses * (1 + 0.2 * torch.rand(len(indices), generator=noise)))
        found.append(hard[indices].float().mean())
    return float(torch.stack(found[100:]).mean())


@pytest.fixture(params=["class", "scattered"])
def hard(request: pytest.FixtureRequest) -> torch.Tensor:
    """A tenth of the examples: one whole class, or four of each class."""
    if request.param == "class":
        return CONTEXTUAL_LABELS == 3
    return torch.arange(400) % 100 < 10


def test_contextual_draws_rewarded_examples_more(hard: torch.Tensor) -> None:
    """Eight candidates hold a hard one with probability 0.57; the floor takes a tenth."""
    sampler = ContextualSampler(CONTEXTUAL_LABELS, batch_size=20)
    assert _run(sampler, hard) > 0.3
    assert sampler.statistics()["reward_rate"] > 0.2
    sampler.draw()
    sampler.update(torch.full((20,), math.nan))
    assert "reward_rate" not in sampler.statistics()  # None of these losses is judged.


def test_impon_draws_predicted_losses_more(hard: torch.Tensor) -> None:
    """In proportion to the loss, with smoothing 0.5: (3 + 0.285) / (10 * 0.855) = 0.38."""
    assert _run(ImponSampler(CONTEXTUAL_LABELS, batch_size=20), hard) == pytest.approx(
        0.38, abs=0.08
    )


def test_one_candidate_or_full_floor_is_uniform() -> None:
    for knobs in ({"candidates": 1}, {"floor": 1.0}):
        sampler = ContextualSampler(CONTEXTUAL_LABELS, batch_size=20, **knobs)
        assert _run(sampler, CONTEXTUAL_LABELS == 3) == pytest.approx(0.1, abs=0.03)


def test_contextual_batches_hold_no_example_twice() -> None:
    sampler = ContextualSampler(CONTEXTUAL_LABELS[:100], batch_size=30)
    assert sampler.candidates == 3  # As many as there are examples for.
    for _ in range(100):
        indices = sampler.draw()
        sampler.update(torch.rand(30, generator=torch.Generator().manual_seed(0)))
        assert len(set(indices.tolist())) == 30


def test_contextual_forgets() -> None:
    """After the signal moves to another class, so do the draws."""
    sampler = ContextualSampler(CONTEXTUAL_LABELS, batch_size=20, decay=0.95)
    assert _run(sampler, CONTEXTUAL_LABELS == 3) > 0.3
    assert _run(sampler, CONTEXTUAL_LABELS == 7) > 0.25


def test_impon_weights_are_inverse_probabilities_over_candidates() -> None:
    """All examples candidates with equal chances: the mean weight of a draw is about 1."""
    sampler = ImponSampler(CONTEXTUAL_LABELS, batch_size=20)
    _run(sampler, CONTEXTUAL_LABELS == 3)
    means = []
    for _ in range(200):
        indices = sampler.draw()
        means.append(sampler.update(torch.ones(20)))
        assert len(indices) == 20
    mean = torch.stack(means)
    assert float(mean.std()) > 0
    assert float(mean.mean()) == pytest.approx(1, abs=4.5 * float(mean.std()) / 200**0.5)
    unweighted = ImponSampler(CONTEXTUAL_LABELS, batch_size=20, weighted=False)
    unweighted.draw()
    assert float(unweighted.update(torch.arange(20.0))) == 9.5


@pytest.mark.parametrize("kind", [ContextualSampler, ImponSampler])
def test_a_loop_s_autocast_changes_no_draw(kind: type[ContextualSampler]) -> None:
    drawn: list[list[torch.Tensor]] = []
    for enabled in (False, True):
        sampler = kind(torch.arange(40) % 4, batch_size=8, seed=1)
        batches = []
        for _ in range(60):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                indices = sampler.draw()
                batches.append(indices)
                losses = indices.float().sin() + 1
                logits = torch.stack([losses, -losses, losses, losses], dim=1)
                sampler.update(losses, logits=logits)
        drawn.append(batches)
    assert torch.equal(torch.stack(drawn[0]), torch.stack(drawn[1]))
