"""Draws that wait for their losses, and the checks of the losses, labels and indices given."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError, HpoMabError, HpoMabWarning
from hpo_mab._labels import class_labels

_Given = TypeVar("_Given")


class FeedbackError(HpoMabError, RuntimeError):
    """Losses and draws do not match: no draw waits, or another batch is answered."""


@dataclasses.dataclass(slots=True)
class Draw:
    """A batch that waits for its losses.

    Attributes:
        indices: Examples drawn, int64 [B].
        weights: Importance weights for the mean loss, float32 [B]; None means all ones.
        context: Data of the sampler that `_learn` needs for the draw.

    Examples:
        >>> from hpo_mab.samplers import create
        >>> draw = create("uniform", [0, 1] * 4, batch_size=2).next_draw()
        >>> draw.indices.shape, draw.weights
        (torch.Size([2]), None)
    """

    indices: Tensor
    weights: Tensor | None = None
    context: Any = None


class DrawQueue(collections.deque[Draw]):
    """Draws that wait for their losses, the oldest first.

    A loader has drawn its maximum ahead before the first answer of a pass. If more draws wait
    later, a batch had no answer. Samplers that learn nothing need no answers.
    """

    #: Draws that waited after the first answer of this pass; None before it.
    _ahead: int | None = None
    #: Kinds of the warnings already given.
    _warned: frozenset[str] = frozenset()

    def begin_pass(self, *, learns: bool) -> None:
        """Drop the draws of the last pass that have no losses, with a warning."""
        if self and learns:
            text = f"A pass begins while {len(self)} draws of the last one wait for their losses"
            self._warn("dropped", f"{text}; they are dropped")
        self.clear()
        self._ahead = None

    def check_answers(self, *, learns: bool) -> None:
        """Warn, before a draw, if more draws wait than a loader draws ahead."""
        if learns and self._ahead is not None and len(self) > self._ahead:
            text = f"{len(self)} draws wait for their losses where {self._ahead} did before"
            self._warn("late", f"{text}: a batch had no answer, or is answered later than others")

    def answer(self) -> None:
        """Remove the oldest draw, which is answered or discarded."""
        self.popleft()
        if self._ahead is None:
            self._ahead = len(self)

    def oldest(self, caller: str) -> Draw:
        """The draw that the next answer is for."""
        if not self:
            raise FeedbackError(
                f"{caller} answers a draw, but no draw is outstanding: answer each batch of the "
                "sampler once."
            )
        return self[0]

    def check(self, name: str, fits: Callable[[Draw, _Given], bool], given: _Given) -> None:
        """Raise unless an answer's indices or targets, ``name``, are those of the oldest draw."""
        if fits(self[0], given):
            return
        later = [place for place, draw in enumerate(self) if fits(draw, given)]
        hint = (
            f"They are of the draw {later[0]} later: call discard for each batch without losses"
            if later
            else "Answer every draw once, in order, and call discard for batches without losses"
        )
        other = (
            "" if name == "indices" else "; if the loop numbers classes otherwise, give indices="
        )
        raise FeedbackError(f"{name} are not those of the oldest unanswered draw. {hint}{other}.")

    def _warn(self, kind: str, what: str) -> None:
        """Warn of draws without an answer, once a kind."""
        if kind not in self._warned:
            self._warned |= {kind}
            warnings.warn(
                f"{what}. Call update for each batch that was trained on, and discard for batches "
                "without losses; with indices= or targets= a wrong answer raises. This warning is "
                "given once.",
                HpoMabWarning,
                stacklevel=4,
            )


def copied_to(device: torch.device, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on the device; on CUDA the copy is perhaps made later."""
    # Only CUDA keeps the source until then. On MPS its memory may hold something else.
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type == "cuda")


def check_draw(draw: Any, count: int, *, owner: str) -> None:
    """Raise unless a draw has ``count`` indices, and ``count`` weights or None."""
    found = draw.indices if isinstance(draw, Draw) else draw
    is_tensor = isinstance(draw, Draw) and isinstance(found, Tensor)
    if is_tensor and found.shape == (count,) and found.dtype == torch.int64:
        weights = draw.weights
        is_tensor = isinstance(weights, Tensor)
        if weights is None or (is_tensor and weights.shape == (count,)):
            return
        got = f"shape {list(weights.shape)}" if is_tensor else type(weights).__name__
        raise ArgumentError(f"{owner} must give a Draw {count} weights or None, got {got}.")
    got = f"shape {list(found.shape)} of {found.dtype}" if is_tensor else type(found).__name__
    raise ArgumentError(f"{owner}._draw must return a Draw of {count} int64 indices, got {got}.")


def check_losses(losses: Tensor, count: int) -> None:
    """Raise unless losses are one floating-point number an example, [count]."""
    if not isinstance(losses, Tensor):
        raise FeedbackError(f"losses must be a tensor, got {type(losses).__name__}.")
    shape = list(losses.shape)
    if shape == [count]:
        if not losses.is_floating_point():
            raise FeedbackError(f"losses must be floating-point, got {losses.dtype}.")
        return
    if losses.ndim == 0:
        hint = "use reduction='none'"
    elif losses.ndim > 1 and len(losses) == count:
        hint = (
            "one loss an example: average over its tokens or pixels, "
            "e.g. losses.flatten(1).mean(dim=1) if none is padding"
        )
    elif losses.numel() > count:
        hint = "average the losses of each example, such as those of its tokens or views"
    else:
        hint = "answer a draw's whole batch with one call"
    raise FeedbackError(f"losses must have the shape of the draw, [{count}], got {shape}; {hint}.")


def checked_targets(targets: Tensor, count: int) -> Tensor:
    """Targets as int64 [count], on their device; values are checked on the host only."""
    try:
        if not isinstance(targets, Tensor) or targets.is_cpu:
            targets = class_labels(targets, name="targets")
        elif targets.is_floating_point():
            raise ArgumentError(f"targets must be integers, got {targets.dtype}.")
    except ArgumentError as error:
        raise FeedbackError(str(error)) from None
    if targets.shape != (count,):
        raise FeedbackError(
            f"targets must have the shape of the draw, [{count}], got {list(targets.shape)}."
        )
    return targets.to(torch.int64)


def has_indices(draw: Draw, given: Tensor | Sequence[int]) -> bool:
    """Whether a loop's indices, [B], are those of a draw.

    If either is on a CUDA device, this may wait for it, unless both have the same memory.
    """
    drawn = draw.indices
    if not isinstance(given, Tensor):
        return list(given) == drawn.tolist()
    if given.shape != drawn.shape:
        return False
    if given.device == drawn.device and given.data_ptr() == drawn.data_ptr():
        return True
    return torch.equal(given.to(drawn.device, torch.int64), drawn)


def check_logits(outputs: Any) -> Tensor:
    """What a network has returned for a batch; raises `ArgumentError` if it is not logits."""
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and not outputs.is_complex():
        return outputs
    got = type(outputs).__name__
    if isinstance(outputs, Tensor):
        got = f"shape {list(outputs.shape)} of {outputs.dtype}"
    raise ArgumentError(f"logits must be a tensor [B, C] of real numbers, got {got}.")


def check_range(low: int, high: int, *, outputs: int, what: str = "labels") -> None:
    """Raise `ArgumentError` unless a network has outputs for the lowest and the highest label.

    On CUDA a label out of range fails an assertion, and every later CUDA call of the process then
    fails. So this check comes before the loss.
    """
    if not 0 <= low <= high < outputs:
        raise ArgumentError(
            f"{what} must be in [0, {outputs}) for a model of {outputs} outputs, "
            f"got {low if low < 0 else high}; "
            "number classes from 0, or give the model more outputs."
        )
