"""Random crops and flips of whole batches, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError


class Augmentation:
    """Random shift by up to ``pad`` pixels with reflected borders, and random horizontal flip.

    Equals ``RandomCrop(size, padding=pad, padding_mode="reflect")`` followed by
    ``RandomHorizontalFlip()`` of torchvision in distribution, for a whole batch in one indexing
    operation: the source row and column of every output pixel are computed and gathered, so
    nothing is padded and nothing waits for the host.

    Args:
        pad: Largest shift in pixels, both ways and both axes; 0 for none.
        flip: Whether to mirror half of the images left to right.

    Raises:
        ArgumentError: A negative ``pad``.
    """

    def __init__(self, *, pad: int = 4, flip: bool = True) -> None:
        if pad < 0:
            raise ArgumentError(f"pad must be at least 0 pixels, got {pad}.")
        self.pad = pad
        self.flip = flip

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            images: Pixels [B, channels, height, width] of any type.
            generator: Source of randomness, on the images' device.

        Returns:
            The augmented batch, same shape and type, newly allocated.

        Raises:
            ArgumentError: Images too small to reflect ``pad`` pixels.
        """
        batch, channels, height, width = images.shape
        if self.pad >= min(height, width):
            raise ArgumentError(
                f"pad must be below the image's shorter side, {min(height, width)}, got {self.pad}."
            )
        device = images.device
        draws = torch.rand(3, batch, 1, device=device, generator=generator)
        shifts = (draws[:2] * (2 * self.pad + 1)).long() - self.pad
        rows = _reflect(torch.arange(height, device=device) + shifts[0], height)
        columns = _reflect(torch.arange(width, device=device) + shifts[1], width)
        if self.flip:
            columns = torch.where(draws[2] < 0.5, columns, columns.flip(1))
        # One flat gather: the pixel of the output at (b, c, y, x) is at (b, c, rows, columns).
        places = (rows * width)[:, :, None] + columns[:, None, :]
        source = images.reshape(batch, channels, height * width)
        where = places.view(batch, 1, height * width).expand(-1, channels, -1)
        return source.gather(2, where).view(batch, channels, height, width)

    def __repr__(self) -> str:
        return f"Augmentation(pad={self.pad}, flip={self.flip})"


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions outside ``0..size-1`` at the first and last pixel."""
    return (size - 1) - ((size - 1) - positions.abs()).abs()
