"""Learning rate and evaluation points over a budget."""

from __future__ import annotations

from hpo_mab._errors import ArgumentError


class LinearSchedule:
    """Linear warm-up to the full learning rate, then linear decay to zero at the budget's end.

    With ``W = min(round(warmup * T), T - 1)`` warm-up steps of ``T``, the factor of step ``s`` in
    ``0..T-1`` is ``(s + 1) / W`` before step ``W`` and ``(T - s) / (T - W)`` from there on: 1 at
    its peak, and zero first at step ``T``, which is not taken.

    Args:
        steps: Optimiser steps of the budget, ``T``, at least 1.
        warmup: Share of the steps to warm up over, in [0, 1).

    Raises:
        ArgumentError: An argument outside its bound.
    """

    def __init__(self, *, steps: int, warmup: float = 0.1) -> None:
        if steps < 1:
            raise ArgumentError(f"steps must be at least 1, got {steps}.")
        if not 0.0 <= warmup < 1.0:
            raise ArgumentError(f"warmup must be a share in [0, 1), got {warmup}.")
        self.steps = steps
        self.warmup_steps = min(round(warmup * steps), steps - 1)

    def factor(self, step: int) -> float:
        """Share of the full learning rate at ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return max(self.steps - step, 0) / (self.steps - self.warmup_steps)


def evaluation_steps(steps: int, evaluations: int) -> tuple[int, ...]:
    """Numbers of finished steps after which to evaluate: equally spaced, the last at the end.

    Args:
        steps: Optimiser steps of the budget, at least 1.
        evaluations: Evaluations wanted, at least 1; a budget of fewer steps has one after each.

    Returns:
        Increasing steps in ``1..steps``, ending with ``steps``.

    Raises:
        ArgumentError: An argument outside its bound.
    """
    if steps < 1:
        raise ArgumentError(f"steps must be at least 1, got {steps}.")
    if evaluations < 1:
        raise ArgumentError(f"evaluations must be at least 1, got {evaluations}.")
    points = min(evaluations, steps)
    return tuple(round(steps * point / points) for point in range(1, points + 1))
