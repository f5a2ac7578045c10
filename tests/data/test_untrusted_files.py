"""Files of other origin are data: no code in them is run."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

import hpo_mab
from hpo_mab._errors import DataError, HpoMabError
from hpo_mab.data import _images
from hpo_mab.data._load import load_torchvision

_UNPICKLE = {"load", "loads", "Unpickler", "read_pickle"}
_PICKLERS = {"pickle", "_pickle", "joblib", "marshal", "shelve", "dill", "cloudpickle", "pandas"}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bomb]:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    made = Bomb(tmp_path / "went off")
    yield made
    assert not made.mark.exists()
    # Unpickling it makes the folder.
    pickle.loads(pickle.dumps(made))
    assert made.mark.exists()


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(Path(hpo_mab.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.name}:{node.lineno}", node


def test_the_package_unpickles_nothing_and_runs_no_text() -> None:
    seen = 0
    for place, call in _calls():
        name = ast.unparse(call.func)
        module, _, function = name.rpartition(".")
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "compile", "__import__"), place
        assert "allow_pickle" not in given, place
        if module in _PICKLERS:
            assert function not in _UNPICKLE, place
        if name == "torch.load":
            seen += 1
            assert given.get("weights_only") == "True", place
    assert seen >= 1


def test_no_search_sampler_or_pruner_keeps_pickles_in_the_database() -> None:
    from hpo_mab.search._pruners import PRUNERS
    from hpo_mab.search._searchers import SEARCHERS

    kinds = {kind: registry.load(kind) for registry in (SEARCHERS, PRUNERS) for kind in registry}
    assert {"tpe", "median"} <= set(kinds)
    for kind, cls in kinds.items():
        source = Path(inspect.getsourcefile(cls) or "").read_text(encoding="utf-8")
        assert "pickle" not in source, kind


@pytest.mark.parametrize("part", ["train-images", "train-labels", "test-images"])
def test_a_pickle_in_the_cache_is_not_used(tmp_path: Path, bomb: Bomb, part: str) -> None:
    folder = tmp_path / _images.CACHE_FOLDER / "digits-key"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(
        '{"classes": ["a", "b"], "parts": ["train", "test"], "sides": [], "warnings": [], '
        '"names": []}'
    )
    for name in ("train", "test"):
        np.save(folder / f"{name}-images.npy", np.zeros((2, 1, 4, 4), np.uint8))
        np.save(folder / f"{name}-labels.npy", np.arange(2))
    assert _images.read(tmp_path, name="digits", key="key") is not None
    np.save(folder / f"{part}.npy", np.array([bomb], dtype=object), allow_pickle=True)
    assert _images.read(tmp_path, name="digits", key="key") is None


def _cifar10(root: Path, content: bytes) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(content)
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)


def _cifar100(root: Path, content: bytes) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(content)


def _mnist(root: Path, content: bytes) -> None:
    # Where torchvision looks for files of its own past.
    folder = root / "MNIST" / "processed"
    folder.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        (folder / name).write_bytes(content)


def _svhn(root: Path, content: bytes) -> None:
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (root / name).write_bytes(content)


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("name", "put"),
    [("cifar10", _cifar10), ("cifar100", _cifar100), ("mnist", _mnist), ("svhn", _svhn)],
)
def test_a_pickle_among_a_data_sets_files_is_refused(
    tmp_path: Path,
    bomb: Bomb,
    name: str,
    put: Callable[[Path, bytes], None],
    download: bool,
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    if name == "mnist":
        torch.save(bomb, tmp_path / "bomb.pt")
        put(root, (tmp_path / "bomb.pt").read_bytes())
    else:
        put(root, pickle.dumps(bomb))
    with pytest.raises(DataError, match=name):
        load_torchvision(name, root=root, download=download)


def _record(path: Path) -> object:
    from hpo_mab.compare import read_record

    return read_record(path)


def _evidence(path: Path) -> object:
    from hpo_mab.advantage import Evidence

    return Evidence.load(path)


def _definition(path: Path) -> object:
    from hpo_mab.search import load_spec

    return load_spec(str(path))


@pytest.mark.parametrize("read", [_record, _evidence, _definition])
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_in_place_of_a_text_is_a_mistake(
    tmp_path: Path, bomb: Bomb, read: Callable[[Path], object], protocol: int
) -> None:
    path = tmp_path / "given.toml"
    path.write_bytes(pickle.dumps(bomb, protocol))
    with pytest.raises(HpoMabError) as caught:
        read(path)
    assert "\n" not in str(caught.value).strip()
