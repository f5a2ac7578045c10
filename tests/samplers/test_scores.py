"""What a forward pass tells of an example."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hpo_mab.samplers._scores import gradient_bound, true_label_probability

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
