"""Images in memory, their normalisation and augmentation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tools import no_waiting
from torch.nn import functional as F

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.data import Augmentation, ImageData, Normalization, split
from hpo_mab.data._images import fingerprint
from hpo_mab.data._load import default_augmentation


def _data(labels: list[int], classes: tuple[str, ...] = ("a", "b", "c")) -> ImageData:
    images = torch.arange(len(labels) * 4, dtype=torch.uint8).view(-1, 1, 2, 2)
    return ImageData(images=images, labels=torch.tensor(labels), classes=classes)


def test_subset_keeps_order_and_pairs_images_with_labels() -> None:
    data = _data([0, 1, 2, 1])
    part = data.subset(torch.tensor([3, 0]))
    assert part.labels.tolist() == [1, 0]
    assert part.images[:, 0, 0, 0].tolist() == [12, 0]
    assert (len(part), part.num_classes, part.channels, part.image_size) == (2, 3, 1, (2, 2))


def test_subsets_of_subsets_share_the_images() -> None:
    data = _data([0, 1, 2, 1, 0])
    part = data.subset(torch.tensor([4, 3, 1])).subset(torch.tensor([2, 0]))
    assert part.labels.tolist() == [1, 0]
    data.images[1] = 77
    assert part.images[:, 0, 0, 0].tolist() == [77, 16]
    assert part.gather(torch.tensor([1, 0, 1]))[:, 0, 0, 0].tolist() == [16, 77, 16]
    assert torch.equal(torch.cat(list(part.blocks(1))), part.images)
    assert torch.equal(torch.cat(list(data.blocks(2))), data.images)


@pytest.mark.parametrize("indices", [[], [1, -1]])
def test_a_subset_has_examples_counted_from_zero(indices: list[int]) -> None:
    data = ImageData.from_arrays(np.zeros((2, 2, 2), dtype=np.uint8), [0, 1])
    with pytest.raises(ArgumentError, match="indices must name at least one example"):
        data.subset(torch.tensor(indices, dtype=torch.int64))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), "images must be uint8"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), "images must be uint8"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.tensor([]), "not be empty"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), r"labels must be int64"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0.0, 1]), "labels must be int"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 2]), "from 0 to 2"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([-1, 1]), "from -1 to 1"),
    ],
)
def test_unusable_tensors_are_refused(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ImageData(images=images, labels=labels, classes=("a", "b"))


@pytest.mark.parametrize("labels", [[7, -3, 7, 40], ["dog", "cat", "dog", "fox"]])
def test_from_arrays_numbers_any_labels_in_sorted_order(labels: list[object]) -> None:
    data = ImageData.from_arrays(np.zeros((4, 5, 6), dtype=np.uint8), labels)
    assert data.images.shape == (4, 1, 5, 6)
    assert data.labels.tolist() == [1, 0, 1, 2]
    assert data.classes == tuple(str(label) for label in sorted(set(labels), key=lambda v: v))


def test_from_arrays_takes_text_in_an_array_of_objects() -> None:
    images = np.zeros((3, 2, 2), dtype=np.uint8)
    found = ImageData.from_arrays(images, np.array(["b", "a", "b"], dtype=object))
    assert (found.classes, found.labels.tolist()) == (("a", "b"), [1, 0, 1])


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([1, 0], dtype=torch.bfloat16), torch.tensor([1.0, 0.0], requires_grad=True)],
)
def test_from_arrays_takes_tensors_that_numpy_does_not(labels: torch.Tensor) -> None:
    found = ImageData.from_arrays(np.zeros((2, 2, 2), dtype=np.uint8), labels)
    assert found.labels.tolist() == [1, 0]


def test_from_arrays_refuses_a_ragged_list() -> None:
    with pytest.raises(ArgumentError, match="labels must"):
        ImageData.from_arrays(np.zeros((2, 2, 2), dtype=np.uint8), [[0], [0, 1]])


def test_from_arrays_refuses_channels_that_come_last() -> None:
    images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    message = r"must be \[N, channels, height, width\], got \[2, 32, 32, 3\]; move the channels"
    with pytest.raises(ArgumentError, match=message):
        ImageData.from_arrays(images, [0, 1])
    assert ImageData.from_arrays(images.transpose(0, 3, 1, 2), [0, 1]).channels == 3


def test_from_arrays_takes_a_reversed_view() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    found = ImageData.from_arrays(images[:, ::-1], [0, 1])
    assert found.images.tolist() == images[:, ::-1].tolist()


def test_from_arrays_refuses_fractional_labels() -> None:
    with pytest.raises(ArgumentError, match=r"one integer for each example, got 0\.5"):
        ImageData.from_arrays(np.zeros((2, 5, 6), dtype=np.uint8), [0.5, 1.0])


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


def test_statistics_may_be_numbers() -> None:
    images = torch.randint(0, 256, (4, 2, 5, 6), dtype=torch.uint8)
    given = [0.1, 0.5], (0.2, 0.3)
    expected = Normalization(*map(torch.tensor, given))(images)
    torch.testing.assert_close(Normalization(*given)(images), expected, rtol=0, atol=0)


def test_statistics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArgumentError, match="one value for each channel"):
        Normalization(torch.zeros(3), torch.ones(1))
    with pytest.raises(ArgumentError, match="std must be above 0"):
        Normalization(torch.zeros(2), torch.tensor([1.0, 0.0]))


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


def own_images() -> None:
    """A data set of a user's, by its name."""


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
        ("image_folder", 64, 8, True),
        (f"{__name__}:own_images", 8, 1, False),
    ],
)
def test_defaults_never_mirror_characters(name: str, size: int, pad: int, flip: bool) -> None:
    augmentation = default_augmentation(name, image_size=(size, size))
    assert (augmentation.pad, augmentation.flip) == (pad, flip)


def test_default_of_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        default_augmentation("cifar11", image_size=(32, 32))


@pytest.mark.cuda
def test_the_device_is_never_waited_for() -> None:
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    with no_waiting():
        out = Augmentation()(images, generator=generator)
    assert out.is_cuda


def test_a_file_name_that_is_not_utf8_has_a_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    file.write_bytes(b"")
    assert len(fingerprint([file], root=tmp_path, options={})) == 16
