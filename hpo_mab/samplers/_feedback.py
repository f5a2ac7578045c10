"""Checks of a sampler's inputs: constructor arguments, losses and targets of a draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab._labels import class_labels


def require(holds: bool, name: str, bound: str, value: object) -> None:
    """Raise `ArgumentError` for an argument outside its bound.

    Args:
        holds: Whether ``value`` is within the bound.
        name: The argument.
        bound: The bound in words, e.g. ``"in (0, 1]"``.
        value: The value given.

    Raises:
        ArgumentError: ``holds`` is false.
    """
    if not holds:
        raise ArgumentError(f"{name} must be {bound}, got {value}.")


class FeedbackError(RuntimeError):
    """Feedback without a draw to answer, or of another batch than the draw's."""


def check_losses(losses: Tensor, count: int) -> None:
    """Raise unless losses are one floating-point number an example, [count].

    Raises:
        FeedbackError: Another type or shape.
    """
    if isinstance(losses, Tensor) and losses.shape == (count,) and losses.is_floating_point():
        return
    if not isinstance(losses, Tensor):
        raise FeedbackError(f"losses must be a tensor, got {type(losses).__name__}.")
    shape = list(losses.shape)
    if losses.shape == (count,):
        raise FeedbackError(f"losses must be floating-point, got {losses.dtype}.")
    if losses.ndim == 0:
        hint = "use reduction='none'"
    elif losses.ndim > 1 and len(losses) == count:
        hint = "one loss an example: average over the others, e.g. losses.flatten(1).mean(dim=1)"
    else:
        hint = "answer a draw's whole batch with one call"
    raise FeedbackError(f"losses must have the shape of the draw, [{count}], got {shape}; {hint}.")


def checked_targets(targets: Tensor, count: int) -> Tensor:
    """Targets as int64 [count], on their device; values are checked on the host only.

    Raises:
        FeedbackError: Targets that are not integers, or another shape.
    """
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


def same_indices(given: Tensor | Sequence[int], drawn: Tensor) -> bool:
    """Whether a loop's indices, [B], are those drawn, int64 [B].

    Waits for a CUDA device only if the indices are on it and in other memory than the draw's.
    """
    if not isinstance(given, Tensor):
        return list(given) == drawn.tolist()
    if given.shape != drawn.shape:
        return False
    if given.device == drawn.device and given.data_ptr() == drawn.data_ptr():
        return True
    return torch.equal(given.to(drawn.device, torch.int64), drawn)
