from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import mnist

from hpo_mab import data
from hpo_mab._errors import DataError
from hpo_mab.data import _torchvision


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
    train, test = data.load("mnist", root=tmp_path, download=False)
    assert (train.images.shape, len(test)) == ((30, 1, 28, 28), 20)
    assert train.images[:, 0, 5, 5].tolist() == list(range(30))
    assert train.labels.tolist() == [i % 10 for i in range(30)]
    assert len(train.classes) == 10


def test_the_second_load_needs_no_torchvision_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(tmp_path)
    first, _ = data.load("mnist", root=tmp_path, download=False)
    expected = first.images.clone()
    decoded: list[str] = []
    dataset = _torchvision._dataset

    def count(source: Any, root: Path, **options: Any) -> Any:
        decoded.append(source.cls)
        return dataset(source, root, **options)

    monkeypatch.setattr(_torchvision, "_dataset", count)
    again, _ = data.load("mnist", root=tmp_path, download=False)
    assert decoded == []
    assert torch.equal(again.images, expected)
    _put(tmp_path, first=50)
    changed, _ = data.load("mnist", root=tmp_path, download=False)
    assert decoded == ["MNIST", "MNIST"]
    assert int(changed.images[0, 0, 0, 0]) == 50


def test_missing_files_are_fetched_into_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    train, _ = data.load("mnist", root=tmp_path / "new")
    assert len(train) == 30
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == [".hpo_mab_cache", "MNIST"]


def test_a_broken_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _no_network)
    root = tmp_path / "root"
    with pytest.raises(DataError) as caught:
        data.load("mnist", root=root)
    message = str(caught.value)
    assert "\n" not in message
    assert str(root) in message
    assert "Name or service not known" in message
    assert "Connect to the network" in message
    assert not root.exists()
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    assert len(data.load("mnist", root=root)[0]) == 30


def test_a_broken_download_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _no_network)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="could not be fetched"):
        data.load("mnist", root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_download_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    with pytest.raises(DataError, match="Allow the download"):
        data.load("mnist", root=tmp_path / "root", download=False)
    assert not (tmp_path / "root").exists()


def test_a_damaged_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.raises(DataError, match="'mnist' is not usable in"):
        data.load("mnist", root=tmp_path, download=False)
    monkeypatch.setattr(mnist, "download_and_extract_archive", _unpack)
    train, _ = data.load("mnist", root=tmp_path)
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
    train, test = data.load(name, root=data_root, download=False)
    assert tuple(train.images.shape) == shape
    assert len(test) == 10000
    assert (train.num_classes, train.classes[0]) == (classes, first)
    assert train.labels.bincount().tolist() == [shape[0] // classes] * classes
