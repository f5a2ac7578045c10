"""The budget, schedule and learning curve of a training; without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from hpo_mab._errors import ArgumentError, HpoMabError, UnknownNameError, plain, require


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One point of a learning curve.

    Attributes:
        index: Position among the training's evaluations, from 1.
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


#: Statistics that the sampler reports and that an evaluation may lack.
SAMPLER_STATISTICS = tuple(
    field.name for field in dataclasses.fields(Evaluation) if field.default is None
)


def known_statistics(statistics: Mapping[str, float]) -> dict[str, Any]:
    """The statistics of a sampler that an `Evaluation` has a field for."""
    # A checkpoint that holds NumPy's numbers could not be loaded.
    found = {name: statistics.get(name) for name in SAMPLER_STATISTICS}
    return {name: float(value) for name, value in found.items() if value is not None}


def stored_evaluation(fields: Iterable[tuple[str, Any]]) -> Evaluation:
    """The evaluation of names and values as files and databases have them: None in place of NaN."""
    values = dict(fields)
    for name in [name for name, value in values.items() if value is None]:
        if name == "averaged":
            # Of an earlier version, which had trained weights only.
            values[name] = False
        elif name not in SAMPLER_STATISTICS:
            values[name] = math.nan
    return Evaluation(**values)


class TrainingDiverged(HpoMabError, ArithmeticError):  # noqa: N818 - an outcome, not a mistake
    """The training or validation loss is no longer finite.

    Args:
        step: Optimiser steps done when it was detected.
        what: The loss and its value, in words.
        examples: Training examples since the last evaluation.
        seconds: Training seconds since then.
    """

    def __init__(self, step: int, what: str, examples: int = 0, seconds: float = 0.0) -> None:
        # As arguments: `pickle` passes them to the constructor, and sets the other attributes.
        super().__init__(step, what)
        self.step = step
        self.examples = examples
        self.seconds = seconds

    def __str__(self) -> str:
        step, what = self.args
        return f"Training diverged by step {step}: {what}."


#: Names of the schedules that `Schedule` takes.
SCHEDULES = ("constant", "linear")
#: Weights that a training ends with: the trained ones, or the more accurate of these and their
#: average.
KEEP = ("better", "trained")
#: Window of the average of a trial's weights, by measurement: see studies/rungs.
DEFAULT_AVERAGE = 0.2


#: The largest budget, in any unit: its number of steps is finite.
_MOST = 1e15


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The budget of one training, given in exactly one unit.

    Attributes:
        epochs: Passes over the training examples, above 0; may be a fraction.
        steps: Optimiser steps, at least 1.
        examples: Training examples processed, at least 1.

    Raises:
        ArgumentError: None or several units given, or a value that is not positive and finite.

    Examples:
        >>> from hpo_mab.training import Budget
        >>> Budget(epochs=0.5).num_steps(num_examples=50_000, batch_size=100)
        250
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
        bound = f"above 0 and at most {_MOST:g}"
        require(0 < value <= _MOST, f"{name} of the budget", bound, value)
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
    ``0..T-1`` is ``(s + 1) / W`` before step ``W``. From there on, for ``"linear"``, it is
    ``(T - s) / (T - W)``: 1 at step ``W``, and 0 only at step ``T``, which is not taken. For
    ``"constant"`` it is 1; such trainings are evaluated by their averaged weights to the end.

    Args:
        steps: Optimiser steps of the budget, ``T``, at least 1.
        warmup: Share of the steps to warm up over, in [0, 1).
        kind: One of `SCHEDULES`.

    Raises:
        ArgumentError: An argument outside its bound.
        UnknownNameError: No such schedule.
    """

    def __init__(self, *, steps: int, warmup: float = 0.1, kind: str = "linear") -> None:
        require(steps >= 1, "steps", "at least 1", steps)
        require(0.0 <= warmup < 1.0, "warmup", "a share in [0, 1)", warmup)
        if kind not in SCHEDULES:
            raise UnknownNameError("schedule", kind, SCHEDULES)
        self.steps = steps
        self.warmup_steps = min(round(warmup * steps), steps - 1)
        self.kind = kind

    @property
    def decays(self) -> bool:
        """Whether the learning rate falls to zero, so that the last weights need no average."""
        return self.kind == "linear"

    @property
    def lines(self) -> tuple[int, int, int, int]:
        """``(w, e, d, l)``: the factor of step ``s`` is ``min((s + 1) / w, (e - d s) / l)``.

        The first line is the warm-up, the second the decay. The first is below the second exactly
        before step ``W``.
        """
        warm = max(self.warmup_steps, 1)
        if not self.decays:
            return warm, 1, 0, 1
        return warm, self.steps, 1, self.steps - self.warmup_steps

    def factor(self, step: int) -> float:
        """Share of the full learning rate at ``step``, counted from 0."""
        warm, end, slope, length = self.lines
        return max(0.0, min((step + 1) / warm, (end - slope * step) / length))


def check_window(window: float) -> None:
    """Raise `ArgumentError` unless ``window`` is a share in [0, 1]; 0 means no average."""
    require(0.0 <= window <= 1.0, "average", "a share in [0, 1]", window)


class CurveArguments(TypedDict, total=False):
    """Keyword arguments of a `LearningCurve` in addition to ``steps``."""

    evaluations: int
    warmup: float
    schedule: str
    average: float
    keep: str
    label_smoothing: float
    budgets: int


class LearningCurve:
    """The evaluations of a training: when and of which weights, and those made so far.

    It is made before the first step, and also decides the schedule. `hpo_mab.training.Training`
    describes the arguments; their defaults are here.

    Attributes:
        schedule: The learning-rate schedule.
        stops: Steps after which the training is evaluated.
        points: The evaluations so far.

    Raises:
        ArgumentError: An argument outside its bound.
        UnknownNameError: No such schedule or ``keep``.
    """

    def __init__(
        self,
        *,
        steps: int,
        evaluations: int = 8,
        warmup: float = 0.1,
        schedule: str = "linear",
        average: float = 0.0,
        keep: str = "trained",
        label_smoothing: float = 0.0,
        budgets: int = 1,
    ) -> None:
        check_window(average)
        require(budgets >= 1, "budgets", "at least 1", budgets)
        require(0.0 <= label_smoothing < 1.0, "label_smoothing", "in [0, 1)", label_smoothing)
        if keep not in KEEP:
            raise UnknownNameError("keep", keep, KEEP)
        self.schedule = Schedule(steps=steps, warmup=warmup, kind=schedule)
        if budgets > 1 and self.schedule.decays:
            raise ArgumentError(
                f"budgets must be 1 with schedule '{schedule}', which ends with its budget, "
                f"got {budgets}."
            )
        require(evaluations >= 1, "evaluations", "at least 1", evaluations)
        # Equally spaced, the last at the end; a budget of fewer steps has one after each.
        points = min(evaluations, steps)
        once = [round(steps * point / points) for point in range(1, points + 1)]
        self.stops = tuple(n * steps + stop for n in range(budgets) for stop in once)
        self._evaluations = len(once)
        self.average = average
        self.label_smoothing = label_smoothing
        self.points: list[Evaluation] = []
        self._keep = keep

    @property
    def complete(self) -> bool:
        """Whether the last evaluation was made."""
        return len(self.points) == len(self.stops)

    @property
    def last_step(self) -> int:
        """Steps done at the last evaluation so far; 0 before the first."""
        return self.points[-1].steps if self.points else 0

    @property
    def last_seconds(self) -> float:
        """Training seconds spent at the last evaluation so far; 0 before the first."""
        return self.points[-1].seconds if self.points else 0.0

    @property
    def averaged(self) -> bool:
        """Whether the last evaluation so far was that of the averaged weights."""
        return bool(self.points) and self.points[-1].averaged

    @property
    def next_stop(self) -> int:
        """Steps after which the next evaluation is due."""
        return self.stops[len(self.points)]

    @property
    def next_is_last_of_budget(self) -> bool:
        """Whether the next evaluation is at the end of the budget, or of a multiple of it."""
        return (len(self.points) + 1) % self._evaluations == 0

    def progress(self, step: int) -> float:
        """Share of the budget that is spent before a step, counted from 0; at most 1."""
        return min(1.0, step / self.schedule.steps)

    @property
    def weights_to_evaluate(self) -> tuple[bool, ...]:
        """Weights to evaluate next: False for the trained ones, True for the averaged ones.

        If both are evaluated, the more accurate ones are kept; if they are equal, the trained ones.
        """
        if self.average and self.next_is_last_of_budget and self._keep == "better":
            return False, True
        return (self.average > 0 and not (self.next_is_last_of_budget and self.schedule.decays),)

    def add(
        self,
        averaged: bool,
        accuracy: float,
        loss: float,
        *,
        step: int,
        batch_size: int,
        seconds: float,
        sampler_seconds: float = 0.0,
        train_loss: float,
        learning_rate: float,
        statistics: Mapping[str, float],
    ) -> Evaluation:
        """Add the evaluation after a step, with the sampler's ``statistics``; returns it.

        Raises:
            TrainingDiverged: A loss is not finite.
        """
        for what, value in (("training", train_loss), ("validation", loss)):
            if not math.isfinite(value):
                lost = (step - self.last_step) * batch_size, seconds - self.last_seconds
                raise TrainingDiverged(step, f"the {what} loss is {value}", *lost)
        point = Evaluation(
            index=len(self.points) + 1,
            steps=step,
            examples=step * batch_size,
            seconds=seconds,
            sampler_seconds=sampler_seconds,
            accuracy=accuracy,
            loss=loss,
            train_loss=train_loss,
            learning_rate=learning_rate,
            averaged=averaged,
            **known_statistics(statistics),
        )
        self.points.append(point)
        return point

    def checked_points(self, points: Iterable[Mapping[str, Any]]) -> list[Evaluation]:
        """The evaluations of a saved state, which must be at this curve's stops; none is added."""
        found = [Evaluation(**point) for point in points]
        if not found or [point.steps for point in found] != list(self.stops[: len(found)]):
            raise ArgumentError("the state is of a training that is evaluated at other steps.")
        return found
