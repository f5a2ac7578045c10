from __future__ import annotations

import pytest
import torch

from hpo_mab._errors import ArgumentError
from hpo_mab.data import ImageData, Normalization, split


@pytest.mark.parametrize("channels_last", [False, True])
def test_formula_and_layout(channels_last: bool) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    out = Normalization(mean, std, channels_last=channels_last)(images)
    expected = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(out, expected.float())
    assert out.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert out.is_contiguous() is not channels_last


def test_training_images_get_zero_mean_and_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (80, 3, 6, 6), dtype=torch.uint8, generator=generator)
    data = ImageData(images=images, labels=torch.arange(80) % 2, classes=("a", "b"))
    parts = split(data, data)
    pixels = Normalization(parts.mean, parts.std)(parts.train.images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(pixels.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.std(1, correction=0), torch.ones(3))


def test_statistics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArgumentError, match="one value for each channel"):
        Normalization(torch.zeros(3), torch.ones(1))
    with pytest.raises(ArgumentError, match="std must be above 0"):
        Normalization(torch.zeros(2), torch.tensor([1.0, 0.0]))
