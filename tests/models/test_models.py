from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpo_mab import models
from hpo_mab._errors import ArgumentError, UnknownNameError

_SMALL = {"resnet18": {}, "small_cnn": {"width": 4}, "mlp": {"width": 8}}


def _create(name: str, **changes: object) -> nn.Module:
    arguments = {"in_channels": 1, "num_classes": 5, "image_size": 8, **_SMALL[name], **changes}
    return models.create(name, **arguments)


def test_every_network_is_tested_here() -> None:
    assert models.available() == tuple(sorted(_SMALL))


@pytest.mark.parametrize("name", models.available())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, (28, 28)), (3, (32, 24)), (3, 33)])
def test_every_parameter_of_every_network_is_trained(
    name: str, channels: int, size: int | tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = _create(name, in_channels=channels, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    logits = model(torch.randn(4, channels, height, width))
    assert logits.shape == (4, 5)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.abs().sum() > 0)


@pytest.mark.parametrize("name", models.available())
def test_dropout_changes_training_only(name: str) -> None:
    torch.manual_seed(0)
    model = _create(name, dropout=0.5).eval()
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(model(images), model(images))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", models.available())
def test_the_global_seed_decides_the_weights(name: str) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.flatten() for p in _create(name).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["small_cnn", "mlp"])
def test_width_sets_the_size(name: str) -> None:
    narrow, wide = (
        sum(p.numel() for p in _create(name, width=width).parameters()) for width in (8, 16)
    )
    assert wide > 1.5 * narrow


def test_depth_of_the_perceptron() -> None:
    def linear(depth: int) -> int:
        model = _create("mlp", depth=depth)
        return sum(isinstance(module, nn.Linear) for module in model.modules())

    assert [linear(depth) for depth in (0, 1, 3)] == [1, 2, 4]


def test_resnet18_keeps_the_resolution_in_its_stem() -> None:
    model = _create("resnet18", in_channels=3, image_size=32)
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    assert stem(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 32, 32)


def test_options_are_those_of_the_network() -> None:
    assert set(models.options("mlp")) == {"width", "depth", "dropout"}
    assert models.options("resnet18") == {"dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("small_cnn", {"width": 0}, "width must be at least 1, got 0"),
        ("small_cnn", {"image_size": 3}, r"image_size must be at least 4 pixels, got \[3, 3\]"),
        ("resnet18", {"image_size": 3}, r"image_size must be at least 4 pixels, got \[3, 3\]"),
        ("mlp", {"width": 0}, "width must be at least 1, got 0"),
        ("mlp", {"depth": -1}, "depth must be at least 0, got -1"),
        ("mlp", {"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ("mlp", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
        *[
            (name, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0")
            for name in models.available()
        ],
    ],
)
def test_options_out_of_bounds_are_refused(
    name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        _create(name, **changes)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"model 'small_cn'.*'small_cnn'"):
        models.create("small_cn", in_channels=1, num_classes=2, image_size=8)
    with pytest.raises(UnknownNameError, match=r"option of model 'mlp' 'widht'.*'width'"):
        _create("mlp", widht=3)
