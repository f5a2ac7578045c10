"""The contract of every batch sampler: draw a batch of indices, learn from its losses."""

from __future__ import annotations

import abc
import functools
import hashlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Required, Self, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from hpo_mab._errors import ArgumentError, plain, plain_arguments
from hpo_mab._labels import class_labels
from hpo_mab._registry import class_signature, name_of
from hpo_mab.samplers._feedback import (
    Draw,
    DrawQueue,
    FeedbackError,
    check_losses,
    check_outputs,
    checked_targets,
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


class BatchSampler(Sampler[list[int]], abc.ABC):
    """Base class of batch samplers that learn from per-example losses.

    A subclass implements `_draw` and `_learn`; this class matches feedback to draws, in order,
    however late it comes. Use a sampler either as ``DataLoader(dataset, batch_sampler=sampler)``
    or by calling `draw` directly, and answer every batch with `update`:

    A ``DataLoader`` with workers draws ``prefetch_factor * num_workers`` batches ahead, so its
    feedback lags by as many steps; it is still matched to the right draw. A batch without losses
    (skipped, or out of memory) is taken off the queue with `discard`. Otherwise later losses would
    reward other examples. `update` raises on a mismatch if it has ``indices`` or ``targets`` to
    compare. Else it warns once, when more draws wait than at the pass's first answer. Starting a
    new pass (``iter(sampler)``) drops draws that were never answered, with one warning, and ends
    the pass before it.

    Args:
        labels: Class of each training example, whole numbers [N].
        batch_size: Examples a batch, ``B``; at least 1 and at most the examples of the smallest
            rank, ``N // world_size``.
        seed: Seed of every random choice. Same seed, same stream on the same device.
        device: Where indices are drawn and losses are expected. Losses elsewhere are copied.
        rank: This process's share among ``world_size``; shares are class-stratified, and every
            rank has the same number of batches a pass.
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

    #: Whether `update` needs ``logits`` and ``targets``, not the losses alone.
    needs_logits: ClassVar[bool] = False
    #: Whether the weights of a batch follow from its own losses: `update` must come between the
    #: forward and the backward pass, so that no captured step can hold the two.
    weighs_by_losses: ClassVar[bool] = False
    #: Whether a draw needs the network's logits of candidates, through the attribute ``scorer``.
    asks_network: ClassVar[bool] = False
    #: Which mean of a study's record of examples, one of `hpo_mab._examples.COLUMNS`, the sampler
    #: takes as ``difficulty``; None for a sampler that takes none.
    record_column: ClassVar[str | None] = None

    #: Options of the subclass that this sampler was made with, as plain values.
    _options: Mapping[str, Any]
    #: Of the constructor, with the arguments of every sampler in place of ``**``: for `help`.
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        """Store the constructor's signature, and let it take NumPy's numbers."""
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            # A saved state must not hold any.
            cls.__init__ = plain_arguments(cls.__init__)  # type: ignore[method-assign]
        cls.__signature__ = class_signature(cls, first=CommonArguments.__annotations__)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Store the options: a state can only be loaded by a sampler with the same ones."""
        made = super().__new__(cls)
        if args or kwargs:  # Neither when a copy is made.
            made._options = _bound_options(cls.__signature__, args, kwargs)
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
        # A tensor on the CPU once: strata are made on the host whatever the device.
        self.labels = class_labels(labels)
        if not 1 <= world_size <= len(self.labels):
            raise ArgumentError(
                f"world_size must be in [1, {len(self.labels)}], the number of examples, "
                f"got {world_size}."
            )
        if not 0 <= rank < world_size:
            raise ArgumentError(f"rank must be in [0, {world_size}), got {rank}.")
        self.device = torch.device(device)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size
        # The smallest rank's bound holds for all: if one rank raised alone, the others would wait
        # for it forever.
        smallest = len(self.labels) // world_size
        if not 1 <= batch_size <= smallest:
            raise ArgumentError(
                f"batch_size must be in [1, {smallest}], the number of examples"
                f"{' of the smallest rank' if world_size > 1 else ''}, got {batch_size}."
            )
        self._outstanding = DrawQueue()
        #: Passes begun; a pass ends where another begins.
        self._passes_begun = 0
        #: Draws answered or discarded since this pass began.
        self._answers = 0
        self._warned = False

    @classmethod
    def uses_record(cls, knobs: Mapping[str, Any]) -> bool:
        """Whether a sampler with these knobs draws otherwise with a ``difficulty``."""
        return cls.record_column is not None

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

        A shuffle sorted by class is dealt to the ranks round robin. It is computed at each access,
        which saves eight bytes an example.
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
        """Batches in one pass, the same on every rank.

        The examples of the largest rank divided by the batch size, rounded up.
        """
        largest = -(-len(self.labels) // self.world_size)
        return -(-largest // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """One pass of ``len(self)`` batches, each a list of indices.

        Raises:
            FeedbackError: A batch was requested after another pass has begun.
        """
        self._passes_begun += 1
        this = self._passes_begun
        if self._outstanding:
            self._drop_all()
        self._answers = ahead = 0
        for _ in range(len(self)):
            if self._passes_begun != this:
                raise FeedbackError(
                    "this pass ended when another pass over the same sampler began; look at "
                    "batches and evaluate with a DataLoader that has no such batch_sampler."
                )
            # Before the first answer, a loader has drawn as far ahead as it ever does.
            if not self._answers:
                ahead = len(self._outstanding)
            elif len(self._outstanding) > ahead:
                self._warn(
                    f"{len(self._outstanding)} draws of this pass wait for their losses where "
                    f"{ahead} did before: a batch had no answer, or is answered later than others"
                )
            yield self.draw().tolist()

    def draw(self) -> Tensor:
        """Draw a batch of indices, int64 [B]; the draw is kept until `update` answers it."""
        return self.next_draw().indices

    def next_draw(self) -> Draw:
        """Draw a batch as `draw` does; returns it with its importance weights."""
        draw = self._draw()
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

        ``indices`` or ``targets`` on the host are used to check that the batch is that of the
        draw. Nothing here waits for a CUDA device, except for ``indices`` on it that are in other
        memory than the draw's.

        Args:
            losses: Loss of each example of the batch, float [B], as from ``reduction="none"``.
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
            self._outstanding.check("indices", functools.partial(has_indices, given=indices))
        elif targets is not None and targets.is_cpu and draw.indices.is_cpu:
            fits = functools.partial(self._has_targets, given=targets)
            self._outstanding.check("targets", fits)
        if logits is not None:
            self.check_outputs(logits, targets=targets)
        self._outstanding.popleft()
        self._answers += 1
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

    def discard(self, *, indices: Tensor | Sequence[int] | None = None) -> None:
        """Drop the oldest unanswered draw: its batch has no losses, and nothing is learned.

        For a batch that is skipped, ran out of memory or is not trained on.

        Args:
            indices: The examples of the batch, [B], where the loop has them: checked as in
                `update`.

        Raises:
            FeedbackError: No draw is outstanding, or the indices are not the draw's.
        """
        self._outstanding.oldest("discard")
        if indices is not None:
            self._outstanding.check("indices", functools.partial(has_indices, given=indices))
        self._outstanding.popleft()
        self._answers += 1

    def check_outputs(self, logits: Tensor, *, targets: Tensor | None = None) -> None:
        """Raise if model outputs have no column for a label; checks shapes only.

        Args:
            logits: Model outputs [B, C].
            targets: Labels int64 [B] to use instead of the sampler's own.

        Raises:
            ArgumentError: Outputs of another shape, or fewer than the labels need.
        """
        check_outputs(logits, targets, self._label_range)

    def set_progress(self, share: float) -> None:
        """Set the share of the training budget that is spent, in [0, 1]."""

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
        return {"sampler": self._identity, "state": self._state()}

    def load_state_dict(self, state: dict[str, Any]) -> Self:
        """Continue the stream that `state_dict` interrupted, on a sampler with the same arguments.

        Raises:
            ArgumentError: The state's sampler has another class, seed, batch size, rank, device
                type or option, or other labels; names what differs.
        """
        found = state.get("sampler") if isinstance(state, Mapping) else None
        if not isinstance(found, dict) or "state" not in state:
            got = type(state).__name__
            if isinstance(state, Mapping):
                got = f"the keys {', '.join(map(repr, state)) or 'none'}"
            raise ArgumentError(f"state must be what state_dict of a sampler returned, got {got}.")
        own = self._identity
        # What a state does not name is an option that its version of the class did not have.
        differ = [name for name in {"class": "", **found} if own.get(name) != found.get(name)]
        if differ:
            raise ArgumentError(
                "state is of another sampler: "
                + "; ".join(
                    f"{name} is {found.get(name)!r} there and {own.get(name)!r} here"
                    for name in differ
                )
                + "."
            )
        self._outstanding.clear()
        self._load_state(state["state"])
        return self

    @abc.abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _load_state(self, state: dict[str, Any]) -> None: ...

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """Everything that determines the stream of draws, as plain values."""
        labels = self.labels.contiguous().numpy().data
        return {
            "class": type(self).__name__,
            "examples": len(self.labels),
            "labels": hashlib.blake2b(labels, digest_size=16).hexdigest(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rank": self.rank,
            "world_size": self.world_size,
            "device": self.device.type,
            **self._options,
        }

    @functools.cached_property
    def _label_range(self) -> tuple[int, int]:
        return int(self.labels.min()), int(self.labels.max())

    def _drop_all(self) -> None:
        """Drop draws of a pass that was left early, with a warning the first time."""
        self._warn(
            f"A pass begins while {len(self._outstanding)} draws of the last one wait for their "
            "losses; they are dropped"
        )
        self._outstanding.clear()

    def _warn(self, what: str) -> None:
        """Warn once of draws without an answer; samplers that learn nothing need none."""
        if self._warned or type(self)._learn is BatchSampler._learn:
            return
        self._warned = True
        warnings.warn(
            f"{what}. Call update for each batch that was trained on, and discard for batches "
            "without losses; with indices= or targets= a wrong answer raises. This warning is "
            "given once.",
            stacklevel=3,
        )

    def _has_targets(self, draw: Draw, given: Tensor) -> bool:
        """Whether a batch's labels, or the numbers of their classes, are a draw's."""
        labels = self.labels.index_select(0, draw.indices)
        if torch.equal(given, labels):
            return True
        return torch.equal(given, torch.searchsorted(self._classes, labels))

    @functools.cached_property
    def _classes(self) -> Tensor:
        """Labels that occur, ascending."""
        classes: Tensor = torch.unique(self.labels)
        return classes


BatchSampler.__signature__ = class_signature(BatchSampler, first=CommonArguments.__annotations__)


def _bound_options(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a constructor but those that every sampler has, defaults included."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # The constructor raises the error of these arguments.
        return {}
    bound.apply_defaults()
    options: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        options.update(value if rest else {name: value})
    common = {"labels", *CommonArguments.__annotations__}
    return {name: _plain(value) for name, value in options.items() if name not in common}


def _plain(value: Any) -> Any:
    """A value that a file can hold and that is equal after loading.

    For arrays it is a digest of their numbers, for other objects their type.
    """
    value = plain(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Tensor | np.ndarray):
        numbers = torch.as_tensor(value).detach().to("cpu", torch.float64).contiguous().numpy()
        return hashlib.blake2b(numbers.data, digest_size=16).hexdigest()
    if callable(value):
        return name_of(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"
