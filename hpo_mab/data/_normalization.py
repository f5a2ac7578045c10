"""From stored pixels to network inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError


class Normalization:
    """Scale uint8 pixels to zero mean and unit variance a channel: ``(x / 255 - mean) / std``.

    Args:
        mean: Mean of each channel, float [channels], pixels scaled to [0, 1].
        std: Standard deviation of each channel, above 0.
        channels_last: Whether the result is laid out channels last in memory.

    Raises:
        ArgumentError: Shapes that differ, or a ``std`` not above 0.
    """

    def __init__(self, mean: Tensor, std: Tensor, *, channels_last: bool = False) -> None:
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ArgumentError(
                "mean and std must be one value for each channel, "
                f"got shapes {list(mean.shape)} and {list(std.shape)}."
            )
        if not bool((std > 0).all()):
            raise ArgumentError(f"std must be above 0 for each channel, got {std.tolist()}.")
        self.channels_last = channels_last
        self._scale = (1 / (255 * std)).float()[:, None, None]
        self._shift = (-mean / std).float()[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 [B, channels, height, width] to float32 of the same shape."""
        # In place: the float copy is ours, and a batch is bound by memory traffic.
        pixels = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        # Last: with few channels, arithmetic on channels-last memory is many times slower.
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return pixels.contiguous(memory_format=layout)
