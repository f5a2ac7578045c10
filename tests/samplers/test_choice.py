"""Weighted random choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from hpo_mab.samplers._choice import choose_with_replacement, choose_without_replacement
from hpo_mab.samplers._generator import make_generator

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
