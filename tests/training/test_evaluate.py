from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hpo_mab._errors import ArgumentError
from hpo_mab.data import Normalization, load, split
from hpo_mab.training import DeviceSweep, LoaderSweep, evaluate


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
    with pytest.raises(ArgumentError, match=r"labels .* must be in \[0, 2\) .* 2 outputs, got 5"):
        evaluate(model, [(torch.zeros(2, 2), torch.tensor([0, 5]))])
    assert model.training


def test_the_highest_label_is_known_without_the_device() -> None:
    # On CUDA nothing can be read from the targets: their device would have to be waited for.
    sweep = LoaderSweep(TensorDataset(torch.zeros(5, 2), torch.tensor([0, 1, 2, 9, 1])))
    list(sweep)
    assert sweep.highest_label == 9
    parts = split(*load("digits"))
    normalization = Normalization(parts.mean, parts.std)
    assert DeviceSweep(parts.validation, normalization=normalization).highest_label == 9
