"""Batches of a training, their losses and times, and passes over the examples of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hpo_mab._errors import ArgumentError, plain_arguments, require
from hpo_mab._labels import class_labels
from hpo_mab.data import Augmentation, ImageData, Normalization
from hpo_mab.samplers._base import BatchSampler
from hpo_mab.samplers._feedback import Draw, copied_to
from hpo_mab.training._schedule import TrainingDiverged

_T = TypeVar("_T")


class LossMeter:
    """Mean training loss since the last reading, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._total = torch.zeros((), device=device)
        # Elsewhere reading the loss at every step would make the host wait for the device.
        self._watch = device.type == "cpu"
        self._count = 0

    def accumulate(self, losses: Tensor) -> None:
        """Add the mean of a batch's detached losses, float [B]; `count` must follow."""
        self._total += losses.mean()

    def count(self, *, step: int) -> None:
        """Count a batch whose losses were accumulated.

        Raises:
            TrainingDiverged: On the CPU only, where reading is free: the loss is not finite.
        """
        self._count += 1
        if self._watch:
            _require_finite(float(self._total), step)

    def read(self, *, step: int) -> float:
        """Mean over the batches since the last reading, in nats; waits for the device.

        Raises:
            TrainingDiverged: The mean is not finite.
        """
        mean = float(self._total) / self._count
        self._total.zero_()
        self._count = 0
        _require_finite(mean, step)
        return mean


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(step, f"the training loss is {loss}")


class TimedSampler:
    """Passes draws and feedback to a sampler and adds up the host seconds they take.

    On a GPU the host time of an operation is that of its launch. Use it as ``batch_sampler`` of a
    ``DataLoader``, or call `next_draw`.

    Attributes:
        sampler: The sampler timed.
        seconds: Seconds spent in it so far.
    """

    def __init__(self, sampler: BatchSampler, *, clock: Callable[[], float]) -> None:
        self.sampler = sampler
        self.seconds = 0.0
        self._clock = clock

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        """One pass of batches, each a list of indices."""
        batches = iter(self.sampler)
        while (batch := self._timed(lambda: next(batches, None))) is not None:
            yield batch

    def next_draw(self) -> Draw:
        """The sampler's next batch with its weights."""
        return self._timed(self.sampler.next_draw)

    def update(self, losses: Tensor, *, logits: Tensor, targets: Tensor) -> Tensor:
        """Answer the oldest draw with losses [B]; returns the scalar to back-propagate."""
        return self._timed(lambda: self.sampler.update(losses, logits=logits, targets=targets))

    def _timed(self, call: Callable[[], _T]) -> _T:
        start = self._clock()
        result = call()
        self.seconds += self._clock() - start
        return result


class DeviceBatches:
    """Batches gathered on the device from images that are stored there: the fast path.

    Args:
        data: Training images, on the training device.
        normalization: Turns pixels into network inputs.
        augmentation: Random change of each batch; None for none.
        seed: Seed of the augmentation.

    Examples:
        >>> import torch
        >>> from hpo_mab.data import Normalization, load_splits
        >>> from hpo_mab.training import DeviceBatches
        >>> splits = load_splits("digits")
        >>> scale = Normalization(splits.mean, splits.std)
        >>> batches = DeviceBatches(splits.train, normalization=scale)
        >>> inputs, targets = batches.fetch(torch.arange(32))
        >>> inputs.shape
        torch.Size([32, 1, 8, 8])
    """

    @plain_arguments
    def __init__(
        self,
        data: ImageData,
        *,
        normalization: Normalization,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.data = data
        self.normalization = normalization
        self.augmentation = augmentation
        #: Random generator of the augmentation.
        self.generator = torch.Generator(device=data.device).manual_seed(seed)

    def stream(self, sampler: TimedSampler) -> Generator[tuple[Tensor, Tensor]]:
        """Endless batches: draw, gather, augment, normalise."""
        device = self.data.device
        while True:
            yield self.fetch(copied_to(device, sampler.next_draw().indices))

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Gather, augment, normalise: inputs and targets of the examples [B], on the device."""
        images = self.data.gather(indices)
        if self.augmentation is not None:
            images = self.augmentation(images, generator=self.generator)
        return self.normalization(images), self.data.labels.index_select(0, indices)

    def inputs(self, indices: Tensor) -> Tensor:
        """Network inputs of examples, unaugmented, float32 [n, channels, height, width]."""
        return self.normalization(self.data.gather(indices.to(self.data.device)))


class LoaderBatches:
    """Batches of a user's own map-style data set, loaded by a ``DataLoader``.

    With workers the loader draws ahead, so the sampler gets losses a few steps late; it matches
    them to their draws.

    Args:
        dataset: Map-style data set of ``(x, y)``, ``y`` an integer class.
        device: Where to train.
        num_workers: Loader processes; 0 loads in this process.
        seed: Seed of the loader's workers; the global random state does not change.

    Raises:
        ArgumentError: A negative number of workers.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from hpo_mab.training import LoaderBatches
        >>> dataset = TensorDataset(torch.zeros(6, 3), torch.tensor([0, 1] * 3))
        >>> LoaderBatches(dataset).inputs(torch.tensor([0, 4])).shape
        torch.Size([2, 3])
    """

    @plain_arguments
    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        require(num_workers >= 0, "num_workers", "at least 0", num_workers)
        self.dataset = dataset
        self.device = torch.device(device)
        self.num_workers = num_workers
        self.seed = seed

    def stream(self, sampler: TimedSampler) -> Generator[tuple[Tensor, Tensor]]:
        """Endless batches: pass after pass of the loader."""
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            # New processes for each pass would cost more than a short pass.
            persistent_workers=self.num_workers > 0,
            # With loader processes a thread of this process pins; without them `to_device` does.
            pin_memory=self.device.type == "cuda" and self.num_workers > 0,
            generator=torch.Generator().manual_seed(self.seed),
        )
        while True:
            for inputs, targets in loader:
                yield to_device(inputs, targets, self.device)

    def inputs(self, indices: Tensor) -> Tensor:
        """Network inputs of examples as the data set gives them, its own transforms included."""
        examples = [self.dataset[index][0] for index in indices.tolist()]
        batch: Tensor = default_collate(examples)
        return batch.to(self.device)


#: Training examples that a sampler's draws are fetched from.
Batches = DeviceBatches | LoaderBatches


def to_device(inputs: Tensor, targets: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A loaded batch on the training device, targets as int64."""
    if not isinstance(targets, Tensor) or targets.is_cpu:
        targets = class_labels(targets, name="targets")
    if device.type == "cuda" and inputs.is_cpu and not inputs.is_pinned():
        # Only copies from pinned memory can overlap with the step.
        inputs = inputs.pin_memory()
    return copied_to(device, inputs), copied_to(device, targets, torch.int64)


#: What a sweep's labels are, for errors.
EVALUATED = "labels of the examples to evaluate on"


#: Network inputs that a sweep holds at once: examples, and bytes of float32.
_SWEPT_EXAMPLES, _SWEPT_BYTES = 1024, 64 * 2**20


class DeviceSweep:
    """Images on the device in large batches, in order.

    Args:
        data: Images on the training device.
        normalization: Turns pixels into network inputs.
        batch_size: Examples per batch; None takes 1,024, and fewer where they exceed 64 MiB.

    Raises:
        ArgumentError: A batch size below 1.

    Examples:
        >>> from hpo_mab.data import Normalization, load_splits
        >>> from hpo_mab.training import DeviceSweep
        >>> splits = load_splits("digits")
        >>> scale = Normalization(splits.mean, splits.std)
        >>> sweep = DeviceSweep(splits.validation, normalization=scale)
        >>> sum(len(targets) for _, targets in sweep) == len(splits.validation)
        True
    """

    @plain_arguments
    def __init__(
        self, data: ImageData, *, normalization: Normalization, batch_size: int | None = None
    ) -> None:
        if batch_size is None:
            each = 4 * data.channels * math.prod(data.image_size)
            batch_size = max(1, min(_SWEPT_EXAMPLES, _SWEPT_BYTES // each))
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
        self.data = data
        self.normalization = normalization
        self.batch_size = batch_size
        #: Read once: reading a label later would wait for the device.
        self.highest_label = int(data.labels.max())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches(self.batch_size)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in batches of another size."""
        labels = torch.split(self.data.labels, size)
        for pixels, targets in zip(self.data.blocks(size), labels, strict=True):
            yield self.normalization(pixels), targets


class LoaderSweep:
    """A user's own map-style data set, loaded by a ``DataLoader`` in order.

    Args:
        dataset: Map-style data set of ``(x, y)``, ``y`` an integer class.
        device: Where to evaluate.
        batch_size: Examples per batch.
        num_workers: Loader processes; 0 loads in this process.

    Raises:
        ArgumentError: An argument outside its bound, or a data set without examples.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from hpo_mab.training import LoaderSweep
        >>> dataset = TensorDataset(torch.zeros(6, 3), torch.tensor([0, 1] * 3))
        >>> [len(targets) for _, targets in LoaderSweep(dataset, batch_size=4)]
        [4, 2]
    """

    @plain_arguments
    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
        require(num_workers >= 0, "num_workers", "at least 0", num_workers)
        if len(dataset) == 0:  # type: ignore[arg-type]
            raise ArgumentError("dataset must not be empty, got 0 examples.")
        self.device = torch.device(device)
        #: Highest label of the batches so far.
        self.highest_label = 0
        self._loader = DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            # A separate generator: iterating must not advance the global random state.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in self._loader:
            labels = class_labels(targets, name="targets")
            if (low := int(labels.min())) < 0:
                raise ArgumentError(f"{EVALUATED} must be at least 0, got {low}.")
            self.highest_label = max(self.highest_label, int(labels.max()))
            yield to_device(inputs, labels, self.device)


#: Evaluation examples; each iteration is one pass over all of them.
Sweep = DeviceSweep | LoaderSweep
