"""A multilayer perceptron."""

from __future__ import annotations

from torch import nn

from hpo_mab._errors import ArgumentError


class MLP(nn.Sequential):
    """Fully connected layers with ReLU on the flattened image.

    Args:
        in_channels: Channels of an image.
        num_classes: Classes, ``C``.
        image_size: Height and width of an image.
        width: Units of a hidden layer, at least 1.
        depth: Hidden layers, at least 0; 0 is logistic regression.
        dropout: Probability of dropping a hidden unit, in [0, 1).

    Raises:
        ArgumentError: An argument outside its bound.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        width: int = 256,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        if width < 1:
            raise ArgumentError(f"width must be at least 1, got {width}.")
        if depth < 0:
            raise ArgumentError(f"depth must be at least 0, got {depth}.")
        if not 0.0 <= dropout < 1.0:
            raise ArgumentError(f"dropout must be in [0, 1), got {dropout}.")
        features = in_channels * image_size[0] * image_size[1]
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
            features = width
        super().__init__(*layers, nn.Linear(features, num_classes))
