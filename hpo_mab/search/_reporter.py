"""Following a user's training loop: its budget, evaluations, pruning and learning curve."""

from __future__ import annotations

import copy
import math
import operator
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Self, SupportsFloat

import optuna
from torch import Tensor, nn

from hpo_mab._attributes import (
    BUDGET_KEY,
    SAMPLER_KEY,
    UNIFORM,
    has_spent_budget,
)
from hpo_mab._errors import ArgumentError, check_integer, plain_arguments, require
from hpo_mab.samplers import BatchSampler, UniformSampler
from hpo_mab.search._recorder import TrialRecord, check_direction, store_end
from hpo_mab.storage import STORAGE_ERRORS, CurveStore
from hpo_mab.training import DEFAULT_AVERAGE, Evaluation, WeightAverage
from hpo_mab.training._average import tensor_at, tensors_of
from hpo_mab.training._schedule import Schedule, check_window, sampler_figures


class ShortTrialWarning(UserWarning):
    """A loop that a `TrialReporter` follows has ended before its budget was spent.

    Examples:
        >>> import warnings
        >>> from hpo_mab.search import ShortTrialWarning
        >>> warnings.simplefilter("error", ShortTrialWarning)  # it becomes an error
    """


class TrialReporter:
    """Connects a training loop to an Optuna trial: budget, evaluations, pruning, learning curve.

    When the loop raises, ``with`` stores the curve so far and the user attribute
    ``hpo_mab:reason``, or ``hpo_mab:interrupted`` after Ctrl-C. Without it no reason is kept, and
    the curve is written point by point.

    With a ``model``, `step` keeps a moving average of its weights. Evaluate `network`: it has
    averaged weights before the end of the budget. At the end it has trained weights if the learning
    rate decays, else averaged ones. Averaged weights rank trials earlier, see
    `hpo_mab.training.WeightAverage`.

    Accuracies go to Optuna at steps 1 to ``evaluations``. So trials are compared at equal shares of
    their budget, and `hpo_mab.AdvantagePruner` can place its rungs. The trial gets the user
    attributes ``hpo_mab:budget``, ``hpo_mab:examples``, ``hpo_mab:seconds`` and
    ``hpo_mab:sampler``. With ``curves``, ``hpo-mab report`` compares such studies.

    Args:
        trial: Optuna's trial. An `optuna.trial.FixedTrial` or a finished trial is trained alone:
            nothing is stored or pruned.
        sampler: The batch sampler in use; its `set_progress` is called at each step. None means
            uniform batches that are drawn by something else.
        model: The network that is trained; None keeps no average. `copy.deepcopy` must be able to
            copy it; the copy shares its weights.
        average: Window of the moving average as a share of the steps so far, in [0, 1]; 0 keeps
            none.
        schedule: Your learning rate: ``"linear"`` if it decays by the end of the budget, however it
            does so, or ``"constant"``.
        budget_examples: Training examples that the trial may process, at least ``evaluations``.
        evaluations: Equally spaced evaluations, at least 1.
        curves: Where to keep the learning curve; None keeps none.
        clock: Returns seconds.

    Raises:
        ArgumentError: An argument outside its bound, a model that cannot be copied, or a study that
            does not maximize.
        UnknownNameError: No such schedule.

    Examples:
        >>> import optuna
        >>> import torch
        >>> from hpo_mab.samplers import create
        >>> from hpo_mab.search import TrialReporter
        >>> def objective(trial):
        ...     sampler = create("mab", [0, 1] * 20, batch_size=10)
        ...     with TrialReporter(trial, sampler=sampler, budget_examples=40) as reporter:
        ...         while not reporter.done:
        ...             indices = sampler.draw()
        ...             loss = sampler.update(torch.rand(10))  # backward, optimiser step
        ...             if reporter.step(10, loss=loss):
        ...                 reporter.report(accuracy=0.5)
        ...     return reporter.accuracy
        >>> study = optuna.create_study(direction="maximize")
        >>> study.optimize(objective, n_trials=1)
        >>> study.best_value
        0.5
    """

    @plain_arguments
    def __init__(
        self,
        trial: optuna.trial.BaseTrial,
        *,
        sampler: BatchSampler | None = None,
        model: nn.Module | None = None,
        average: float = DEFAULT_AVERAGE,
        schedule: str = "linear",
        budget_examples: int,
        evaluations: int = 8,
        curves: CurveStore | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_integer("evaluations", evaluations, 1)
        if curves is not None and not isinstance(curves, CurveStore):
            raise ArgumentError(f"curves must be a storage's curves, got {type(curves).__name__}.")
        bound = f"at least evaluations, {evaluations}"
        require(budget_examples >= evaluations, "budget_examples", bound, budget_examples)
        check_window(average)
        # Its length does not matter here.
        self._decays = Schedule(steps=1, kind=schedule).decays
        self.budget_examples = budget_examples
        self.evaluations = evaluations
        self.examples = 0
        self.accuracy = math.nan
        self._trial = trial
        self._sampler = sampler
        self._model = model
        self._network = None if model is None else _shared_copy(model)
        self._window = average
        self._average: WeightAverage | None = None
        self._averaged = False
        if isinstance(trial, optuna.trial.Trial):
            check_direction(trial.study)
            _warn_of_other_lengths(trial, budget_examples, evaluations)
        self._record = TrialRecord(trial, curves)
        self._may_wait = False
        self._clock = clock
        self._reported = 0
        #: Examples at the last report that counted.
        self._evaluated = 0
        self._steps = 0
        self._seconds = 0.0
        self._running_since: float | None = clock()
        self._stopped_at = self._running_since
        self._losses: Tensor | float = 0.0
        self._counted = 0
        # A subclass, such as a curriculum, draws otherwise.
        uniform = sampler is None or type(sampler) is UniformSampler
        trial.set_user_attr(SAMPLER_KEY, UNIFORM if uniform else type(sampler).__name__)
        trial.set_user_attr(BUDGET_KEY, budget_examples)

    def __enter__(self) -> Self:
        # `__exit__` writes the rest, so points of the curve may wait.
        self._may_wait = True
        self._running_since = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._may_wait = False
        self.stop_clock()
        if error is None:
            self._record.close()
            self._warn_of_another_length()
            return
        try:
            self._record.close()
            # Another tuner, such as Ray Tune, stops the function by an exit without a status.
            if not (isinstance(error, SystemExit) and not error.code):
                store_end(self._trial, error)
        except STORAGE_ERRORS as failure:
            # The error that ended the loop must be raised, not that of this write.
            error.add_note(f"The trial's end could not be stored: {type(failure).__name__}.")

    def _warn_of_another_length(self) -> None:
        """Warn if the loop has ended before its budget, or an evaluation's share after it."""
        if not self.done:
            lacks = "is not that of a whole trial" if self._reported else "was not reported"
            warnings.warn(
                f"The loop has ended after {self.examples:,} of {self.budget_examples:,} "
                f"examples, so its last evaluation {lacks}.",
                ShortTrialWarning,
                stacklevel=3,
            )
        elif self.examples - self._evaluated >= self.budget_examples / self.evaluations:
            warnings.warn(
                f"The loop has trained {self.examples:,} examples, its budget is "
                f"{self.budget_examples:,}: what it trained after {self._evaluated:,} is in no "
                "evaluation.",
                UserWarning,
                stacklevel=3,
            )

    @property
    def done(self) -> bool:
        """Whether the budget is spent and reported."""
        return self._reported >= self.evaluations

    @property
    def due(self) -> bool:
        """Whether the next evaluation is due."""
        share = (self._reported + 1) / self.evaluations
        # Rounding may have made the product larger than the examples that are due.
        return not self.done and self.examples >= share * self.budget_examples - 1e-6

    @property
    def averages(self) -> bool:
        """Whether averaged weights are to be evaluated next, if there are any.

        False once the budget is spent, if the learning rate decays.
        """
        return not (self._decays and self.examples >= self.budget_examples - 1e-6)

    @property
    def network(self) -> nn.Module:
        """What to evaluate next, in evaluation mode; read it at each evaluation.

        A copy of the model with averaged weights as long as `averages` is true, then with the
        model's own. The model keeps its mode.

        Raises:
            ArgumentError: The reporter was made without a model.
        """
        if self._model is None or self._network is None:
            raise ArgumentError("model must be given for network, got None.")
        self._averaged = self._average is not None and self.averages
        averages = {}
        if self._average is not None and self._averaged:
            averages = self._average.weights()
        for name, tensor in tensors_of(self._network).items():
            own = averages.get(name)
            tensor.data = (tensor_at(self._model, name) if own is None else own).detach()
        return self._network.eval()

    def step(self, examples: int, *, loss: SupportsFloat | None = None) -> bool:
        """Count one optimiser step.

        Args:
            examples: Examples of the batch.
            loss: The batch's mean loss, a number or a tensor of one element, for the curve.

        Returns:
            Whether an evaluation is due: evaluate and call `report`. The clock is stopped until
            then.

        Raises:
            ArgumentError: ``examples`` is no whole number.
        """
        if self._running_since is None:
            # Nothing was reported, so the loop has gone on training.
            self._running_since = self._stopped_at
        self._steps += 1
        self.examples += _whole(examples)
        if self._model is not None and self._window > 0:
            if self._average is None:
                # Not made earlier, because the model may still be moved to another device.
                self._average = WeightAverage(self._model, window=self._window)
            self._average.update()
        if loss is not None:
            # A sum, not a list: small tensors between large ones would keep the memory of each step
            # from being reused. On another device the host must not wait for the value.
            if isinstance(loss, Tensor) and not loss.is_cpu:
                self._losses = self._losses + loss.detach()
            else:
                self._losses += float(loss.detach() if isinstance(loss, Tensor) else loss)
            self._counted += 1
        if self._sampler is not None:
            self._sampler.set_progress(min(1.0, self.examples / self.budget_examples))
        if self.due:
            self.stop_clock()
        return self.due

    def stop_clock(self) -> None:
        """Stop the clock before an evaluation for which `step` has not returned True.

        `report` starts the clock again. Without a report the next `step` counts these seconds.
        """
        if self._running_since is not None:
            self._stopped_at = self._clock()
            self._seconds += self._stopped_at - self._running_since
            self._running_since = None

    @plain_arguments
    def report(
        self,
        *,
        accuracy: float,
        loss: float = math.nan,
        learning_rate: float = math.nan,
        examples: int | None = None,
        averaged: bool | None = None,
    ) -> None:
        """Report an evaluation that is due; before that, nothing is reported.

        Args:
            accuracy: Validation accuracy, in [0, 1].
            loss: Mean validation loss, for the curve.
            learning_rate: Of the last step, for the curve.
            examples: Training examples processed so far, for loops that do not call `step`.
            averaged: Whether the accuracy is that of averaged weights, for loops with an average of
                their own. None: whether `network` had averaged weights when it was last read.

        Raises:
            optuna.TrialPruned: The study's pruner stops the trial.
            ArgumentError: An accuracy outside [0, 1], as of percent.
        """
        try:
            accuracy = float(accuracy)
        except (TypeError, ValueError):
            raise ArgumentError(f"accuracy must be a number, got {accuracy!r}.") from None
        # Not of NaN, which is no accuracy.
        outside = accuracy < 0 or accuracy > 1
        require(not outside, "accuracy", "in [0, 1], percent divided by 100", accuracy)
        self.stop_clock()
        if examples is not None:
            self.examples = _whole(examples)
        if not self.due:
            self._running_since = self._clock()
            return
        # A loop that evaluates rarely may have passed several points. This is the last of them.
        share = self.examples / self.budget_examples
        self._reported = min(self.evaluations, math.floor(share * self.evaluations + 1e-6))
        self._evaluated = self.examples
        self.accuracy = accuracy
        if averaged is not None:
            self._averaged = averaged
        self._record.add(self._evaluation(loss=float(loss), learning_rate=learning_rate))
        self._averaged = False
        pruned = not self.done and self._record.should_prune()
        if not self._may_wait:
            self._record.close()
        if pruned:
            raise optuna.TrialPruned
        self._running_since = self._clock()

    def _evaluation(self, *, loss: float, learning_rate: float) -> Evaluation:
        train_loss = float(self._losses) / self._counted if self._counted else math.nan
        self._losses, self._counted = 0.0, 0
        statistics = {} if self._sampler is None else self._sampler.statistics()
        return Evaluation(
            index=self._reported,
            steps=self._steps,
            examples=self.examples,
            seconds=self._seconds,
            sampler_seconds=0.0,
            accuracy=self.accuracy,
            loss=loss,
            train_loss=train_loss,
            learning_rate=learning_rate,
            averaged=self._averaged,
            **sampler_figures(statistics),
        )


def _warn_of_other_lengths(trial: optuna.trial.Trial, budget: int, evaluations: int) -> None:
    """Warn if an earlier trial of the study has another budget or number of evaluations."""
    for other in trial.study.get_trials(deepcopy=False):
        attrs = other.user_attrs
        # A trial that was stopped, or whose loop ended early, has made fewer than it was to make.
        made = other.last_step if has_spent_budget(attrs) else evaluations
        for name, given, known in (
            ("budget_examples", budget, attrs.get(BUDGET_KEY, budget)),
            ("evaluations", evaluations, made),
        ):
            if known is not None and known != given:
                warnings.warn(
                    f"{name} is {given:,}, of trial {other.number} it was {known:,}. Pruners "
                    "compare trials at equal numbers of evaluations, so begin another study; "
                    "'hpo-mab report' refuses one with several budgets.",
                    stacklevel=4,
                )
                return


def _whole(examples: int) -> int:
    try:
        # A tensor's value, too.
        count = operator.index(examples)
    except TypeError:
        raise ArgumentError(f"examples must be a whole number, got {examples!r}.") from None
    require(count >= 0, "examples", "at least 0", count)
    return count


def _shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a network whose parameters and buffers are new, and share the network's memory.

    Raises:
        ArgumentError: The network cannot be copied.
    """
    # `copy.deepcopy` takes what this mapping holds in place of a copy.
    shared: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in model.buffers()}
    try:
        for weight in model.parameters():
            shared[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
        return copy.deepcopy(model, shared)
    # ValueError: a weight of a lazy layer has no shape before the first batch.
    except (TypeError, RuntimeError, ValueError) as error:
        raise ArgumentError(
            "model must be a network that copy.deepcopy can copy, "
            f"got {type(model).__name__}: {error}"
        ) from error
