from __future__ import annotations

import numpy as np
import pytest
import torch

from hpo_mab._errors import ArgumentError
from hpo_mab.data import ImageData


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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 2], r"rows must be in \[0, 2\), got values from 0 to 2"),
        ([-1, 0], r"rows must be in \[0, 2\), got values from -1 to 0"),
        ([], "rows must not be empty"),
        ([[0, 1]], r"rows must be int64 \[N\], got torch.int64 \[1, 2\]"),
    ],
)
def test_unusable_rows_are_refused(rows: list[int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ImageData(
            images=torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            labels=torch.tensor([0, 1]),
            classes=("a", "b"),
            rows=torch.tensor(rows, dtype=torch.int64),
        )


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


def test_from_arrays_refuses_fractional_labels() -> None:
    with pytest.raises(ArgumentError, match=r"one integer for each example, got 0\.5"):
        ImageData.from_arrays(np.zeros((2, 5, 6), dtype=np.uint8), [0.5, 1.0])
