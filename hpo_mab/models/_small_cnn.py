"""A small convolutional network for images of 8x8 to 32x32 pixels."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from hpo_mab._errors import ArgumentError

_BLOCKS = 3


class SmallCNN(nn.Sequential):
    """Three strided 3x3 convolutions with batch normalisation, then a linear layer.

    ``width``, ``2 * width`` and ``4 * width`` channels at a half, a quarter and an eighth of the
    image's resolution. Striding instead of pooling halves the time of a step on a CPU.

    Args:
        in_channels: Channels of an image.
        num_classes: Classes, ``C``.
        image_size: Height and width of an image, each at least 4.
        width: Channels of the first block, at least 1.
        dropout: Probability of dropping a feature before the linear layer, in [0, 1).

    Raises:
        ArgumentError: An argument outside its bound.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        width: int = 12,
        dropout: float = 0.0,
    ) -> None:
        if min(image_size) < 4:
            raise ArgumentError(f"image_size must be at least 4 pixels, got {list(image_size)}.")
        if width < 1:
            raise ArgumentError(f"width must be at least 1, got {width}.")
        if not 0.0 <= dropout < 1.0:
            raise ArgumentError(f"dropout must be in [0, 1), got {dropout}.")
        height, breadth = image_size
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for block in range(_BLOCKS):
            layers[f"block{block + 1}"] = _block(channels, width * 2**block)
            channels = width * 2**block
            height, breadth = -(-height // 2), -(-breadth // 2)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["head"] = nn.Linear(channels * height * breadth, num_classes)
        super().__init__(layers)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
