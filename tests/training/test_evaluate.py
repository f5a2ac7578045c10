from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hpo_mab.training import evaluate


class _Fixed(nn.Module):
    """Logits that are the inputs; drops everything in training mode."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(inputs) if self.training else inputs


def test_mean_over_examples_not_over_batches_in_evaluation_mode() -> None:
    sure = math.log(3)  # Logits (log 3, 0): probabilities 3/4 and 1/4.
    right, wrong = torch.tensor([sure, 0.0]), torch.tensor([0.0, sure])
    batches = [
        (torch.stack([right, right, wrong]), torch.zeros(3, dtype=torch.int64)),
        (wrong[None], torch.zeros(1, dtype=torch.int64)),
    ]
    model = _Fixed().train()
    accuracy, loss = evaluate(model, batches)
    assert accuracy == 0.5
    assert loss == pytest.approx((2 * math.log(4 / 3) + 2 * math.log(4)) / 4)
    assert model.training


def test_the_mode_is_restored_after_an_error() -> None:
    model = _Fixed().train()
    with pytest.raises(IndexError):
        evaluate(model, [(torch.zeros(2, 2), torch.tensor([0, 5]))])
    assert model.training
