"""The budget of a training, its schedule, and what an evaluation holds; without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from hpo_mab._errors import ArgumentError, UnknownNameError, plain


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One point of a learning curve.

    Attributes:
        index: Position among the run's evaluations, from 1.
        steps: Optimiser steps done.
        examples: Training examples processed, ``steps * batch size``.
        seconds: Training seconds spent, the sampler's own cost included, evaluation excluded.
        sampler_seconds: The part of ``seconds`` spent drawing batches and learning from losses.
        accuracy: Validation accuracy, in [0, 1].
        loss: Mean validation cross-entropy, in nats.
        train_loss: Mean training loss of the batches since the previous evaluation, in nats.
            Under a bandit these batches are harder than the data.
        learning_rate: Learning rate of the last step.
        reward_rate: Share of the draws since the previous evaluation that were rewarded; None for
            samplers without rewards.
        concentration: Share of all draws so far that fell on the most-drawn tenth of the examples
            (0.1 is uniform); None where the sampler does not count draws.
        averaged: Whether ``accuracy`` and ``loss`` are those of the averaged weights, not of the
            trained ones.
    """

    index: int
    steps: int
    examples: int
    seconds: float
    sampler_seconds: float
    accuracy: float
    loss: float
    train_loss: float
    learning_rate: float
    reward_rate: float | None = None
    concentration: float | None = None
    averaged: bool = False


#: Figures that the sampler reports and that an evaluation may lack.
SAMPLER_FIGURES = tuple(
    field.name for field in dataclasses.fields(Evaluation) if field.default is None
)


def sampler_figures(statistics: Mapping[str, float]) -> dict[str, Any]:
    """Those of a sampler's statistics that an `Evaluation` holds."""
    return {name: statistics[name] for name in SAMPLER_FIGURES if name in statistics}


#: Names of the schedules that `Schedule` knows.
SCHEDULES = ("constant", "linear")
#: Window of the average of a trial's weights, by measurement: see studies/rungs.
DEFAULT_AVERAGE = 0.2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The budget of one training, given in exactly one unit.

    Attributes:
        epochs: Passes over the training examples, above 0; may be a fraction.
        steps: Optimiser steps, at least 1.
        examples: Training examples processed, at least 1.

    Raises:
        ArgumentError: None or several units given, or a value that is not positive and finite.
    """

    epochs: float | None = None
    steps: int | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        given = {
            field.name: plain(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        if len(given) != 1:
            raise ArgumentError(
                "a budget needs exactly one of epochs, steps and examples, "
                f"got {' and '.join(given) or 'none'}."
            )
        (name, value), *_ = given.items()
        if not (value > 0 and math.isfinite(value)):
            raise ArgumentError(f"{name} of the budget must be above 0, got {value}.")
        if name != "epochs" and value != int(value):
            raise ArgumentError(f"{name} of the budget must be a whole number, got {value}.")
        object.__setattr__(self, name, value)

    def num_steps(self, *, num_examples: int, batch_size: int) -> int:
        """Optimiser steps the budget pays for, at least 1, rounded to the nearest.

        Args:
            num_examples: Training examples in one epoch, ``N``.
            batch_size: Examples a step, ``B``.
        """
        if self.steps is not None:
            return int(self.steps)
        examples = self.examples if self.examples is not None else (self.epochs or 0) * num_examples
        return max(1, round(examples / batch_size))


class Schedule:
    """Linear warm-up to the full learning rate, then decay to zero, or none.

    With ``W = min(round(warmup * T), T - 1)`` warm-up steps of ``T``, the factor of step ``s`` in
    ``0..T-1`` is ``(s + 1) / W`` before step ``W``. From there on it is ``(T - s) / (T - W)`` for
    ``"linear"``, which is 1 at its peak and zero first at step ``T``, which is not taken; and 1
    for ``"constant"``, whose trainings are evaluated by their averaged weights to the end.

    Args:
        steps: Optimiser steps of the budget, ``T``, at least 1.
        warmup: Share of the steps to warm up over, in [0, 1).
        kind: One of `SCHEDULES`.

    Raises:
        ArgumentError: An argument outside its bound.
        UnknownNameError: No such schedule.
    """

    def __init__(self, *, steps: int, warmup: float = 0.1, kind: str = "linear") -> None:
        if steps < 1:
            raise ArgumentError(f"steps must be at least 1, got {steps}.")
        if not 0.0 <= warmup < 1.0:
            raise ArgumentError(f"warmup must be a share in [0, 1), got {warmup}.")
        if kind not in SCHEDULES:
            raise UnknownNameError("schedule", kind, SCHEDULES)
        self.steps = steps
        self.warmup_steps = min(round(warmup * steps), steps - 1)
        self.kind = kind

    @property
    def decays(self) -> bool:
        """Whether the learning rate falls to zero, so that the last weights need no average."""
        return self.kind == "linear"

    def factor(self, step: int) -> float:
        """Share of the full learning rate at ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if not self.decays:
            return 1.0
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
