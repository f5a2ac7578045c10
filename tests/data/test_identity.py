from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpo_mab.data import DataIdentity, ImageData, load, split


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog", "owl")):
        (root / name).mkdir(parents=True)
        for index in range(12):
            _write(root / name / f"{index:02}.png", 20 * number + index)
    return root


def _write(path: Path, value: int) -> None:
    pixels = np.random.default_rng(value).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _identity(root: Path) -> DataIdentity:
    return DataIdentity.of(split(*load("image_folder", root=root, size=8), validation=0.2, seed=0))


def test_data_are_the_same_twice_and_in_a_copy(photos: Path, tmp_path: Path) -> None:
    first = _identity(photos)
    assert _identity(photos) == first
    copied = shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(copied / ".hpo_mab_cache")
    assert _identity(copied).files != first.files, "a copy has other times"
    assert _identity(copied).is_same(first)


def test_other_pixels_of_untouched_files_are_the_same_data(photos: Path) -> None:
    first = _identity(photos)
    decoded_elsewhere = DataIdentity(classes=3, content="other", files=first.files)
    assert decoded_elsewhere.is_same(first)
    assert not DataIdentity(classes=3, content="other").is_same(
        DataIdentity(classes=3, content="another")
    )


def _other_class(root: Path) -> None:
    (root / "owl").rename(root / "rat")


def _other_picture(root: Path) -> None:
    _write(root / "cat" / "03.png", 999)
    os.utime(root / "cat" / "03.png", ns=(1, time.time_ns() + 10**9))


def _file_of_another_class(root: Path) -> None:
    (root / "cat" / "03.png").rename(root / "dog" / "99.png")
    (root / "dog" / "03.png").rename(root / "cat" / "03.png")


@pytest.mark.parametrize("change", [_other_class, _other_picture, _file_of_another_class])
def test_equal_counts_of_other_data_are_noticed(photos: Path, change: object) -> None:
    first = _identity(photos)
    change(photos)  # type: ignore[operator]
    changed = _identity(photos)
    assert changed.classes == first.classes
    assert not changed.is_same(first)


def test_a_million_labels_take_no_time() -> None:
    labels = torch.arange(1_000_000) % 10
    data = ImageData(
        images=torch.zeros(10, 3, 4, 4, dtype=torch.uint8),
        labels=labels,
        classes=tuple("abcdefghij"),
        rows=labels,
        files="digest",
    )
    splits = split(data, data.subset(torch.arange(10)), validation=0.1, seed=0)
    began = time.process_time()
    DataIdentity.of(splits)
    assert time.process_time() - began < 5
