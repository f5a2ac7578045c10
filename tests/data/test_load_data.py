from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from parts import whole_parts
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from torchvision.datasets import mnist

from hpo_mab import data
from hpo_mab._errors import ArgumentError, DataError, UnknownNameError
from hpo_mab.data import DataIdentity, DatasetSplits, ImageData, _load


def test_digits_are_the_grey_levels_of_scikit_learn() -> None:
    train, test = whole_parts("digits")
    source = load_digits().images
    assert len(train) + len(test) == len(source)
    assert len(test) == 360
    assert (train.image_size, train.channels, train.num_classes) == ((8, 8), 1, 10)
    levels = sorted(set(train.images.flatten().tolist()))
    assert levels == [round(level * 255 / 16) for level in range(17)]
    total = int(train.images.sum()) + int(test.images.sum())
    assert total == pytest.approx(source.sum() * 255 / 16, rel=1e-3)
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert (share - 0.2).abs().max() < 0.01


@pytest.mark.parametrize("installed", [True, False], ids=["its file", "its function"])
def test_digits_are_all_of_scikit_learn(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    images, classes = load_digits(return_X_y=True)
    rows = _load._digits_of_sklearn.__wrapped__()
    assert (rows[:, :-1] == images).all()
    assert (rows[:, -1] == classes).all()


def test_digits_split_is_fixed() -> None:
    assert whole_parts("digits")[1].labels.tolist() == whole_parts("digits")[1].labels.tolist()


def test_an_unknown_option_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"option of data set 'image_folder' 'sise'.*'size'"):
        data.load_splits("image_folder", sise=3)


def test_options_are_those_that_the_caller_does_not_give() -> None:
    options = {name: list(_load.DATA_SETS.options(name)) for name in _load.DATA_SETS}
    assert {name: own for name, own in options.items() if own} == {"image_folder": ["size"]}
    assert "cifar100" in _load.DATA_SETS
    assert list(_load.DATA_SETS) == sorted(_load.DATA_SETS)


def _table(*, examples: int = 100, labels: int = 4) -> dict[str, Any]:
    classes = torch.arange(examples) % labels
    return {"train": TensorDataset(torch.arange(examples).float()[:, None], classes)}


def test_parts_that_a_data_set_lacks_are_held_out_class_by_class() -> None:
    splits = data.load_splits(_table, validation=0.25, seed=3, examples=100)
    assert isinstance(splits, DatasetSplits)
    assert (splits.sizes, splits.num_classes, splits.input_shape) == ((60, 20, 20), 4, (1,))
    parts = (splits.train, splits.validation, splits.test)
    seen = [{int(part[i][0]) for i in range(len(part))} for part in parts]  # type: ignore
    assert len(set.union(*seen)) == 100
    assert splits.labels.bincount().tolist() == [15] * 4
    assert [int(splits.train[i][1]) for i in range(60)] == splits.labels.tolist()
    # The test part is the same for every seed, the validation part is not.
    other = data.load_splits(_table, validation=0.25, seed=4)
    assert other.test.indices == splits.test.indices  # type: ignore
    assert other.validation.indices != splits.validation.indices  # type: ignore


def test_data_sets_of_other_labels_are_other_data() -> None:
    one, same, other = (
        DataIdentity.of(data.load_splits(_table, **options)) for options in ({}, {}, {"labels": 5})
    )
    assert one.is_same(same)
    assert not one.is_same(other)


def test_a_function_is_given_what_it_takes() -> None:
    seen: dict[str, Any] = {}

    def load(*, root: Path, seed: int, validation: float, size: int = 2) -> dict[str, Any]:
        seen.update(root=root, seed=seed, validation=validation, size=size)
        return _table()

    data.load_splits(load, root="here", seed=7, size=5)
    assert seen == {"root": Path("here"), "seed": 7, "validation": 0.15, "size": 5}


def test_parts_of_another_form_are_refused() -> None:
    images = ImageData(
        images=torch.zeros(4, 1, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 0, 1]),
        classes=("a", "b"),
    )
    for found, words in (
        ([1], "must return a mapping with 'train'.*, got list"),
        ({"valid": images}, "got the keys 'valid'"),
        ({"train": None, "test": images}, "got the keys 'train', 'test'"),
        ({**_table(), "test": images}, "must all be ImageData, or none .* test ImageData"),
        ({"train": [3, 4]}, r"each item of the training set in data must be a pair"),
    ):
        with pytest.raises(ArgumentError, match=words):
            data.load_splits(lambda found=found: found)


def test_images_to_leave_out_are_for_data_sets_of_images(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"data.exclude is for data sets of images.*_table"):
        data.load_splits(_table, exclude=tmp_path / "exclude.json")


def _idx(array: np.ndarray[Any, Any]) -> bytes:
    """The IDX format of MNIST's files."""
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def _files(*, first: int = 0) -> dict[str, bytes]:
    """A tiny MNIST: image ``i`` is filled with ``first + i``, of class ``i % 10``."""
    files = {}
    for part, count in (("train", 30), ("t10k", 20)):
        pixels = np.full((count, 28, 28), 1, np.uint8) * (
            first + np.arange(count, dtype=np.uint8)[:, None, None]
        )
        files[f"{part}-images-idx3-ubyte"] = _idx(pixels)
        files[f"{part}-labels-idx1-ubyte"] = _idx((np.arange(count) % 10).astype(np.uint8))
    return files


def _put(root: Path, **options: int) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _files(**options).items():
        (folder / name).write_bytes(content)


def _unpack(url: str, download_root: str, filename: str, md5: str) -> None:
    """Stands for torchvision's download: an archive and what is in it."""
    content = _files()[Path(filename).stem]
    (Path(download_root) / filename).write_bytes(gzip.compress(content))
    (Path(download_root) / Path(filename).stem).write_bytes(content)


def _no_network(url: str, download_root: str, filename: str, md5: str) -> None:
    # As a connection that breaks half-way: part of a file is there.
    (Path(download_root) / Path(filename).stem).write_bytes(b"half")
    raise URLError("Name or service not known")


def test_files_in_place_are_read(tmp_path: Path) -> None:
    _put(tmp_path)
    train, test = whole_parts("mnist", root=tmp_path, download=False)
    assert (train.images.shape, len(test)) == ((30, 1, 28, 28), 20)
    assert train.images[:, 0, 5, 5].tolist() == list(range(30))
    assert train.labels.tolist() == [i % 10 for i in range(30)]
    assert len(train.classes) == 10


def test_the_second_load_needs_no_torchvision_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(tmp_path)
    first, _ = whole_parts("mnist", root=tmp_path, download=False)
    expected = first.images.clone()
    decoded: list[str] = []
    dataset = _load._torchvision_dataset

    def count(source: Any, root: Path, **options: Any) -> Any:
        decoded.append(source.cls)
        return dataset(source, root, **options)

    monkeypatch.setattr(_load, "_torchvision_dataset", count)
    again, _ = whole_parts("mnist", root=tmp_path, download=False)
    assert decoded == []
    assert torch.equal(again.images, expected)
    _put(tmp_path, first=50)
    changed, _ = whole_parts("mnist", root=tmp_path, download=False)
    assert decoded == ["MNIST", "MNIST"]
    assert int(changed.images[0, 0, 0, 0]) == 50


def test_missing_files_are_fetched_into_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    train, _ = whole_parts("mnist", root=tmp_path / "new")
    assert len(train) == 30
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == [".hpo_mab_cache", "MNIST"]


def test_a_broken_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _no_network)
    root = tmp_path / "root"
    with pytest.raises(DataError) as caught:
        data.load_splits("mnist", root=root)
    message = str(caught.value)
    assert "\n" not in message
    assert str(root) in message
    assert "Name or service not known" in message
    assert "Connect to the network" in message
    assert not root.exists()
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    assert len(whole_parts("mnist", root=root)[0]) == 30


def test_a_broken_download_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _no_network)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="could not be fetched"):
        data.load_splits("mnist", root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_download_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    with pytest.raises(DataError, match="Allow the download"):
        data.load_splits("mnist", root=tmp_path / "root", download=False)
    assert not (tmp_path / "root").exists()


def test_a_damaged_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.raises(DataError, match="'mnist' is not usable in"):
        data.load_splits("mnist", root=tmp_path, download=False)
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    train, _ = whole_parts("mnist", root=tmp_path)
    assert train.images[:, 0, 0, 0].tolist() == list(range(30))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "classes", "first"),
    [
        ("fashion_mnist", (60000, 1, 28, 28), 10, "T-shirt/top"),
        ("cifar10", (50000, 3, 32, 32), 10, "airplane"),
        ("cifar100", (50000, 3, 32, 32), 100, "apple"),
    ],
)
def test_real_data(
    data_root: Path, name: str, shape: tuple[int, ...], classes: int, first: str
) -> None:
    train, test = whole_parts(name, root=data_root, download=False)
    assert tuple(train.images.shape) == shape
    assert len(test) == 10000
    assert (train.num_classes, train.classes[0]) == (classes, first)
    assert train.labels.bincount().tolist() == [shape[0] // classes] * classes


def test_what_a_killed_process_left_in_the_cache_is_removed_after_a_day(tmp_path: Path) -> None:
    _put(tmp_path)
    cache = tmp_path / ".hpo_mab_cache"
    old, new = (cache / f"tmp-mnist-{name}" for name in ("old", "new"))
    for each in (old, new):
        each.mkdir(parents=True)
    os.utime(old, (0, 0))
    whole_parts("mnist", root=tmp_path, download=False)
    assert (old.exists(), new.exists()) == (False, True)


def test_other_users_can_read_the_cache(tmp_path: Path) -> None:
    _put(tmp_path)
    before = os.umask(0o022)
    try:
        whole_parts("mnist", root=tmp_path, download=False)
    finally:
        os.umask(before)
    (entry,) = (tmp_path / ".hpo_mab_cache").iterdir()
    assert entry.stat().st_mode & 0o777 == 0o755


def test_a_root_in_the_home_folder_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[Path] = []

    def data_set(*, root: Path) -> dict[str, TensorDataset]:
        seen.append(root)
        return {"train": TensorDataset(torch.zeros(20, 2), torch.arange(20) % 2)}

    data.load_splits(data_set, root="~/data")
    assert seen == [tmp_path / "data"]
