from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_mab import models
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.models import StackedBatchNorm, stackable

_SMALL = {"resnet18": {}, "small_cnn": {"width": 4}, "mlp": {"width": 8}}


def _create(name: str, **changes: object) -> nn.Module:
    arguments = {"in_channels": 1, "num_classes": 5, "image_size": 8, **_SMALL[name], **changes}
    return models.create(name, **arguments)


def test_every_network_is_tested_here() -> None:
    assert tuple(models.NETWORKS) == tuple(sorted(_SMALL))


@pytest.mark.parametrize("name", models.NETWORKS)
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


@pytest.mark.parametrize("name", models.NETWORKS)
def test_dropout_changes_training_only(name: str) -> None:
    torch.manual_seed(0)
    model = _create(name, dropout=0.5).eval()
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(model(images), model(images))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", models.NETWORKS)
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


@pytest.mark.parametrize(("size", "side"), [(63, 63), (64, 16), ((96, 128), 24)])
def test_resnet18_has_torchvisions_stem_from_64_pixels_on(size: int, side: int) -> None:
    model = _create("resnet18", in_channels=3, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    assert stem(torch.zeros(1, 3, height, width)).shape[:3] == (1, 64, side)
    assert model(torch.zeros(2, 3, height, width)).shape == (2, 5)


def test_resnet18_of_large_images_is_torchvisions() -> None:
    from torchvision.models import resnet18

    model = _create("resnet18", in_channels=3, image_size=64)
    theirs = resnet18(num_classes=5)
    own = {name.replace("fc.1.", "fc."): value for name, value in model.state_dict().items()}
    theirs.load_state_dict(own)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v3_small", "squeezenet1_0"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_torchvision_by_name(name: str, channels: int) -> None:
    model = models.create(f"torchvision:{name}", in_channels=channels, num_classes=5, image_size=64)
    assert model(torch.zeros(2, channels, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet10t", 1), ("vit_tiny_patch16_224", 3), ("convnext_atto", 2)]
)
def test_networks_of_timm_by_name(name: str, channels: int) -> None:
    pytest.importorskip("timm", reason="needs timm (pip install '.[timm]')")
    arguments = {"in_channels": channels, "num_classes": 5, "image_size": 64}
    model = models.create(f"timm:{name}", **arguments, drop_rate=0.1)
    assert model(torch.zeros(2, channels, 64, 64)).shape == (2, 5)
    with pytest.raises(UnknownNameError, match=r"option of model 'timm:.*'drop_rat'.*'drop_rate'"):
        models.create(f"timm:{name}", **arguments, drop_rat=0.1)


def test_the_weights_of_timm_that_a_name_has_are_taken() -> None:
    pytest.importorskip("timm", reason="needs timm (pip install '.[timm]')")
    arguments = {"in_channels": 3, "num_classes": 5, "image_size": 64}
    for tag in ("a1_in1k", "tv_in1k"):
        model = models.create(f"timm:resnet18.{tag}", **arguments)
        assert model.pretrained_cfg["tag"] == tag
    with pytest.raises(ArgumentError, match=r"model 'timm:resnet18\.nonsense' cannot be made"):
        models.create("timm:resnet18.nonsense", **arguments)
    # Its class passes all options to its base class.
    models.create("timm:deit_tiny_distilled_patch16_224", **arguments, drop_rate=0.1)


def test_without_timm_its_networks_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ArgumentError, match=r"'timm:resnet18' needs timm: pip install '\.\[timm\]'"
    ):
        models.create("timm:resnet18", in_channels=1, num_classes=2, image_size=8)


def test_options_of_torchvisions_networks_are_those_of_their_class() -> None:
    assert models.NETWORKS.options("torchvision:efficientnet_b0").keys() == {
        "dropout",
        "stochastic_depth_prob",
    }
    arguments = {"in_channels": 1, "num_classes": 2, "image_size": 32}
    model = models.create("torchvision:mobilenet_v3_small", **arguments, dropout=0.7)
    assert any(isinstance(one, nn.Dropout) and one.p == 0.7 for one in model.modules())
    with pytest.raises(UnknownNameError, match=r"'torchvision:vgg11' 'width'\. Valid: dropout"):
        models.create("torchvision:vgg11", **arguments, width=3)


def test_a_fraction_whose_default_is_written_as_an_integer_may_be_one() -> None:
    known = models.NETWORKS.options("torchvision:densenet121")
    assert [known[name].annotation for name in ("drop_rate", "bn_size")] == [float, int]
    models.NETWORKS.check("torchvision:densenet121", {"drop_rate": [0.2]}, section="model")
    with pytest.raises(ArgumentError, match=r"model\.drop_rate must be a number, got 'low'"):
        models.NETWORKS.check("torchvision:densenet121", {"drop_rate": ["low"]}, section="model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet51", r"network of torchvision 'resnet51'.*'resnet50'"),
        ("resnet50", r"Unknown model 'resnet50'.*'resnet18'.*torchvision:NAME"),
        ("zzz", r"Valid: mlp, resnet18, small_cnn, timm:NAME, torchvision:NAME"),
        ("torchvision:vit_b_16", "'torchvision:vit_b_16' cannot be made: .*patch size"),
        ("torchvision:maxvit_t", r"'torchvision:maxvit_t' cannot be made: Input size \(9, 9\)"),
    ],
)
def test_what_torchvision_cannot_make_is_said(name: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        models.create(name, in_channels=1, num_classes=2, image_size=33)


def test_options_are_those_of_the_network() -> None:
    assert set(models.NETWORKS.options("mlp")) == {"width", "depth", "dropout"}
    (dropout,) = models.NETWORKS.options("resnet18").values()
    assert (dropout.name, dropout.default) == ("dropout", 0.0)


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
            for name in models.NETWORKS
        ],
    ],
)
def test_options_out_of_bounds_are_refused(
    name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        _create(name, **changes)


class _Activated(nn.BatchNorm2d):
    """As timm's: the activation is part of the normalisation."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def test_a_normalisation_that_does_more_is_kept() -> None:
    network = stackable(nn.Sequential(nn.BatchNorm2d(2), _Activated(2)))
    assert [isinstance(layer, StackedBatchNorm) for layer in network] == [True, False]
    assert isinstance(network[0], nn.BatchNorm2d)
