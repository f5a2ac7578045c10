"""One pass over examples to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpo_mab._errors import ArgumentError
from hpo_mab.data import ImageData, Normalization
from hpo_mab.training._batches import to_device


class Sweep(Protocol):
    """Evaluation examples; each iteration is one pass over all of them."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """``(inputs, targets)`` on the training device, each example once."""
        ...


class DeviceSweep:
    """Images on the device in large batches, in order.

    Args:
        data: Images on the training device.
        normalization: Turns pixels into network inputs.
        batch_size: Examples a batch.

    Raises:
        ArgumentError: A batch size below 1.
    """

    def __init__(
        self, data: ImageData, *, normalization: Normalization, batch_size: int = 1024
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}.")
        self.data = data
        self.normalization = normalization
        self.batch_size = batch_size

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
        batch_size: Examples a batch.
        num_workers: Loader processes; 0 loads in this process.

    Raises:
        ArgumentError: An argument outside its bound, or a data set without examples.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 1024,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ArgumentError(f"num_workers must be at least 0, got {num_workers}.")
        if len(dataset) == 0:  # type: ignore[arg-type]
            raise ArgumentError("dataset must not be empty, got 0 examples.")
        self.device = torch.device(device)
        self._loader = DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            # Its own generator: iterating must not move the global random state.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in self._loader:
            yield to_device(inputs, targets, self.device)
