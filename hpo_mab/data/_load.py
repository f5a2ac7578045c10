"""Data sets by name: scikit-learn's digits, those of torchvision, folders, and users' own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import pickle
import shutil
import tarfile
import tempfile
import textwrap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpo_mab._errors import ArgumentError, DataError, HpoMabError, failure_reason, name_of, plain
from hpo_mab._labels import stratified_split
from hpo_mab._machine import expanded
from hpo_mab._registry import Named, Registry
from hpo_mab.data import _images
from hpo_mab.data._folder import image_folder
from hpo_mab.data._images import Augmentation, ImageData
from hpo_mab.data._splits import (
    TEST_SHARE,
    DatasetSplits,
    Exclusion,
    ImageSplits,
    split,
    split_datasets,
)

#: The return value of a data set's function: ``"train"``, and ``"validation"`` and ``"test"`` where
#: it has them, each an `ImageData`, or each a map-style data set of ``(input tensor, class)``.
Parts = Mapping[str, Any]


def digits() -> Parts:
    """1,797 grey 8x8 images of ten digits; a fixed stratified fifth is the test part."""
    rows = _digits_of_sklearn()
    # Grey levels 0..16 become 0..255.
    pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    data = ImageData(
        images=torch.from_numpy(pixels).unsqueeze(1),
        labels=torch.from_numpy(rows[:, -1].astype(np.int64)),
        classes=tuple(str(digit) for digit in range(10)),
    )
    return {"train": data}


@functools.cache
def _digits_of_sklearn() -> NDArray[np.float64]:
    """64 grey levels and the class of each image, [1797, 65], from scikit-learn's file.

    An import of scikit-learn would take a second or two at every start of a process.
    """
    found = importlib.util.find_spec("sklearn")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return np.column_stack([images, classes])


#: Errors of torchvision for files that are absent, cut short or of another content.
_READ_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zlib.error,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The files and parts of a data set of torchvision.

    Attributes:
        cls: Its class in ``torchvision.datasets``.
        files: Patterns of its files below the root, archives included.
        splits: Arguments that choose the training and the test part.
        mirrored: Whether its images mean the same when mirrored.
    """

    cls: str
    files: tuple[str, ...]
    splits: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})
    mirrored: bool = False


_BY_SPLIT = ({"split": "train"}, {"split": "test"})
_SOURCES = {
    "mnist": _Source(cls="MNIST", files=("MNIST/raw/*",)),
    "fashion_mnist": _Source(cls="FashionMNIST", files=("FashionMNIST/raw/*",), mirrored=True),
    "kmnist": _Source(cls="KMNIST", files=("KMNIST/raw/*",)),
    "cifar10": _Source(
        cls="CIFAR10", files=("cifar-10-batches-py/*", "cifar-10-python.tar.gz"), mirrored=True
    ),
    "cifar100": _Source(
        cls="CIFAR100", files=("cifar-100-python/*", "cifar-100-python.tar.gz"), mirrored=True
    ),
    "svhn": _Source(cls="SVHN", files=("train_32x32.mat", "test_32x32.mat"), splits=_BY_SPLIT),
    "stl10": _Source(
        cls="STL10",
        files=("stl10_binary/*", "stl10_binary.tar.gz"),
        splits=_BY_SPLIT,
        mirrored=True,
    ),
}

_ARCHIVES = {".gz", ".mat"}


def load_torchvision(name: str, *, root: Path, download: bool) -> Parts:
    """A data set of `_SOURCES`, in torchvision's layout, fetched and decoded at most once.

    The files are fetched into a temporary folder and moved into place when complete. So a broken
    download leaves nothing behind. Pickled files (CIFAR) are read by torchvision alone, which
    compares their checksums first.
    """
    source = _SOURCES[name]
    present = _files_of(source, root)
    if present:
        cached = _images.read(
            root, name=name, key=_images.fingerprint(present, root=root, options={})
        )
        if cached is not None:
            return cached.parts
    parts = _decode_or_fetch(name, source, root, download=download)
    key = _images.fingerprint(_files_of(source, root), root=root, options={})
    _images.write(root, _images.Decoded(parts=parts), name=name, key=key)
    return parts


def _files_of(source: _Source, root: Path) -> list[Path]:
    return [path for pattern in source.files for path in root.glob(pattern) if path.is_file()]


def _decode_or_fetch(name: str, source: _Source, root: Path, *, download: bool) -> dict[str, Any]:
    try:
        return _decoded_parts(source, root)
    except _READ_ERRORS as error:
        if not download:
            raise DataError(
                f"Data set '{name}' is not usable in {root}: {_one_line(error)}. "
                "Allow the download (data.download = true), or put torchvision's files there."
            ) from error
    created = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _fetch(source, root)
        return _decoded_parts(source, root)
    except _READ_ERRORS as error:
        if created:
            with contextlib.suppress(OSError):
                root.rmdir()  # Raises if another process has put files there.
        raise DataError(
            f"Data set '{name}' is missing or damaged in {root} and could not be fetched: "
            f"{_one_line(error)}. Connect to the network, or put torchvision's files there."
        ) from error


def _decoded_parts(source: _Source, root: Path) -> dict[str, Any]:
    train, test = (
        _torchvision_dataset(source, root, download=False, **split) for split in source.splits
    )
    return {"train": _as_images(train), "test": _as_images(test)}


def _torchvision_dataset(source: _Source, root: Path, **options: Any) -> Any:
    # Here, not at the top: torchvision is slow to import and most calls need only the cache.
    from torchvision import datasets

    return getattr(datasets, source.cls)(str(root), **options)


def _fetch(source: _Source, root: Path) -> None:
    """Download into a temporary folder and move the result into place."""
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as folder:
        fetched = Path(folder)
        # Existing archives need no second download: torchvision checks them. It unpacks them again
        # in case the unpacked files are broken.
        archives = [file for file in _files_of(source, root) if file.suffix in _ARCHIVES]
        _move_files(archives, root, fetched, keep=True)
        for split in source.splits:
            _torchvision_dataset(source, fetched, download=True, **split)
        _move_files(_files_of(source, fetched), fetched, root, keep=False)


def _move_files(files: list[Path], old: Path, new: Path, *, keep: bool) -> None:
    for file in files:
        target = new / file.relative_to(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        if keep:
            shutil.copy2(file, target)
        else:
            file.replace(target)


def _as_images(dataset: Any) -> ImageData:
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    classes = getattr(dataset, "classes", None) or [str(n) for n in range(int(labels.max()) + 1)]
    return ImageData(
        images=torch.from_numpy(np.ascontiguousarray(pixels)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=tuple(classes),
    )


def _one_line(error: BaseException) -> str:
    text = textwrap.shorten(str(error), width=200, placeholder=" ...") or type(error).__name__
    return text.rstrip(".")


#: Data sets. A function gets those of ``root`` (a `Path`), ``download``, ``seed`` and
#: ``validation`` (the split's share) that it takes.
DATA_SETS = Registry(
    "data set",
    {
        "digits": digits,
        "image_folder": image_folder,
        **{name: functools.partial(load_torchvision, name) for name in _SOURCES},
    },
    given=("root", "download", "seed", "validation"),
)
#: Data sets whose images mean the same when mirrored.
_MIRRORED = {"image_folder", *(name for name, one in _SOURCES.items() if one.mirrored)}
_CLASSES_SHOWN = 10

_log = logging.getLogger("hpo_mab.data")


def load_splits(
    name: Named,
    *,
    validation: float = 0.15,
    seed: int = 0,
    root: Path | str = "data",
    download: bool = True,
    exclude: Path | str | None = None,
    **more: Any,
) -> ImageSplits | DatasetSplits:
    """Load a data set by name, in three parts, on the CPU.

    Decoded images are kept in ``root/.hpo_mab_cache`` until a source file changes. Later calls and
    other processes memory-map them from there; a root that cannot be written is decoded each time.

    ``hpo_mab.data`` logs, at the level INFO, sizes, classes with their training images, and files
    that were left out.

    Any other data set is a function, named ``package.module:Name``. It takes its options by name;
    also ``root``, ``download``, ``seed`` and ``validation`` if it needs them. It returns a mapping
    with ``"train"`` and, where it has them, ``"validation"`` and ``"test"``. All are `ImageData`,
    or all map-style data sets of ``(input tensor, class)``. Without a test part, a fixed stratified
    fifth of the training examples is the test part.

    Args:
        name: Such as ``"digits"``, ``"cifar10"`` or ``"image_folder"``; or such a function or its
            name.
        validation: Share of the training examples to validate on, in (0, 1), each class in
            proportion; not used where validation examples come with the data set.
        seed: Seed of that split.
        root: Folder of the data: torchvision's root, or the folder of an ``image_folder``.
            ``digits`` needs none.
        download: Whether to fetch what is missing.
        exclude: File of training images to leave out, as ``hpo-mab examples --drop`` writes it; the
            validation and the test part stay whole, so that accuracies can be compared.
        **more: Options of the data set; ``image_folder`` takes ``size``.

    Raises:
        UnknownNameError: No such data set or option.
        ArgumentError: An option outside its bound, or a share that leaves a part without some
            class.
        DataError: The data do not exist, cannot be fetched or read, or exceed memory; or
            ``exclude`` is a list of other images.
    """
    validation, seed = plain(validation), plain(seed)
    given = {"root": expanded(root), "download": download}
    found = _loaded(name, plain(more), validation=validation, seed=seed, **given)
    parts = found.parts
    if not isinstance(parts["train"], ImageData):
        if exclude is not None:
            raise ArgumentError(
                f"data.exclude is for data sets of images, which '{name_of(name)}' is not."
            )
        datasets = split_datasets(parts, validation=validation, seed=seed)
        _log.info("%s: %s", name_of(name), datasets.description)
        return datasets
    held_out = parts.get("validation", validation)
    splits = split(parts["train"], parts["test"], validation=held_out, seed=seed)
    splits = dataclasses.replace(splits, names=found.names)
    if exclude is not None:
        splits = splits.without(Exclusion.load(exclude))
    title = Path(root).resolve().name if name == "image_folder" else name_of(name)
    for line in _description(title or name_of(name), found, splits):
        _log.info("%s", line)
    return splits


def _loaded(name: Named, more: Mapping[str, Any], **given: Any) -> _images.Decoded:
    DATA_SETS.check(name, {key: [value] for key, value in more.items()}, section="data")
    try:
        found = DATA_SETS.maker(name, **given)(**more)
    except (Exception, SystemExit) as error:
        # Of our own data sets, any other error is a fault of this package.
        if isinstance(error, HpoMabError) or name in DATA_SETS:
            raise
        raise DataError(f"data set '{name_of(name)}': {failure_reason(error)}") from error
    if not isinstance(found, _images.Decoded):
        found = _images.Decoded(parts=_checked_parts(name_of(name), found))
    train = found.parts["train"]
    if not isinstance(train, ImageData) or "test" in found.parts:
        return found
    kept, held = stratified_split(train.labels, share=TEST_SHARE, seed=0, name="test")
    parts = {**found.parts, "train": train.subset(kept), "test": train.subset(held)}
    names = tuple(found.names[index] for index in kept.tolist()) if found.names else ()
    return dataclasses.replace(found, parts=parts, names=names)


def _checked_parts(name: str, parts: Any) -> dict[str, Any]:
    """The parts of a data set, each of the same sort."""
    present = {}
    if isinstance(parts, Mapping):
        present = {part: data for part, data in parts.items() if data is not None}
    if "train" not in present or not {*parts} <= {"train", "validation", "test"}:
        found = f"the keys {', '.join(map(repr, parts))}" if isinstance(parts, Mapping) else ""
        raise ArgumentError(
            f"data set '{name}' must return a mapping with 'train' and, if it has them, "
            f"'validation' and 'test', got {found or type(parts).__name__}."
        )
    if len({isinstance(data, ImageData) for data in present.values()}) > 1:
        kinds = ", ".join(f"{part} {type(data).__name__}" for part, data in present.items())
        raise ArgumentError(
            f"the parts of data set '{name}' must all be ImageData, or none of them, got {kinds}."
        )
    return present


def _description(title: str, found: _images.Decoded, splits: ImageSplits) -> list[str]:
    """Sizes and classes of a data set, and notes on its files, a sentence each."""
    train = splits.train
    height, width = train.image_size
    scaled = ""
    if found.sides is not None and set(found.sides) != {min(height, width)}:
        scaled = f" (from {' to '.join(map(str, sorted(set(found.sides))))})"
    counts = train.labels.bincount(minlength=train.num_classes).tolist()
    named = [f"{name} {count:,}" for name, count in zip(train.classes, counts, strict=True)]
    more = len(named) - _CLASSES_SHOWN
    shown = ", ".join(named[:_CLASSES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return [
        f"{title}: {len(train):,} training, {len(splits.validation):,} validation, "
        f"{len(splits.test):,} test images, {train.num_classes:,} classes, "
        f"{width}x{height} pixels{scaled}",
        f"Training images by class: {shown}",
        *found.notes,
    ]


def default_augmentation(name: Named, *, image_size: tuple[int, int]) -> Augmentation:
    """The augmentation that suits a data set: shifts by an eighth; mirrored where that is safe.

    Args:
        name: As for `load_splits`; images of one from elsewhere are not mirrored.
        image_size: Height and width in pixels.

    Raises:
        UnknownNameError: No such data set.
        ArgumentError: It cannot be imported.
    """
    DATA_SETS.load(name)
    return Augmentation(pad=min(image_size) // 8, flip=name in _MIRRORED)
