"""The contract of every batch sampler: draw a batch of indices, learn from its losses."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Required, Self, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Sampler

from hpo_mab._errors import ArgumentError, is_integer, plain_arguments, require, stored_arguments
from hpo_mab._examples import labels_digest
from hpo_mab._labels import class_labels
from hpo_mab._registry import class_signature
from hpo_mab.samplers._feedback import (
    Draw,
    DrawQueue,
    FeedbackError,
    check_draw,
    check_logits,
    check_losses,
    check_range,
    checked_targets,
    copied_to,
    has_indices,
)


class CommonArguments(TypedDict, total=False):
    """Keyword arguments of every sampler: a subclass passes them on to `BatchSampler`.

    `BatchSampler` has their meaning, defaults and checks. A subclass names its own options only:

    Examples:
        >>> from typing import Unpack
        >>> from hpo_mab.samplers import CommonArguments, UniformSampler
        >>> class Named(UniformSampler):
        ...     def __init__(self, labels, *, name="", **common: Unpack[CommonArguments]):
        ...         super().__init__(labels, **common)
        ...         self.name = name
        >>> Named([0, 1] * 4, batch_size=2, name="control").batch_size
        2
    """

    batch_size: Required[int]
    seed: int
    device: torch.device | str
    rank: int
    world_size: int


#: Arguments of every sampler, which do not count as a sampler's options.
_COMMON = {"labels", *CommonArguments.__annotations__}


class BatchSampler(Sampler[list[int]], abc.ABC):
    """Base class of batch samplers that learn from per-example losses.

    A subclass implements `_draw` and `_learn`; this class matches feedback to draws, in order,
    however late it comes. Use a sampler either as ``DataLoader(dataset, batch_sampler=sampler)``
    or by calling `draw` directly, and answer every batch with `update`.

    A ``DataLoader`` with workers draws ``prefetch_factor * num_workers`` batches ahead, so its
    feedback lags by as many steps. It is matched to the right draw if the loader returns batches in
    order: not with ``in_order=False``. A batch without losses (skipped, or out of memory before
    `update`) is taken off the queue with `discard`. Otherwise later losses would reward other
    examples. `update` raises on a mismatch if it has ``indices`` or ``targets`` to compare. Else
    the sampler warns once, when more draws wait for losses than after the first answer of the pass.
    Starting a new pass (``iter(sampler)``) drops draws that were never answered, with one warning,
    and ends the pass before it.

    Args:
        labels: Class of each training example, whole numbers [N].
        batch_size: Examples a batch, ``B``; at least 1 and at most the examples of the smallest
            rank, ``N // world_size``.
        seed: Seed of every random choice. Same seed, same stream on the same device.
        device: Where indices are drawn and losses are expected. Losses elsewhere are copied.
        rank: Number of this process, in [0, world_size). Each process draws from its own
            class-stratified share; all have the same number of batches a pass.
        world_size: Number of processes that split the examples, at most ``N``.

    Raises:
        ArgumentError: An argument outside its bound, or labels that are no whole numbers.

    Examples:
        >>> import torch
        >>> from hpo_mab.samplers import create
        >>> sampler = create("mab", [0, 1] * 50, batch_size=10)
        >>> for batch in sampler:
        ...     losses = torch.rand(len(batch))  # of the network, one an example
        ...     loss = sampler.update(losses)
        >>> sampler.outstanding
        0
    """

    #: Whether `update` needs ``logits`` in addition to the losses.
    needs_logits: ClassVar[bool] = False
    #: Whether the weights of a batch depend on its own losses. Then `update` must run between the
    #: forward and the backward pass, and a `hpo_mab.training.Training` cannot capture its steps.
    weighs_by_losses: ClassVar[bool] = False
    #: Whether draws use the network's logits of candidates where the attribute ``scorer`` is set.
    asks_network: ClassVar[bool] = False
    #: The column of the record of examples, one of `hpo_mab._examples.COLUMNS`, whose means are the
    #: sampler's argument ``difficulty``; None if it has no such argument.
    record_column: ClassVar[str | None] = None

    #: Options of the subclass that this sampler was made with, as plain values.
    _options: Mapping[str, Any]
    #: Signature of the constructor that `help` shows: ``**`` is replaced by every sampler's
    #: arguments.
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        """Store the constructor's signature, and convert NumPy's numbers among its arguments."""
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            # A state that holds NumPy's numbers could not be loaded with ``weights_only``.
            cls.__init__ = plain_arguments(cls.__init__)  # type: ignore[method-assign]
        cls.__signature__ = class_signature(cls, first=CommonArguments.__annotations__)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Store the options: a state can only be loaded by a sampler with the same ones."""
        made = super().__new__(cls)
        if args or kwargs:  # `copy` and `pickle` call this without arguments.
            made._options = stored_arguments(cls.__signature__, args, kwargs, skip=_COMMON)
        return made

    @plain_arguments
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
        # On the CPU: strata are made on the host, whatever the device.
        self.labels = class_labels(labels)
        examples = len(self.labels)
        bound = f"in [1, {examples}], the number of examples"
        counts = {"world_size": world_size, "rank": rank, "batch_size": batch_size, "seed": seed}
        for name, given in counts.items():
            require(is_integer(given), name, "an integer", repr(given))
        require(1 <= world_size <= examples, "world_size", bound, world_size)
        require(0 <= rank < world_size, "rank", f"in [0, {world_size})", rank)
        self.device = torch.device(device)
        is_there = self.device.type != "cuda" or torch.cuda.is_available()
        require(is_there, "device", "one that this machine has", device)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._batch_size = batch_size
        # The smallest rank's bound holds for all: if one rank raised alone, the others would wait
        # for it forever.
        smallest = examples // world_size
        of_rank = " of the smallest rank" if world_size > 1 else ""
        bound = f"in [1, {smallest}], the number of examples{of_rank}"
        require(1 <= batch_size <= smallest, "batch_size", bound, batch_size)
        self._outstanding = DrawQueue()
        #: Share of the budget spent.
        self._progress = 0.0
        #: Passes begun; a pass ends where another begins.
        self._passes_begun = 0

    @property
    def batch_size(self) -> int:
        """Examples of a batch; it cannot be changed."""
        return self._batch_size

    @abc.abstractmethod
    def _draw(self) -> Draw:
        """Draw the next batch of exactly ``batch_size`` indices into the whole data set."""

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        """Learn from a draw's losses. Non-finite losses must change nothing.

        Args:
            draw: The draw answered.
            losses: Detached float32 [B] on ``self.device``, possibly non-finite.
            logits: Detached float32 [B, C] on ``self.device`` if given.
            targets: Labels int64 [B] on ``self.device`` if given.
        """

    @property
    def _learns(self) -> bool:
        """Whether the sampler learns from losses, so that each of its draws needs an answer."""
        return type(self)._learn is not BatchSampler._learn

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

        A shuffle sorted by class is dealt to the ranks round robin. It is computed at each access,
        which saves eight bytes an example.
        """
        if self.world_size == 1:
            return torch.arange(len(self.labels), device="cpu")
        # Not the sampler's seed: ranks with different seeds must also split the examples.
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(len(self.labels), generator=generator, device="cpu")
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
        """Batches in one pass, the same on every rank.

        The examples of the largest rank divided by the batch size, rounded up.
        """
        largest = -(-len(self.labels) // self.world_size)
        return -(-largest // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """One pass of ``len(self)`` batches, each a list of indices.

        Raises:
            FeedbackError: A batch was requested after another pass has begun, or after a state was
                loaded while draws waited for their losses.
        """
        this = self._passes_begun = self._passes_begun + 1
        self._outstanding.begin_pass(learns=self._learns)
        for _ in range(len(self)):
            if self._passes_begun != this:
                raise FeedbackError(
                    "this pass ended when another pass over the same sampler began, or a state was "
                    "loaded; look at batches and evaluate with a DataLoader that has no such "
                    "batch_sampler."
                )
            yield self.draw().tolist()

    def draw(self) -> Tensor:
        """Draw a batch of indices, int64 [B]; the draw is kept until `update` answers it."""
        self._outstanding.check_answers(learns=self._learns)
        return self.next_draw().indices

    def next_draw(self) -> Draw:
        """Draw a batch as `draw` does; returns it with its importance weights."""
        draw = self._draw()
        check_draw(draw, self._batch_size, owner=type(self).__name__)
        self._outstanding.append(draw)
        return draw

    def update(
        self,
        losses: Tensor,
        *,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        indices: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Answer the oldest unanswered draw with its per-example losses.

        ``indices`` are compared with those of the draw. Without them, ``targets`` are compared with
        the labels of the draw if both are on the host. `update` waits for a CUDA device if only the
        sampler is on the host. If ``indices`` or the draw's are on CUDA, their comparison waits,
        too, unless both are one tensor.

        Args:
            losses: Loss of each example, in the order of the draw, float [B], as from
                ``reduction="none"``.
            logits: Model outputs [B, C]; needed where `needs_logits` is true.
            targets: Labels [B]; default the labels the sampler was made with. On the host they
                must be these labels, or the same classes numbered from 0 in their order.
            indices: The examples of the batch, [B], where the loop has them. They are checked
                exactly, in place of the targets.

        Returns:
            The scalar to back-propagate: the mean loss, importance-weighted where the sampler is.

        Raises:
            FeedbackError: No draw is outstanding, or the batch is not the draw's. A shape or a type
                is wrong, or logits are missing. The draw still waits.
            ArgumentError: Labels that the outputs have no column for.
        """
        draw = self._outstanding.oldest("update")
        check_losses(losses, len(draw.indices))
        if self.needs_logits and logits is None:
            raise FeedbackError(f"{type(self).__name__} needs logits=, the model's outputs.")
        if targets is not None:
            targets = checked_targets(targets, len(draw.indices))
        if indices is not None:
            self._outstanding.check("indices", has_indices, indices)
        elif targets is not None and targets.is_cpu and draw.indices.is_cpu:
            self._outstanding.check("targets", self._has_targets, targets)
        if logits is not None:
            self.check_outputs(logits, targets=targets)
        self._outstanding.answer()
        with torch.no_grad():
            self._learn(
                draw,
                losses.detach().to(self.device, torch.float32),
                None if logits is None else logits.detach().to(self.device, torch.float32),
                None if targets is None else copied_to(self.device, targets),
            )
        if draw.weights is None:
            return losses.mean()
        # `_learn` may have set them.
        check_draw(draw, len(losses), owner=type(self).__name__)
        return (losses * draw.weights.to(losses.device, losses.dtype)).mean()

    def discard(self, *, indices: Tensor | Sequence[int] | None = None) -> None:
        """Drop the oldest unanswered draw: its batch has no losses, and nothing is learned.

        For a batch that is skipped, not trained on, or ran out of memory before `update`.

        Args:
            indices: The examples of the batch, [B], where the loop has them: checked as in
                `update`.

        Raises:
            FeedbackError: No draw is outstanding, or the indices are not the draw's.
        """
        self._outstanding.oldest("discard")
        if indices is not None:
            self._outstanding.check("indices", has_indices, indices)
        self._outstanding.answer()

    def check_outputs(self, logits: Tensor, *, targets: Tensor | None = None) -> None:
        """Raise if model outputs have no column for a label; checks shapes only.

        Args:
            logits: Model outputs [B, C].
            targets: Labels int64 [B] to use instead of the sampler's own.

        Raises:
            ArgumentError: Outputs of another shape, or fewer than the labels need.
        """
        outputs = check_logits(logits).shape[1]
        low, high = self._label_range
        if targets is not None and not 0 <= low <= high < outputs:
            if not targets.is_cpu:
                return
            low, high = int(targets.min()), int(targets.max())
        check_range(low, high, outputs=outputs)

    def set_progress(self, share: float) -> None:
        """Set the share of the training budget that is spent, in [0, 1].

        Raises:
            ArgumentError: A share outside its bound.
        """
        require(0 <= share <= 1, "share", "in [0, 1]", share)
        self._progress = float(share)

    def statistics(self) -> dict[str, float]:
        """Statistics since the last call, for learning curves; may wait for the device.

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
                f"state_dict needs every draw answered, {len(self._outstanding)} are outstanding. "
                "A DataLoader with workers, or a library's, may draw ahead until the end of a pass."
            )
        return {
            "sampler": self._identity,
            "progress": self._progress,
            "state": self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Self:
        """Continue the stream that `state_dict` interrupted, on a sampler with the same arguments.

        Raises:
            ArgumentError: The state's sampler has another class, seed, batch size, rank, number of
                processes, device type or option, or other labels; names what differs.
        """
        found = state.get("sampler") if isinstance(state, Mapping) else None
        if not isinstance(found, dict) or "state" not in state:
            got = type(state).__name__
            if isinstance(state, Mapping):
                got = f"the keys {', '.join(map(repr, state)) or 'none'}"
            raise ArgumentError(f"state must be what state_dict of a sampler returned, got {got}.")
        own = self._identity
        differ = [name for name in own | found if own.get(name) != found.get(name)]
        if differ:
            texts = (f"{k} is {found.get(k)!r} there and {own.get(k)!r} here" for k in differ)
            raise ArgumentError(f"state is of another sampler: {'; '.join(texts)}.")
        if self._outstanding:
            # A loader may still bring their batches, which must not answer later draws.
            self._passes_begun += 1
        self._outstanding.clear()
        self._progress = float(state["progress"])
        self._load_state(state["state"])
        return self

    @abc.abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _load_state(self, state: dict[str, Any]) -> None: ...

    def _has_targets(self, draw: Draw, given: Tensor) -> bool:
        """Whether a batch's labels, or the numbers of their classes, are a draw's."""
        labels = self.labels.index_select(0, draw.indices)
        if torch.equal(given, labels):
            return True
        return torch.equal(given, torch.searchsorted(self._label_values, labels))

    @functools.cached_property
    def _label_range(self) -> tuple[int, int]:
        """The least and the greatest label."""
        return int(self.labels.min()), int(self.labels.max())

    @functools.cached_property
    def _label_values(self) -> Tensor:
        """Labels that occur, ascending."""
        values: Tensor = torch.unique(self.labels)
        return values

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """Everything that determines the stream of draws, as plain values."""
        return {
            "class": type(self).__name__,
            "examples": len(self.labels),
            "labels": labels_digest(self.labels.numpy()),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rank": self.rank,
            "world_size": self.world_size,
            "device": self.device.type,
            **self._options,
        }


BatchSampler.__signature__ = class_signature(BatchSampler, first=CommonArguments.__annotations__)
