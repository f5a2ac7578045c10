"""Where training batches come from."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hpo_mab._errors import ArgumentError
from hpo_mab._labels import class_labels
from hpo_mab.data import Augmentation, ImageData, Normalization
from hpo_mab.training._meters import TimedSampler


class Batches(Protocol):
    """Training examples that can be fetched by a sampler's draws."""

    def stream(self, sampler: TimedSampler) -> Generator[tuple[Tensor, Tensor]]:
        """Endless ``(inputs, targets)`` on the training device, one pair a draw, in order."""
        ...

    def inputs(self, indices: Tensor) -> Tensor:
        """Network inputs of examples, unaugmented, on the training device."""
        ...


class DeviceBatches:
    """Batches gathered on the device from images that live there: the fast path.

    Args:
        data: Training images, on the training device.
        normalization: Turns pixels into network inputs.
        augmentation: Random change of each batch; None for none.
        seed: Seed of the augmentation.
    """

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
        self._generator = torch.Generator(device=data.device).manual_seed(seed)

    @property
    def generator(self) -> torch.Generator:
        """Random generator of the augmentation."""
        return self._generator

    def stream(self, sampler: TimedSampler) -> Generator[tuple[Tensor, Tensor]]:
        """Endless batches: draw, gather, augment, normalise."""
        device = self.data.device
        while True:
            yield self.fetch(sampler.draw().to(device, non_blocking=True))

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Gather, augment, normalise: inputs and targets of the examples [B], on the device."""
        images = self.data.gather(indices)
        if self.augmentation is not None:
            images = self.augmentation(images, generator=self._generator)
        return self.normalization(images), self.data.labels.index_select(0, indices)

    def inputs(self, indices: Tensor) -> Tensor:
        """Network inputs of examples, unaugmented, float32 [n, channels, height, width]."""
        return self.normalization(self.data.gather(indices.to(self.data.device)))


class LoaderBatches:
    """Batches of a user's own map-style data set, loaded by a ``DataLoader``.

    With workers the loader draws ahead, so the sampler learns a few steps late; it matches
    feedback to draws by itself.

    Args:
        dataset: Map-style data set of ``(x, y)``, ``y`` an integer class.
        device: Where to train.
        num_workers: Loader processes; 0 loads in this process.
        seed: Seed of the loader's workers; the global random state is left alone.

    Raises:
        ArgumentError: A negative number of workers.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        if num_workers < 0:
            raise ArgumentError(f"num_workers must be at least 0, got {num_workers}.")
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
            persistent_workers=self.num_workers > 0,
            pin_memory=self.device.type == "cuda",
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


def to_device(inputs: Tensor, targets: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A loaded batch on the training device, targets as int64."""
    if not isinstance(targets, Tensor) or targets.is_cpu:
        targets = class_labels(targets, name="targets")
    return (
        inputs.to(device, non_blocking=True),
        targets.to(device, torch.int64, non_blocking=True),
    )
