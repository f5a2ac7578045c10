"""Following a user's training loop: its budget, evaluations, pruning and learning curve."""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Self, SupportsFloat

import optuna
from optuna.trial import FrozenTrial
from torch import Tensor, nn

from hpo_mab._attributes import BUDGET_KEY, SAMPLER_KEY, UNIFORM
from hpo_mab._errors import (
    ArgumentError,
    HpoMabWarning,
    check_integer,
    is_integer,
    plain_arguments,
    require,
)
from hpo_mab.samplers import BatchSampler, UniformSampler
from hpo_mab.samplers._foreign import ForeignSampler
from hpo_mab.search._trial_record import (
    TrialRecord,
    check_direction,
    mark_pair,
    store_end,
    warn_of_other_lengths,
)
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.training import Evaluation, TrainingDiverged, WeightAverage
from hpo_mab.training._average import (
    python_numbers,
    set_numbers,
    shared_copy,
    tensor_at,
    tensors_of,
)
from hpo_mab.training._device import to_evaluation
from hpo_mab.training._schedule import DEFAULT_AVERAGE, Schedule, check_window, known_statistics


class TrialReporter:
    """Connects a training loop to an Optuna trial: budget, evaluations, pruning, learning curve.

    When the loop raises, ``with`` stores the curve so far and the user attribute
    ``hpo_mab:reason``, or ``hpo_mab:interrupted`` after Ctrl-C. Without ``with`` the reason of an
    error is not kept, and the curve is written point by point.

    With a ``model``, `step` keeps a moving average of its weights. Evaluate `network`: it has
    averaged weights before the end of the budget. At the end it has trained weights if the learning
    rate decays, else averaged ones. Averaged weights rank trials earlier, see
    `hpo_mab.training.WeightAverage`.

    Accuracies go to Optuna at steps 1 to ``evaluations``. So trials are compared at equal shares of
    their budget, and `hpo_mab.AdvantagePruner` can place its rungs. A trial takes one reporter, and
    gets the user attributes ``hpo_mab:budget``, ``hpo_mab:examples``, ``hpo_mab:seconds`` and
    ``hpo_mab:sampler``. With ``curves``, ``hpo-mab report`` compares such studies.

    Args:
        trial: Optuna's trial. An `optuna.trial.FixedTrial` or a finished trial is trained alone:
            nothing is stored, and no pruner stops it.
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
        for name, given, kind, what in (
            ("trial", trial, optuna.trial.BaseTrial, "an Optuna trial"),
            ("sampler", sampler, BatchSampler | None, "a hpo_mab.samplers.BatchSampler or None"),
            ("model", model, nn.Module | None, "a network or None"),
            ("curves", curves, CurveStore | None, "a storage's curves or None"),
        ):
            got = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
            require(isinstance(given, kind), name, what, got)
        # Optuna's wrapper of a trial for DDP has no trial id, by which a curve is stored.
        known = isinstance(trial, optuna.trial.Trial | optuna.trial.FixedTrial | FrozenTrial)
        wanted = "a Trial, FixedTrial or FrozenTrial if curves are given, under DDP in rank 0 only"
        require(curves is None or known, "trial", wanted, type(trial).__name__)
        check_integer("evaluations", evaluations, 1)
        require(is_integer(budget_examples), "budget_examples", "an integer", repr(budget_examples))
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
        self._network = None if model is None else shared_copy(model)
        self._window = average
        self._average: WeightAverage | None = None
        self._averaged = False
        if isinstance(trial, optuna.trial.Trial):
            check_direction(trial.study)
            warn_of_other_lengths(trial, budget_examples, evaluations)
            mark_pair(trial)
        self._record = TrialRecord(trial, curves)
        self._may_wait = False
        self._clock = clock
        self._reported = 0
        self._steps = 0
        self._seconds = 0.0
        self._running_since: float | None = clock()
        self._stopped_at = self._running_since
        self._losses: Tensor | float = 0.0
        self._counted = 0
        # A subclass, such as a curriculum, draws otherwise.
        uniform = sampler is None or type(sampler) is UniformSampler
        # A sampler of PyTorch's interface has the name that it was made by.
        name = sampler._name if isinstance(sampler, ForeignSampler) else type(sampler).__name__
        trial.set_user_attr(SAMPLER_KEY, UNIFORM if uniform else name)
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
        last, _ = self._evaluated
        after = (self.examples - last) * self.evaluations
        if not self.done:
            lacks = "is not that of a whole trial" if self._reported else "was not reported"
            if self.examples >= self.budget_examples and after < last:
                lacks += (
                    f": it came after {last:,}. If the loop is right, give budget_examples={last}"
                )
            warnings.warn(
                f"The loop has ended after {self.examples:,} of {self.budget_examples:,} "
                f"examples, so its last evaluation {lacks}.",
                HpoMabWarning,
                stacklevel=3,
            )
            return
        if after >= self.budget_examples:
            warnings.warn(
                f"The loop has trained {self.examples:,} examples, its budget is "
                f"{self.budget_examples:,}: what it trained after {last:,} is in no "
                f"evaluation. If the loop is right, give budget_examples={self.examples}.",
                HpoMabWarning,
                stacklevel=3,
            )

    @property
    def _evaluated(self) -> tuple[int, float]:
        """Training examples and seconds at the last report that counted."""
        last = self._record.last
        return (0, 0.0) if last is None else (last.examples, last.seconds)

    @property
    def done(self) -> bool:
        """Whether the budget is spent and reported."""
        return self._reported >= self.evaluations

    @property
    def due(self) -> bool:
        """Whether the next evaluation is due."""
        next_at = (self._reported + 1) * self.budget_examples
        return not self.done and self.examples * self.evaluations >= next_at

    @property
    def averages(self) -> bool:
        """Whether averaged weights are to be evaluated next, if there are any.

        False once the budget is spent, if the learning rate decays.
        """
        return not (self._decays and self.examples >= self.budget_examples)

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
        set_numbers(self._network, python_numbers(self._model))
        to_evaluation(self._network)
        return self._network

    def step(self, examples: int, *, loss: SupportsFloat | None = None) -> bool:
        """Count one batch: one optimiser step, or a micro-batch of one.

        Args:
            examples: Examples of the batch.
            loss: The batch's mean loss, a number or a tensor of one element, for the curve. If one
                is not finite, the training has diverged, and the next `report` ends it.

        Returns:
            Whether an evaluation is due: evaluate and call `report`. The clock is stopped until
            then.

        Raises:
            ArgumentError: ``examples`` is no whole number, or the loss no number.
        """
        # Before anything is counted: a loop may catch the error and repeat the step.
        counted, number = _whole(examples), None if loss is None else _number(loss)
        if self._running_since is None:
            # Nothing was reported, so the loop has gone on training.
            self._running_since = self._stopped_at
        self._steps += 1
        self.examples += counted
        if self._model is not None and self._window > 0:
            if self._average is None:
                # Not made earlier, because the model may still be moved to another device.
                self._average = WeightAverage(self._model, window=self._window)
            self._average.update()
        if number is not None:
            # A sum, not a list: small tensors between large ones would keep the memory of each step
            # from being reused. On another device the host must not wait for the value.
            self._losses = self._losses + number
            self._counted += 1
        if self._sampler is not None:
            self._sampler.set_progress(min(1.0, self.examples / self.budget_examples))
        if self.due:
            self.stop_clock()
        return self.due

    def stop_clock(self) -> None:
        """Stop the clock before an evaluation for which `step` has not returned True.

        `report` starts the clock again. Else the next `step` counts the evaluation's seconds as
        training.
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
        averaged: bool | None = None,
    ) -> None:
        """Report an evaluation that is due; before that, nothing is reported.

        Args:
            accuracy: Validation accuracy, in [0, 1].
            loss: Mean validation loss, for the curve.
            learning_rate: Of the last step, for the curve.
            averaged: Whether the accuracy is that of averaged weights, for loops with an average of
                their own. None: whether `network` had averaged weights when it was last read.

        Raises:
            optuna.TrialPruned: The study's pruner stops the trial. Or it has diverged: a loss that
                `step` got is not finite, or the accuracy is NaN. The reason is stored with it.
            ArgumentError: An accuracy outside [0, 1], as of percent.
        """
        accuracy = _checked_accuracy(accuracy)
        self.stop_clock()
        if not self.due:
            self._running_since = self._clock()
            return
        # A loop that evaluates rarely may have passed several points. This is the last of them.
        passed = self.examples * self.evaluations // self.budget_examples
        self._reported = min(self.evaluations, passed)
        self.accuracy = accuracy
        if averaged is not None:
            self._averaged = averaged
        evaluation = self._evaluation(loss=float(loss), learning_rate=float(learning_rate))
        self._check_diverged(evaluation, counted=self._counted > 0)
        self._losses, self._counted = 0.0, 0
        self._record.add(evaluation)
        self._averaged = False
        pruned = not self.done and self._record.should_prune()
        if not self._may_wait:
            self._record.close()
        if pruned:
            raise optuna.TrialPruned
        self._running_since = self._clock()

    def _evaluation(self, *, loss: float, learning_rate: float) -> Evaluation:
        train_loss = float(self._losses) / self._counted if self._counted else math.nan
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
            **known_statistics(statistics),
        )

    def _check_diverged(self, evaluation: Evaluation, *, counted: bool) -> None:
        """Raise `optuna.TrialPruned` if the trial has diverged."""
        what = ""
        if math.isnan(evaluation.accuracy):
            what = "the accuracy is nan"
        elif counted and not math.isfinite(evaluation.train_loss):
            what = f"the training loss is {evaluation.train_loss}"
        if not what:
            return
        error = TrainingDiverged(evaluation.steps, what)
        examples, seconds = self._evaluated
        error.examples, error.seconds = self.examples - examples, self._seconds - seconds
        self._record.diverged(error)
        if not self._may_wait:
            self._record.close()
        raise optuna.TrialPruned(str(error)) from error


def _number(loss: SupportsFloat) -> Tensor | float:
    """A loss as a number; as a tensor if it is on another device than the CPU."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ArgumentError(f"loss must be one number, got shape {list(loss.shape)}.")
        # Sums of many losses may exceed half precision.
        return float(loss.detach()) if loss.is_cpu else loss.detach().float()
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise ArgumentError(f"loss must be a number, got {loss!r}.") from None


def _checked_accuracy(accuracy: float) -> float:
    try:
        accuracy = float(accuracy)
    except (TypeError, ValueError):
        raise ArgumentError(f"accuracy must be a number, got {accuracy!r}.") from None
    bound = "in [0, 1], percent divided by 100" if accuracy > 1 else "in [0, 1], not a loss"
    # NaN is neither.
    require(not (accuracy < 0 or accuracy > 1), "accuracy", bound, accuracy)
    return accuracy


def _whole(examples: int) -> int:
    try:
        # A tensor's value, too.
        count = operator.index(examples)
    except TypeError:
        raise ArgumentError(f"examples must be a whole number, got {examples!r}.") from None
    require(count >= 0, "examples", "at least 0", count)
    return count
