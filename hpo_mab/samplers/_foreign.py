"""Samplers from elsewhere, of PyTorch's interface, as batch samplers of this package."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab._registry import bound_to, parameters
from hpo_mab.samplers._base import BatchSampler, CommonArguments
from hpo_mab.samplers._feedback import Draw


def foreign_sampler(
    make: Callable[..., Any],
    name: str,
    labels: Tensor | Sequence[int],
    /,
    **arguments: Any,
) -> BatchSampler:
    """Make a sampler of a class or function from elsewhere.

    Args:
        make: The sampler's class, or a function that returns the sampler. It is called with the
            sampler's options. Of ``labels``, ``data_source`` (the labels, as a container of N) and
            every sampler's arguments, it gets those that its signature has. A ``**`` gets all of
            them but ``data_source``.
        name: Its name, for messages and checkpoints.
        labels: Class of each training example, integers [N].
        **arguments: Arguments of every sampler, see `BatchSampler`, and options of this one.

    Returns:
        The sampler itself if it is a `BatchSampler` of this package, else a `ForeignSampler`.
    """
    given = {one: arguments.pop(one) for one in CommonArguments.__annotations__ if one in arguments}
    bound = inspect.signature(BatchSampler).bind(labels, **given)
    bound.apply_defaults()
    common = bound.kwargs
    random = _RandomState(common["seed"])
    with random:
        given = {"labels": labels, **common}
        # A function with ``**`` may pass all of it on to a sampler of this package.
        if "data_source" in parameters(make):
            given["data_source"] = labels
        made = bound_to(make, given)(**arguments)
    if isinstance(made, BatchSampler):
        return made
    return ForeignSampler(made, labels, name=name, random=random, options=arguments, **common)


class _RandomState(contextlib.AbstractContextManager[None]):
    """A state of PyTorch's global generator that only one sampler uses, within the context.

    Without it a network's dropout would change what a sampler draws. A training that continues from
    a checkpoint would then draw other batches than one without a stop.
    """

    def __init__(self, seed: int) -> None:
        self._own = torch.Generator().manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._others = torch.get_rng_state()
        torch.set_rng_state(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = torch.get_rng_state()
        torch.set_rng_state(self._others)


class ForeignSampler(BatchSampler):
    """Batches of a sampler of PyTorch's interface, pass after pass; it learns nothing from losses.

    Indices that come one by one are cut into batches, across the ends of passes. Batches must have
    the size asked; a shorter one at the end of a pass is left out. ``set_epoch`` is called before
    each pass where the sampler has it, as PyTorch's `DistributedSampler` needs.

    A state is the number of batches drawn: a sampler that loads it draws as many again.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`; the sampler itself must split
            the examples among ranks.
        sampler: Iterable of indices, or of batches of indices, which can be iterated over more than
            once. Its random choices follow from its own seed or from PyTorch's global state.
        name: The sampler's name.
        random: Random state in which the sampler was made.
        options: Options that it was made with; a state is only loaded with the same ones.

    Raises:
        ArgumentError: A sampler that cannot be iterated over; at a draw, a batch of another size
            or an index of no example.
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        labels: Tensor | Sequence[int],
        *,
        name: str,
        random: _RandomState,
        options: Mapping[str, Any],
        **common: Unpack[CommonArguments],
    ) -> None:
        if not isinstance(sampler, Iterable):
            raise ArgumentError(
                f"sampler '{name}' must be an iterable of indices or of batches of them, "
                f"got {type(sampler).__name__}."
            )
        super().__init__(labels, **common)
        self._name = name
        self._sampler = sampler
        self._random = random
        self._drawn = 0
        #: Indices that do not fill a batch yet.
        self._indices: list[Any] = []
        batches = self._stream()
        with random:
            # Raises for batches of another size here, before anything is trained.
            self._batches = itertools.chain([next(batches)], batches)

    def _draw(self) -> Draw:
        self._drawn += 1
        with self._random:
            batch = next(self._batches)
        return Draw(batch.to(self.device))

    def _state(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def _load_state(self, state: dict[str, Any]) -> None:
        if self._drawn:
            raise ArgumentError(f"sampler '{self._name}' must load a state before its first draw.")
        for _ in range(int(state["drawn"])):
            self._draw()

    def _stream(self) -> Iterator[Tensor]:
        """Endless batches, int64 [B] each."""
        for number in itertools.count():
            if hasattr(self._sampler, "set_epoch"):
                self._sampler.set_epoch(number)
            last = size = 0
            waiting = len(self._indices)
            for batch in self._pass():
                # A shorter batch is allowed at the end only, so it is an error once another
                # follows.
                if 0 < last < self.batch_size:
                    raise self._wrong_size(last)
                if len(batch) > self.batch_size:
                    raise self._wrong_size(len(batch))
                last = len(batch) or last
                size = max(size, last)
                if len(batch) == self.batch_size:
                    yield self._checked(batch)
            # With passes that give neither a full batch nor a new index, this loop would not end.
            if size != self.batch_size and len(self._indices) == waiting:
                raise self._wrong_size(size)

    def _pass(self) -> Iterator[Any]:
        """The batches of one pass; single indices are cut into batches."""
        for item in self._sampler:
            if not _is_index(item):
                yield item
                continue
            self._indices.append(item)
            if len(self._indices) == self.batch_size:
                batch, self._indices = self._indices, []
                yield batch

    def _wrong_size(self, found: int) -> ArgumentError:
        return ArgumentError(
            f"sampler '{self._name}' must draw batches of {self.batch_size} indices, got {found}; "
            "only the last batch of a pass may be shorter, and is left out."
        )

    def _checked(self, batch: Any) -> Tensor:
        """A batch as int64 [B] on the CPU; another index would stop a CUDA device."""
        try:
            indices = torch.as_tensor(batch)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"sampler '{self._name}' must draw integers: {error}.") from None
        last = len(self.labels) - 1
        if indices.dtype == torch.bool or indices.is_floating_point():
            raise ArgumentError(f"sampler '{self._name}' must draw integers, got {indices.dtype}.")
        if not 0 <= int(indices.min()) <= int(indices.max()) <= last:
            raise ArgumentError(
                f"sampler '{self._name}' must draw indices in [0, {last}], "
                f"got {int(indices.min())} to {int(indices.max())}."
            )
        return indices.to("cpu", torch.int64)


def _is_index(item: Any) -> bool:
    # Not `numpy.ndim`, which raises for a batch of unequal parts.
    return getattr(item, "ndim", None) == 0 or not hasattr(item, "__len__")
