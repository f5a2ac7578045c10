from __future__ import annotations

import math

import pytest
import torch
from tools import Caching
from torch import nn
from torch.utils.data import TensorDataset

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.data import Normalization, load_splits
from hpo_mab.training import DeviceSweep, LoaderSweep, evaluate
from hpo_mab.training._evaluate import examples_at_once


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


def test_a_frozen_layer_stays_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    model[0].eval()
    evaluate(model, [(torch.zeros(2, 2), torch.tensor([0, 1]))])
    assert [part.training for part in model.modules()] == [True, False, True]


def test_a_network_of_half_precision_is_evaluated_as_it_is_trained() -> None:
    # Its layers take float32 inputs under autocast only.
    network = nn.Linear(3, 2).bfloat16()
    batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))]
    accuracy, loss = evaluate(network, batches, precision="bfloat16")
    assert accuracy in (0.0, 1.0)
    assert math.isfinite(loss)


class _Keeping(nn.Linear):
    """Scales its outputs by their mean in the last evaluation."""

    scale = torch.ones(2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(inputs)
        if not self.training:
            self.scale = outputs.mean(dim=0)
        return outputs * self.scale


def test_a_training_step_may_use_what_a_network_kept_in_an_evaluation() -> None:
    network = _Keeping(3, 2)
    batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))]
    evaluate(network, batches)
    network(torch.ones(4, 3)).sum().backward()
    assert torch.equal(network.bias.grad, 4 * network.scale)


def test_values_that_a_network_keeps_of_its_weights_are_not_used_for_others() -> None:
    network = Caching(3, 2, bias=False).eval()
    batches = [(torch.eye(3), torch.tensor([0, 1, 0]))]
    _, loss = evaluate(network, batches)
    network(torch.eye(3))
    with torch.no_grad():
        network.weight.mul_(-1)
    _, other = evaluate(network, batches)
    assert other != loss
    assert not network.training
    with torch.no_grad():
        network.weight.mul_(-1)
    assert torch.equal(network(torch.eye(3)), 2 * network.weight.T)


def test_no_batches_are_an_error() -> None:
    with pytest.raises(ArgumentError, match="at least one batch at each pass, got none"):
        evaluate(nn.Linear(2, 2), [])


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Unknown precision 'bf16'"):
        evaluate(nn.Linear(2, 2), [], precision="bf16")


def test_the_highest_label_is_known_without_the_device() -> None:
    # On CUDA nothing can be read from the targets: their device would have to be waited for.
    sweep = LoaderSweep(TensorDataset(torch.zeros(5, 2), torch.tensor([0, 1, 2, 9, 1])))
    list(sweep)
    assert sweep.highest_label == 9
    parts = load_splits("digits")
    normalization = Normalization(parts.mean, parts.std)
    assert DeviceSweep(parts.validation, normalization=normalization).highest_label == 9


@pytest.mark.parametrize("label", [-1, -100])
def test_a_negative_label_is_refused_wherever_it_is(label: int) -> None:
    # The loss would leave -100 out, and the accuracy count it as wrong.
    inputs, targets = torch.zeros(5, 2), torch.tensor([0, 1, label, 1, 0])
    sweep = LoaderSweep(TensorDataset(inputs, targets), batch_size=2)
    with pytest.raises(ArgumentError, match=f"to evaluate on must be at least 0, got {label}"):
        evaluate(nn.Linear(2, 2), sweep)
    with pytest.raises(ArgumentError, match=rf"to evaluate on must be in \[0, 2\).*got {label}"):
        evaluate(nn.Linear(2, 2), [(inputs, targets)])


class _Wide(nn.Module):
    """Makes 4 MiB of each example on the way, and 64 MiB of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.weights = nn.Parameter(torch.zeros(2**24))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(inputs))
        wide = inputs[:, :1].expand(-1, 2**20) + (self.weights * 2)[0]
        return torch.cat([wide.mean(dim=1, keepdim=True), inputs[:, 1:]], dim=1)


def test_batches_are_cut_to_what_memory_holds() -> None:
    inputs, targets = torch.randn(50, 3), torch.arange(50) % 3
    model = _Wide()
    # Four times 4 MiB an example fit 16 times into 256 MiB.
    assert examples_at_once(model, inputs) == 16
    model.seen.clear()
    found = evaluate(model, [(inputs[:40], targets[:40]), (inputs[40:], targets[40:])])
    # One example to measure, once.
    assert model.seen == [1, 16, 16, 8, 10]
    assert found == pytest.approx(evaluate(nn.Identity(), [(inputs, targets)]), rel=1e-4)


def test_small_networks_keep_whole_batches() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 32**2, 10))
    assert examples_at_once(model, torch.zeros(2, 3, 32, 32)) >= 1024


def test_a_network_that_needs_several_examples_is_evaluated() -> None:
    # Without running statistics it normalises by those of the batch.
    network = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)
    )
    batches = [(torch.randn(40, 3), torch.zeros(40, dtype=torch.int64))]
    _, loss = evaluate(network, batches)
    assert math.isfinite(loss)
    with pytest.raises(ValueError, match="more than 1 value"):
        evaluate(network, [(torch.randn(1, 3), torch.zeros(1, dtype=torch.int64))])
