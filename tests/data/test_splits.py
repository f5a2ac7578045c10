from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_mab._errors import ArgumentError
from hpo_mab.data import ImageData, split


def _data(counts: list[int], *, size: int = 4) -> ImageData:
    """``counts[c]`` images of class ``c``; each image is filled with its own position."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    values = torch.arange(len(labels)) % 256
    images = values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, size, size).clone()
    return ImageData(images=images, labels=labels, classes=tuple(map(str, range(len(counts)))))


@given(
    counts=st.lists(st.integers(10, 40), min_size=2, max_size=6),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 5),
)
@settings(max_examples=40)
def test_split_is_a_stratified_partition(counts: list[int], share: float, seed: int) -> None:
    data = _data(counts)
    parts = split(data, data, validation=share, seed=seed)
    both = torch.cat([parts.train.images, parts.validation.images])[:, 0, 0, 0]
    assert both.sort().values.tolist() == data.images[:, 0, 0, 0].sort().values.tolist()
    for number, count in enumerate(counts):
        held_out = int((parts.validation.labels == number).sum())
        # Off by the rounding of the total and of the class at most.
        assert abs(held_out - share * count) <= 2


def test_same_seed_same_split_other_seed_other_split() -> None:
    data = _data([30, 30])
    first, again, other = (split(data, data, seed=seed).validation.images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_class_seen_once_is_trained_on() -> None:
    parts = split(_data([20, 20, 1]), _data([20, 20, 1]), validation=0.25)
    assert (parts.train.labels == 2).sum() == 1
    assert not (parts.validation.labels == 2).any()


def test_statistics_are_those_of_the_training_part_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=generator)
    images[:, 2] = 7
    data = ImageData(images=images, labels=torch.arange(50) % 2, classes=("a", "b"))
    parts = split(data, data, validation=0.3)
    pixels = parts.train.images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(parts.mean, pixels.mean(1).float())
    expected = pixels.std(1, correction=0).float()
    expected[2] = 1.0  # A constant channel must not divide by zero.
    torch.testing.assert_close(parts.std, expected)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_share_out_of_bounds_is_refused(share: float) -> None:
    with pytest.raises(
        ArgumentError, match=rf"validation must be a share in \(0, 1\), got {share}"
    ):
        split(_data([9, 9]), _data([9, 9]), validation=share)


def test_share_too_small_for_the_classes_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"validation = 0\.01 of 20 examples cannot hold"):
        split(_data([10, 10]), _data([10, 10]), validation=0.01)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least two classes, got 1"):
        split(_data([20]), _data([20]))


def test_test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ArgumentError, match="test must have the classes and image shape"):
        split(_data([9, 9]), _data([9, 9], size=5))


def test_parts_are_no_copies() -> None:
    data = _data([20, 20])
    parts = split(data, data, validation=0.25)
    data.images.fill_(99)
    for part in (parts.train, parts.validation):
        assert part.images.unique().tolist() == [99]


def test_given_validation_images_leave_the_training_images_whole() -> None:
    data, judged = _data([30, 30]), _data([5, 5])
    parts = split(data, data, validation=judged)
    assert len(parts.train) == 60
    assert torch.equal(parts.validation.images, judged.images)
    with pytest.raises(ArgumentError, match="validation must have the classes and image shape"):
        split(data, data, validation=_data([5, 5], size=3))
