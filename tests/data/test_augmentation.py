from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.data import Augmentation, default_augmentation


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _numbered(height: int, width: int) -> torch.Tensor:
    """Two channels in which every pixel has its own value."""
    return torch.arange(2 * height * width).view(2, height, width)


def _every_outcome(image: torch.Tensor, pad: int, *, flip: bool) -> list[torch.Tensor]:
    """All crops of the reflected image, then their mirror images, by padding and slicing."""
    _, height, width = image.shape
    padded = F.pad(image.double()[None], (pad, pad, pad, pad), mode="reflect")[0].long()
    crops = [
        padded[:, y : y + height, x : x + width]
        for y in range(2 * pad + 1)
        for x in range(2 * pad + 1)
    ]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


@pytest.mark.parametrize("flip", [False, True])
def test_outcomes_are_the_crops_and_flips_each_equally_likely(flip: bool) -> None:
    image, pad, batch = _numbered(5, 7), 1, 9000
    outcomes = _every_outcome(image, pad, flip=flip)
    out = Augmentation(pad=pad, flip=flip)(image.repeat(batch, 1, 1, 1), generator=_generator())
    hits = torch.stack([(out == outcome).flatten(1).all(1) for outcome in outcomes])
    assert (hits.sum(0) == 1).all()
    expected = batch / len(outcomes)
    chi2 = float(((hits.sum(1) - expected) ** 2 / expected).sum())
    # 99.9% points of chi-squared with 8 and 17 degrees of freedom.
    assert chi2 < (40.79 if flip else 26.12)


def test_images_of_a_batch_are_changed_independently() -> None:
    out = Augmentation(pad=2)(_numbered(8, 8).repeat(64, 1, 1, 1), generator=_generator())
    assert len({tuple(image.flatten().tolist()) for image in out}) > 25


def test_without_pad_and_flip_nothing_changes() -> None:
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    out = Augmentation(pad=0, flip=False)(images, generator=_generator())
    assert out.dtype == torch.uint8
    assert torch.equal(out, images)


def test_same_seed_same_batch_other_seed_other_batch() -> None:
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    first, again, other = (Augmentation()(images, generator=_generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pad_out_of_bounds_is_refused() -> None:
    with pytest.raises(ArgumentError, match="pad must be at least 0 pixels, got -1"):
        Augmentation(pad=-1)
    with pytest.raises(ArgumentError, match="below the image's shorter side, 4, got 4"):
        Augmentation(pad=4)(torch.zeros(1, 1, 4, 9), generator=_generator())


@pytest.mark.parametrize(
    ("name", "size", "pad", "flip"),
    [
        ("digits", 8, 1, False),
        ("mnist", 28, 3, False),
        ("fashion_mnist", 28, 3, True),
        ("cifar10", 32, 4, True),
        ("svhn", 32, 4, False),
    ],
)
def test_defaults_never_mirror_characters(name: str, size: int, pad: int, flip: bool) -> None:
    augmentation = default_augmentation(name, image_size=(size, size))
    assert (augmentation.pad, augmentation.flip) == (pad, flip)


def test_default_of_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        default_augmentation("cifar11", image_size=(32, 32))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_is_never_waited_for(no_waiting: Callable[[], Any]) -> None:
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    with no_waiting():
        out = Augmentation()(images, generator=generator)
    assert out.is_cuda
