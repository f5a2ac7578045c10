"""What is kept of a trial while it trains: reports, curve, cost, why it ended.

`train_and_record` records a training of ours, `hpo_mab.TrialReporter` a user's own loop; both by
`TrialRecord`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Mapping

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpo_mab._attributes import (
    BUDGET_KEY,
    EVALUATION_KEY,
    EXAMPLES_KEY,
    INTERRUPTED_KEY,
    PAIRED_KEY,
    PRUNED_KEY,
    REASON_KEY,
    RESUMED_KEY,
    SECONDS_KEY,
    SLOT_KEY,
    TWIN_KEY,
    UNREPORTED_KEY,
    has_spent_budget,
)
from hpo_mab._errors import ArgumentError, HpoMabWarning, failure_reason
from hpo_mab._interrupts import interruptible
from hpo_mab._plan import slot_of
from hpo_mab.pruners import AdvantagePruner, PromotionPruner
from hpo_mab.pruners._reasons import reason_of
from hpo_mab.search._checkpoint import Checkpoints, TrialCheckpoint
from hpo_mab.search._space import Assignment
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._definition import batch_size_of, have_one_budget
from hpo_mab.storage._examples import ExampleWriter
from hpo_mab.storage._optuna import id_of, queued_params, startup_trials, storage_of
from hpo_mab.training import Evaluation, Training, TrainingDiverged
from hpo_mab.training._tally import ExampleTally


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Where running trials write curves, checkpoints and sums of examples; None writes nothing.

    Attributes:
        curves: Where learning curves are stored.
        checkpoints: Where long trials are saved.
        example_writer: Writes what trials see of each example.
        on_progress: Called with the share of its budget that each running trial has spent, by
            trial number.
        in_loop: Whether a `hpo_mab.search._trial_loop.TrialLoop` runs the trials: it queues twins
            with the study's lock held.
        collect_writes: Context in which a trial gets its parameters. In a `TrialLoop` one
            transaction writes them: with a part of them, a retry would draw others.
    """

    curves: CurveStore | None = None
    checkpoints: Checkpoints | None = None
    example_writer: ExampleWriter | None = None
    on_progress: Callable[[Mapping[int, float]], None] | None = None
    in_loop: bool = False
    collect_writes: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


def check_direction(study: optuna.Study) -> None:
    """Refuse a study that does not maximize the accuracy that its trials report."""
    if study.directions != [StudyDirection.MAXIMIZE]:
        given = ", ".join(f"'{direction.name.lower()}'" for direction in study.directions)
        raise ArgumentError(
            f"A trial's value is validation accuracy: study '{study.study_name}' must be created "
            f"with direction='maximize', got {given}."
        )


def mark_pair(trial: optuna.trial.Trial, *, initial: int = 0) -> None:
    """Store whether a trial is one of the first, never pruned: only these may be in a pair.

    Pairs that the pruner may stop would be a biased selection. The first are the pruner's startup
    trials; of a pruner without such a number, the first ``initial``.
    """
    pruner = trial.study.pruner
    never = isinstance(pruner, optuna.pruners.NopPruner)
    if startup := startup_trials(pruner) or (0 if never else initial):
        trial.set_user_attr(PAIRED_KEY, trial.number < startup)


def store_end(trial: optuna.trial.BaseTrial, error: BaseException) -> None:
    """Store why an error ended a trial; `TrialRecord` stores why one was pruned."""
    if isinstance(error, KeyboardInterrupt):
        trial.set_user_attr(INTERRUPTED_KEY, True)
    elif not isinstance(error, optuna.TrialPruned):
        trial.set_user_attr(REASON_KEY, failure_reason(error))


#: Seconds between writes of a trial's curve.
_CURVE_SECONDS = 5.0


class TrialRecord:
    """Reports a trial's evaluations to Optuna, and writes its curve and cost to the database.

    The curve is written every few seconds: a short trial's is one transaction, a long one's a few.
    A killed trial loses the evaluations since its last write. The first write replaces the curve of
    an earlier attempt at the trial.

    Args:
        trial: Optuna's trial. Nothing is stored of one that is not running.
        curves: Where its learning curve is kept; None keeps none.
    """

    def __init__(self, trial: optuna.trial.BaseTrial, curves: CurveStore | None) -> None:
        self.last: Evaluation | None = None
        #: Seconds of the evaluations that this attempt has made itself; None if not known.
        self.evaluation_seconds: float | None = None
        #: Its part of the seconds of a stack's free slots.
        self.idle_seconds = 0.0
        #: Examples and seconds after the last evaluation, of a trial that diverged.
        self._unreported = (0, 0.0)
        self._trial = trial
        self._curves: CurveStore | None = None
        if isinstance(trial, optuna.trial.Trial):
            if curves is not None:
                curves.check_holds(trial)
            self._curves, self._id = curves, id_of(trial)
        self._waiting: list[Evaluation] = []
        self._is_first = True
        self._written = time.monotonic()

    def add(self, evaluation: Evaluation) -> None:
        """Add an evaluation and report it."""
        self.add_unwritten(evaluation)
        if self.is_due:
            self.flush()

    def add_unwritten(self, evaluation: Evaluation) -> None:
        """Add an evaluation and report it; its point of the curve waits for `flush_all`."""
        self.last = evaluation
        if self._curves is not None:
            self._waiting.append(evaluation)
        self._trial.report(evaluation.accuracy, step=evaluation.index)

    def should_prune(self) -> bool:
        """Whether the study's pruner stops the trial; the reason is then stored with it."""
        pruned = self._trial.should_prune()
        if pruned and isinstance(self._trial, optuna.trial.Trial):
            store_reason(self._trial)
        return pruned

    def diverged(self, error: TrainingDiverged) -> None:
        """Store why the trial diverged; keep what it has spent since its last evaluation."""
        self._trial.set_user_attr(REASON_KEY, str(error))
        self._unreported = (error.examples, error.seconds)

    def flush(self) -> None:
        """Write the points of the curve that wait."""
        self.flush_all([self])

    @property
    def is_due(self) -> bool:
        """Whether the last write of the curve was several seconds ago."""
        return time.monotonic() - self._written >= _CURVE_SECONDS

    @staticmethod
    def flush_all(records: Iterable[TrialRecord]) -> None:
        """Write the points that wait of several trials' curves, in one transaction."""
        full = [each for each in records if each._waiting]
        if full and (curves := full[0]._curves) is not None:
            curves.extend([(each._id, each._waiting, each._is_first) for each in full])
        for each in full:
            each._waiting.clear()
            each._is_first = False
            each._written = time.monotonic()

    def close(self) -> None:
        """Write the rest of the curve, the trial's cost, and the cost that the curve lacks."""
        # First: a trial whose cost is stored has its whole curve.
        self.flush()
        examples, seconds = self._unreported
        if examples or self.idle_seconds:
            spent = [examples, round(seconds + self.idle_seconds, 3)]
            self._trial.set_user_attr(UNREPORTED_KEY, spent)
        if self.last is not None:
            self._trial.set_user_attr(EXAMPLES_KEY, self.last.examples)
            self._trial.set_user_attr(SECONDS_KEY, round(self.last.seconds, 3))
        if self.evaluation_seconds is not None:
            self._trial.set_user_attr(EVALUATION_KEY, round(self.evaluation_seconds, 3))


def store_reason(trial: optuna.trial.Trial) -> None:
    """Store why the study's pruner stops a running trial, unless the pruner has stored it."""
    study, pruner = trial.study, trial.study.pruner
    # This pruner stores each reason with its decision.
    if isinstance(pruner, AdvantagePruner):
        return
    storage, frozen = storage_of(study), storage_of(study).get_trial(id_of(trial))
    if PRUNED_KEY not in frozen.user_attrs:
        storage.set_trial_user_attr(id_of(trial), PRUNED_KEY, reason_of(pruner, study, frozen))


def warn_of_other_lengths(trial: optuna.trial.Trial, budget: int, evaluations: int) -> None:
    """Warn if the trial has reports, or an earlier one another budget or number of evaluations."""
    trials = trial.study.get_trials(deepcopy=False)
    if trials[trial.number].intermediate_values:
        warnings.warn(
            f"Trial {trial.number} has reports already: Optuna ignores a second report of a step, "
            "and only the last curve is kept. In a cross-validation give one fold a TrialReporter.",
            HpoMabWarning,
            stacklevel=4,
        )
    earlier = [t for t in trials if t.number != trial.number]
    size = batch_size_of(trial)
    for other in earlier:
        attrs = other.user_attrs
        if other.intermediate_values and BUDGET_KEY not in attrs:
            warnings.warn(
                f"Trial {other.number} was reported by another loop. TrialReporter and "
                "TrainingObjective count steps from 1, and pruners compare trials at equal steps, "
                "so begin another study.",
                HpoMabWarning,
                stacklevel=4,
            )
            return
        # A trial that was stopped, or whose loop ended early, has made fewer than it was to make.
        made = other.last_step if has_spent_budget(attrs) else evaluations
        known_budget = attrs.get(BUDGET_KEY, budget)
        same = have_one_budget([budget, known_budget], [size, batch_size_of(other)])
        for name, given, known in (
            ("budget in examples", budget, budget if same else known_budget),
            ("number of evaluations", evaluations, made),
        ):
            if known is not None and known != given:
                warnings.warn(
                    f"The {name} is {given:,}, of trial {other.number} it was {known:,}. Pruners "
                    "compare trials at equal numbers of evaluations, so begin another study; "
                    "'hpo-mab report' refuses one with several budgets.",
                    HpoMabWarning,
                    stacklevel=4,
                )
                return


def warn_of_unknown(trial: optuna.trial.Trial) -> None:
    """Warn if the trial was queued with parameters that have not been suggested."""
    unknown = queued_params(trial).keys() - trial.params.keys()
    if unknown:
        warnings.warn(
            f"Trial {trial.number} was queued with {', '.join(sorted(unknown))}, which this "
            f"objective does not search: its parameters are {', '.join(sorted(trial.params))}.",
            HpoMabWarning,
            stacklevel=4,
        )


def warn_without_pilot(trial: optuna.trial.Trial, *, initial: int) -> None:
    """Warn if trials that the study had before took the slots of the trial's pilot."""
    if trial.user_attrs[SLOT_KEY] < initial:
        return
    trials = trial.study.get_trials(deepcopy=False)
    # A trial of a pilot queues its twin before it is complete.
    taken = any(
        one.state == TrialState.COMPLETE and slot_of(trial.study, one) < initial for one in trials
    )
    if taken and not any(TWIN_KEY in one.user_attrs for one in trials):
        warnings.warn(
            f"Earlier trials of the study have its first {initial} slots, so there is no pilot; "
            "begin another study.",
            HpoMabWarning,
            stacklevel=4,
        )


#: Why the continuation of a complete trial ends. Trained from zero, it would repeat the complete
#: trial, which already counts.
NO_CHECKPOINT = "the checkpoint of the trial that it continues is gone or does not fit"


def train_and_record(
    trial: optuna.trial.Trial,
    training: Training,
    assignment: Assignment,
    recording: Recording,
    *,
    checkpoint: TrialCheckpoint | None,
) -> Evaluation:
    """Train to the end of the budget, or until the pruner stops the trial.

    Evaluations from a checkpoint are reported, stored and judged like all others. So the trial's
    curve is complete, and so are a pruner's records of the trial. The user attribute `RESUMED_KEY`
    holds the number of these evaluations, so that their cost is not counted twice.

    ``recording`` keeps the curve and, unless the training diverges, what it saw of each example.
    Without a ``checkpoint`` nothing is saved. Returns the last evaluation.

    Raises:
        optuna.TrialPruned: The study's pruner stops the trial, or it continues a complete one
            whose checkpoint cannot be used.
        TrainingDiverged: A loss is no longer finite.
    """
    if assignment.budgets > 1 and not training.resumed:
        trial.set_user_attr(REASON_KEY, NO_CHECKPOINT)
        raise optuna.TrialPruned(NO_CHECKPOINT)
    _begin(trial, training, recording)
    earlier = iter(training.resumed)
    with contextlib.closing(TrialRecord(trial, recording.curves)) as record:
        while True:
            evaluation = next(earlier, None) or _next_of(training, record)
            record.add(evaluation)
            ended = evaluation.index == training.evaluations
            pruned = assignment.may_prune and not ended and record.should_prune()
            stops = pruned or ended
            # Nothing is saved at an evaluation from a checkpoint. A trial that pauses there
            # continues from the old file, whose visits must not count twice.
            from_file = evaluation.index <= len(training.resumed)
            continues_from_old_file = from_file and isinstance(trial.study.pruner, PromotionPruner)
            if stops and not continues_from_old_file:
                hand_over_sums(trial, training.tally, recording.example_writer)
            if checkpoint is not None and training.has_state:
                checkpoint.save_if_due(record, training.state_dict, stops=stops, pruned=pruned)
            if pruned:
                raise optuna.TrialPruned
            if ended:
                return evaluation


def _begin(trial: optuna.trial.Trial, training: Training, recording: Recording) -> None:
    if (on_progress := recording.on_progress) is not None:
        number = trial.number
        training.on_progress = lambda share: on_progress({number: share})
    if training.resumed:
        # Written before the curve: a worker that dies in between has no curve and no cost.
        trial.set_user_attr(RESUMED_KEY, len(training.resumed))


def _next_of(training: Training, record: TrialRecord) -> Evaluation:
    try:
        with interruptible():
            return next(training)
    except TrainingDiverged as error:
        record.diverged(error)
        raise
    finally:
        record.evaluation_seconds = training.evaluation_seconds


def hand_over_sums(
    trial: optuna.trial.Trial,
    tally: ExampleTally | None,
    writer: ExampleWriter | None,
    *,
    slot: int = 0,
) -> None:
    """Pass the sums of a trial's visits to the writer, and set its slot of the tally to 0."""
    if writer is not None and tally is not None:
        writer.offer(id_of(trial), tally.take(slot))
        # A continuation must not add these visits again.
        tally.begin(slot)
