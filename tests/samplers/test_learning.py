"""Per-example memories."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from hpo_mab.samplers._learning import (
    accumulate,
    choose_with_replacement,
    choose_without_replacement,
    concentration,
    gradient_bound,
    make_memory,
    remember,
    true_label_probability,
)
from hpo_mab.samplers._uniform import make_generator

POSITIONS = torch.tensor([2, 0, 2, 3])
KEEP = torch.tensor([True, True, True, False])


def _memory(value: float) -> torch.Tensor:
    return make_memory(4, value, dtype=torch.float32, device=torch.device("cpu"))


def test_remember_keeps_the_largest_of_a_batch_and_forgets_the_past() -> None:
    memory = _memory(9.0)
    remember(memory, POSITIONS, torch.tensor([5.0, 1.0, 4.0, math.nan]), keep=KEEP)
    assert memory[:4].tolist() == [1.0, 9.0, 5.0, 9.0]


def test_accumulate_adds_each_time() -> None:
    memory = _memory(1.0)
    accumulate(memory, POSITIONS, torch.tensor([5.0, 1.0, 4.0, math.inf]), keep=KEEP)
    assert memory[:4].tolist() == [2.0, 1.0, 10.0, 1.0]


def test_concentration_of_even_and_uneven_draws() -> None:
    assert abs(concentration(torch.full((50,), 3)) - 0.1) < 1e-6
    counts = torch.ones(20, dtype=torch.int64)
    counts[7] = 41
    assert abs(concentration(counts) - 42 / 60) < 1e-6


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


def test_gradient_bound_is_the_norm_of_the_gradient_at_the_logits() -> None:
    logits = LOGITS.clone().requires_grad_()
    F.cross_entropy(logits, TARGETS, reduction="sum").backward()
    assert logits.grad is not None
    torch.testing.assert_close(gradient_bound(LOGITS, TARGETS), logits.grad.norm(dim=1))
