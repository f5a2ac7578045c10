"""The contract of every batch sampler: draw a batch of indices, learn from its losses."""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import Sampler

from hpo_mab._errors import ArgumentError


class FeedbackError(RuntimeError):
    """Feedback that answers no draw, or not the draw it should."""


@dataclasses.dataclass(slots=True)
class Draw:
    """A batch that waits for its losses.

    Attributes:
        indices: Examples drawn, int64 [B].
        weights: Importance weights for the mean loss, float32 [B]; None means all ones.
        context: What the sampler itself must remember of the draw.
    """

    indices: Tensor
    weights: Tensor | None = None
    context: Any = None


class BatchSampler(Sampler[list[int]], abc.ABC):
    """Base class of batch samplers that learn from per-example losses.

    A subclass implements `_draw` and `_learn`; this class matches feedback to draws, in order,
    however late it comes. Use a sampler either as ``DataLoader(dataset, batch_sampler=sampler)``
    or by calling `draw` directly, and answer every batch with `update`:

    .. code-block:: python

        for x, y in loader:
            loss = sampler.update(F.cross_entropy(model(x), y, reduction="none"))

    A ``DataLoader`` with workers draws ``prefetch_factor * num_workers`` batches ahead, so its
    feedback lags by as many steps; it is still matched to the right draw. Starting a new pass
    (``iter(sampler)``) forgets draws of an abandoned pass that were never answered.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``; at least 1 and at most this rank's examples.
        seed: Seed of every random choice. Same seed, same stream on the same device.
        device: Where indices are drawn and losses are expected. Losses elsewhere are copied.
        rank: This process's share among ``world_size``; shares are class-stratified.
        world_size: Number of processes that split the examples.

    Raises:
        ArgumentError: An argument outside its bound.
    """

    #: Whether `update` needs ``logits`` and ``targets``, not the losses alone.
    needs_logits: ClassVar[bool] = False
    #: Whether the weights of a batch follow from its own losses: `update` must come between the
    #: forward and the backward pass, so that no captured step can hold the two.
    weighs_by_losses: ClassVar[bool] = False

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # A tensor on the CPU once: strata are made on the host whatever the device.
        self.labels = torch.as_tensor(labels, dtype=torch.int64).cpu()
        if self.labels.ndim != 1 or len(self.labels) == 0:
            raise ArgumentError(
                "labels must be one-dimensional and not empty, "
                f"got shape {list(self.labels.shape)}."
            )
        if not 0 <= rank < world_size:
            raise ArgumentError(f"rank must be in [0, {world_size}), got {rank}.")
        self.device = torch.device(device)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size
        if not 1 <= batch_size <= self.num_examples:
            raise ArgumentError(
                f"batch_size must be in [1, {self.num_examples}], the number of examples"
                f"{' of this rank' if world_size > 1 else ''}, got {batch_size}."
            )
        self._outstanding: collections.deque[Draw] = collections.deque()

    @abc.abstractmethod
    def _draw(self) -> Draw:
        """Draw the next batch of exactly ``batch_size`` indices into the whole data set."""

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        """Learn from a draw's losses. Non-finite losses must leave no trace.

        Args:
            draw: The draw answered.
            losses: Detached float32 [B] on ``self.device``, possibly non-finite.
            logits: Detached float32 [B, C] if given.
            targets: Labels int64 [B] if given.
        """

    @property
    def graph_generator(self) -> torch.Generator | None:
        """The generator that a CUDA graph of `draw` must register; None where there is none."""
        return None

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold `draw` and `update`, whatever the progress.

        Needs a `graph_generator`, and a draw's context that is one tensor.
        """
        return False

    @property
    def examples(self) -> Tensor:
        """Examples this sampler (this rank) draws from, int64 [N / world_size] on the CPU.

        Made when asked for, dealt in turn from a per-class shuffle: eight bytes an example less.
        """
        if self.world_size == 1:
            return torch.arange(len(self.labels))
        generator = torch.Generator().manual_seed(self.seed)
        shuffled = torch.randperm(len(self.labels), generator=generator)
        by_class = shuffled[torch.argsort(self.labels[shuffled], stable=True)]
        return by_class[self.rank :: self.world_size].sort().values

    @property
    def num_examples(self) -> int:
        """Number of examples this sampler (this rank) draws from."""
        return len(range(self.rank, len(self.labels), self.world_size))

    @property
    def outstanding(self) -> int:
        """Number of draws that wait for their losses."""
        return len(self._outstanding)

    def __len__(self) -> int:
        """Batches in one pass: the examples divided by the batch size, rounded up."""
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """One pass of ``len(self)`` batches, each a list of indices."""
        self._outstanding.clear()
        for _ in range(len(self)):
            yield self.draw().tolist()

    def draw(self) -> Tensor:
        """Draw a batch of indices, int64 [B], and remember it until `update` answers it."""
        return self.next_draw().indices

    def next_draw(self) -> Draw:
        """Draw a batch as `draw` does; returns it with its importance weights."""
        draw = self._draw()
        self._outstanding.append(draw)
        return draw

    def update(
        self, losses: Tensor, *, logits: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Answer the oldest unanswered draw with its per-example losses.

        Args:
            losses: Loss of each example of the batch, float [B], as from ``reduction="none"``.
            logits: Model outputs [B, C]; needed where `needs_logits` is true.
            targets: Labels int64 [B]; default the labels the sampler was made with.

        Returns:
            The scalar to back-propagate: the mean loss, importance-weighted where the sampler is.

        Raises:
            FeedbackError: No draw is outstanding, the length differs, or logits are missing.
        """
        if not self._outstanding:
            raise FeedbackError("update answers a draw, but no draw is outstanding.")
        draw = self._outstanding[0]
        if losses.shape != draw.indices.shape:
            raise FeedbackError(
                f"losses must have the shape of the draw, {list(draw.indices.shape)}, "
                f"got {list(losses.shape)}; use reduction='none'."
            )
        if self.needs_logits and logits is None:
            raise FeedbackError(f"{type(self).__name__} needs logits=, the model's outputs.")
        self._outstanding.popleft()
        with torch.no_grad():
            self._learn(
                draw,
                losses.detach().to(self.device, torch.float32),
                None if logits is None else logits.detach().to(self.device, torch.float32),
                targets,
            )
        if draw.weights is None:
            return losses.mean()
        return (losses * draw.weights.to(losses.device, losses.dtype)).mean()

    def set_progress(self, share: float) -> None:
        """Tell the sampler which share of the training budget is spent, in [0, 1]."""

    def statistics(self) -> dict[str, float]:
        """Figures since the last call, for learning curves; may wait for the device.

        Returns:
            ``reward_rate`` and ``concentration`` where the sampler has them
            (see `hpo_mab.training.Evaluation`).
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State between batches as tensors and plain values, safe for ``weights_only`` loading.

        Raises:
            FeedbackError: Draws are outstanding; a state in the middle of a batch has no meaning.
        """
        if self._outstanding:
            raise FeedbackError(
                f"state_dict needs every draw answered, {len(self._outstanding)} are outstanding."
            )
        return self._state()

    def load_state_dict(self, state: dict[str, Any]) -> Self:
        """Continue the stream that `state_dict` interrupted, on a sampler made alike."""
        self._outstanding.clear()
        self._load_state(state)
        return self

    @abc.abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _load_state(self, state: dict[str, Any]) -> None: ...
