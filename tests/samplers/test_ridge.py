"""Online ridge regression."""

from __future__ import annotations

import math

import torch
from sklearn.linear_model import Ridge

from hpo_mab.samplers._generator import make_generator
from hpo_mab.samplers._ridge import OnlineRidge

CPU = torch.device("cpu")
KEEP = torch.ones(8, dtype=torch.bool)


def _data(batches: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batches, 8, 3, generator=generator)
    noise = 0.1 * torch.randn(batches, 8, generator=generator)
    return features, features @ torch.tensor([1.0, -2.0, 0.5]) + noise


def test_without_forgetting_it_is_ridge_regression() -> None:
    features, values = _data(20)
    model = OnlineRidge(3, ridge=2.0, decay=1.0, device=CPU)
    for batch, value in zip(features, values, strict=True):
        model.learn(batch, value, keep=KEEP)
    reference = Ridge(alpha=2.0, fit_intercept=False).fit(features.view(-1, 3), values.view(-1))
    torch.testing.assert_close(model.mean(), torch.tensor(reference.coef_).float())


def test_forgetting_weights_batches_by_age() -> None:
    features, values = _data(20)
    model = OnlineRidge(3, ridge=2.0, decay=0.9, device=CPU)
    for batch, value in zip(features, values, strict=True):
        model.learn(batch, value, keep=KEEP)
    ages = torch.arange(19, -1, -1).repeat_interleave(8)
    reference = Ridge(alpha=2.0, fit_intercept=False).fit(
        features.view(-1, 3), values.view(-1), sample_weight=0.9**ages
    )
    torch.testing.assert_close(model.mean(), torch.tensor(reference.coef_).float())


def test_dropped_rows_leave_no_trace() -> None:
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
