"""Training, validation and test parts of a data set, and training images that are left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from hpo_mab._errors import ArgumentError, DataError, plain
from hpo_mab._examples import labels_digest
from hpo_mab._labels import check_examples, labels_of, stratified_split
from hpo_mab._machine import expanded
from hpo_mab.data._images import ImageData

#: Images whose pixels are counted at once.
_BLOCK = 4096
#: Share of the training examples that become the test part of data without one.
TEST_SHARE = 0.2
_EXCLUSION_FORMAT = 1


def names_digest(names: tuple[str, ...]) -> str:
    """Digest of the files of all training images; empty if they are not a user's files."""
    text = "\0".join(names).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest() if names else ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Training images to leave out, as ``hpo-mab examples --drop`` writes them.

    Attributes:
        labels: Digest of the labels of all training images of the data set.
        indices: Places among them, ascending.
        data: Name of the data set, for messages.
        files: Digest of the file names of all training images; empty matches any.
        path: The file, for messages.
    """

    labels: str
    indices: tuple[int, ...]
    data: str = ""
    files: str = ""
    path: str = ""

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file that `to_json` made.

        Raises:
            DataError: It cannot be read, or is no such list.
        """
        try:
            raw = json.loads(expanded(path).read_text(encoding="utf-8"))
            if raw["format"] != _EXCLUSION_FORMAT:
                raise DataError(
                    f"data.exclude: {path} has format {raw['format']!r}; this hpo-mab reads "
                    f"format {_EXCLUSION_FORMAT}."
                )
            return cls(
                labels=str(raw["labels"]),
                indices=tuple(int(index) for index in raw["indices"]),
                data=str(raw["data"]),
                files=str(raw["files"]),
                path=str(path),
            )
        except OSError as error:
            raise DataError(f"data.exclude: {path} cannot be read: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError, OverflowError):
            raise DataError(
                f"data.exclude: {path} is not a list of images; hpo-mab examples --drop writes one."
            ) from None

    def to_json(self) -> str:
        """The text of a file."""
        facts = {
            "format": _EXCLUSION_FORMAT,
            "data": self.data,
            "labels": self.labels,
            "files": self.files,
            "indices": list(self.indices),
        }
        return json.dumps(facts) + "\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSplits:
    """The three parts of a data set and the training part's pixel statistics.

    Attributes:
        train: Images to train on.
        validation: Images to evaluate trials on, disjoint from ``train``.
        test: Images kept for the final score.
        mean: Mean of each channel over ``train``, float32 [channels], pixels scaled to [0, 1].
        std: Standard deviation of each channel likewise; 1 where a channel is constant.
        positions: Places of ``train`` among the training images of the data set, int64 [N] on the
            CPU; None if it is all of them.
        source: Digest of the labels of all training images of the data set, before any were held
            out or left out.
        names: File of each training image of the data set; empty if they are not a user's files.
        left_out: Places that `without` left out, those of held-out images included, ascending.

    Examples:
        >>> import numpy as np
        >>> from hpo_mab.data import ImageData, split
        >>> images = np.zeros((20, 8, 8), dtype=np.uint8)
        >>> data = ImageData.from_arrays(images, [0, 1] * 10)
        >>> splits = split(data, data, validation=0.2)
        >>> splits.sizes
        (16, 4, 20)
    """

    train: ImageData
    validation: ImageData
    test: ImageData
    mean: Tensor
    std: Tensor
    positions: Tensor | None = None
    source: str = ""
    names: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()

    def without(self, exclusion: Exclusion) -> Self:
        """The same parts without some training images; the other parts stay as they are.

        Raises:
            DataError: The list is of other images, or leaves a class without any.
        """
        # The labels alone do not show that images of a class were renamed.
        same_files = exclusion.files in ("", names_digest(self.names))
        for what, same in (("labels", exclusion.labels == self.source), ("files", same_files)):
            if not same:
                raise DataError(
                    f"data.exclude: {exclusion.path} lists images of a data set with other "
                    f"training {what} ({exclusion.data or 'not named'}); make the list with "
                    "hpo-mab examples from a study on these data."
                )
        where = torch.arange(len(self.train)) if self.positions is None else self.positions
        listed = {*self.left_out, *exclusion.indices}
        kept = torch.tensor([index not in listed for index in where.tolist()])
        labels = self.train.labels.cpu()
        gone = sorted(set(labels.tolist()) - set(labels[kept].tolist()))
        if gone:
            name = self.train.classes[gone[0]]
            raise DataError(
                f"data.exclude: {exclusion.path} lists all training images of class {name}."
            )
        train = self.train.subset(kept.nonzero()[:, 0])
        mean, std = channel_statistics(train)
        return dataclasses.replace(
            self,
            train=train,
            mean=mean,
            std=std,
            positions=where[kept],
            left_out=tuple(sorted(listed)),
        )

    @property
    def labels(self) -> Tensor:
        """Class of each training example, int64 [N]."""
        return self.train.labels

    @property
    def num_classes(self) -> int:
        """Number of classes, ``C``."""
        return self.train.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a network's input: [channels, height, width]."""
        return (self.train.channels, *self.train.image_size)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Examples of the training, validation and test part."""
        return len(self.train), len(self.validation), len(self.test)

    def to(self, device: torch.device | str) -> Self:
        """The same parts on another device."""
        return dataclasses.replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


def split(
    train: ImageData,
    test: ImageData,
    *,
    validation: float | ImageData = 0.15,
    seed: int = 0,
) -> ImageSplits:
    """Cut a validation part out of the training images, each class in proportion.

    Args:
        train: Images to split.
        test: Images kept for the final score, passed through.
        validation: Share of ``train`` to validate on, in (0, 1); or the validation images, which
            leave ``train`` whole.
        seed: Seed of the split. Same seed, same split.

    Raises:
        ArgumentError: A share out of bounds, or one that leaves a class out of one side. A single
            class, or other images that do not match those of ``train``.
    """
    validation, seed = plain(validation), plain(seed)
    _check_same_form("test", test, train)
    positions = None
    if isinstance(validation, ImageData):
        _check_same_form("validation", validation, train)
        part, held = train, validation
    else:
        kept, held_out = stratified_split(train.labels, share=validation, seed=seed)
        part, held = train.subset(kept), train.subset(held_out)
        positions = kept
    mean, std = channel_statistics(part)
    return ImageSplits(
        train=part,
        validation=held,
        test=test,
        mean=mean,
        std=std,
        positions=positions,
        source=labels_digest(train.labels.cpu().numpy()),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DatasetSplits:
    """Parts of a data set of any kind, which a ``DataLoader`` makes batches of.

    Attributes:
        train: Map-style data set of ``(input tensor, class)`` to train on.
        validation: Examples to evaluate trials on.
        test: Examples kept for the final score; None where there are none.
        labels: Class of each training example, int64 [N] on the CPU.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from hpo_mab.data import DatasetSplits
        >>> part = TensorDataset(torch.zeros(6, 3), torch.tensor([0, 1] * 3))
        >>> DatasetSplits.of(train=part, validation=part).num_classes
        2
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any] | None = None
    labels: Tensor

    @classmethod
    def of(cls, train: Dataset[Any], validation: Dataset[Any]) -> Self:
        """A training and a validation part.

        Raises:
            ArgumentError: Items that are not pairs of an input and a class.
        """
        # First: it reads two examples, and the labels of the training part may need all.
        check_examples(validation, name="the validation set in data")
        labels = labels_of(train, name="the training set in data")
        return cls(train=train, validation=validation, labels=labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, ``C``: one more than the largest label."""
        return int(self.labels.max()) + 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first training input.

        Raises:
            ArgumentError: It is no tensor.
        """
        first = self.train[0][0]
        if not isinstance(first, Tensor):
            raise ArgumentError(
                f"inputs of the training set in data must be tensors, got {type(first).__name__}."
            )
        return tuple(first.shape)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Examples of the training, validation and test part."""
        parts: tuple[Any, ...] = (self.train, self.validation, self.test or ())
        return len(parts[0]), len(parts[1]), len(parts[2])

    @property
    def description(self) -> str:
        """Sizes, classes and inputs, in words."""
        train, validation, test = self.sizes
        return (
            f"{train:,} training, {validation:,} validation, {test:,} test examples, "
            f"{self.num_classes:,} classes, inputs of shape {list(self.input_shape)}"
        )


def split_datasets(
    parts: Mapping[str, Dataset[Any]], *, validation: float, seed: int
) -> DatasetSplits:
    """Cut the parts that do not come with a data set out of its training examples.

    Args:
        parts: ``"train"`` and, where there are, ``"validation"`` and ``"test"``.
        validation: Share of the training examples to validate on, in (0, 1), each class in
            proportion.
        seed: Seed of that split. The test part is a fixed fifth.
    """
    found = dict(parts)
    labels = labels_of(found["train"], name="the training set in data")
    classes = int(labels.max()) + 1
    # The test part first: it is then the same for every seed.
    for name, share, chosen in (("test", TEST_SHARE, 0), ("validation", validation, seed)):
        if name in found:
            check_examples(found[name], name=f"the {name} set in data", classes=classes)
            continue
        train = found["train"]
        kept, held = stratified_split(labels, share=share, seed=chosen, name=name)
        found["train"], found[name] = Subset(train, kept.tolist()), Subset(train, held.tolist())
        labels = labels[kept]
    return DatasetSplits(**found, labels=labels)


def _check_same_form(name: str, part: ImageData, train: ImageData) -> None:
    shape, expected = ([data.channels, *data.image_size] for data in (part, train))
    if part.classes != train.classes or shape != expected:
        raise ArgumentError(
            f"{name} must have the classes and image shape of train, "
            f"got {part.num_classes} classes of shape {shape} for {train.num_classes} of shape "
            f"{expected}{_other_classes(part.classes, train.classes)}."
        )


def _other_classes(one: Sequence[str], other: Sequence[str]) -> str:
    """How the names of classes differ, for a message; empty if they do not."""
    if one == other:
        return ""
    differ = sorted({*one} ^ {*other})
    return f"; only in one of them: {', '.join(differ[:10])}" if differ else "; in another order"


def channel_statistics(data: ImageData) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of images, pixels scaled to [0, 1].

    Computed from a histogram of the 256 values, which is exact and needs no float copy.

    Returns:
        ``mean`` and ``std``, float32 [channels]; a constant channel has ``std`` 1.
    """
    counts = torch.zeros(data.channels, 256, dtype=torch.int64)
    for block in data.blocks(_BLOCK):
        found = [torch.bincount(channel.flatten(), minlength=256) for channel in block.unbind(1)]
        counts += torch.stack(found).cpu()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    std = torch.where(variance > 0, variance.sqrt(), 1.0)
    return mean.float().to(data.device), std.float().to(data.device)
