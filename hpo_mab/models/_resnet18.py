"""ResNet-18 for small images."""

from __future__ import annotations

from torch import nn

from hpo_mab._errors import ArgumentError


def resnet18(
    *,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    dropout: float = 0.0,
) -> nn.Module:
    """ResNet-18 of torchvision with the stem for small images: a 3x3 convolution, no pooling.

    He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2 for the stem.

    Args:
        in_channels: Channels of an image.
        num_classes: Classes, ``C``.
        image_size: Height and width of an image, each at least 4.
        dropout: Probability of dropping a feature before the linear layer, in [0, 1).

    Raises:
        ArgumentError: An argument outside its bound.
    """
    # Here, not at the top: torchvision is slow to import and no other network needs it.
    from torchvision import models

    if min(image_size) < 4:
        raise ArgumentError(f"image_size must be at least 4 pixels, got {list(image_size)}.")
    if not 0.0 <= dropout < 1.0:
        raise ArgumentError(f"dropout must be in [0, 1), got {dropout}.")
    model: nn.Module = models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, num_classes))
    return model
