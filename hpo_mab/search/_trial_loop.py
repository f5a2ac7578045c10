"""A worker: it claims trials, trains them and stores their ends, until the study is done."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import INTERRUPTED_KEY, PROMOTES_KEY, STACK_SLOTS_KEY
from hpo_mab._errors import StorageError, memory_reason
from hpo_mab._examples import labels_digest
from hpo_mab._interrupts import deferred_interrupts, interruptible, raise_if_interrupted
from hpo_mab._plan import Attempt, Next, budgets_of, slot_of
from hpo_mab.search._claim import claim, raise_if_failing
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.storage import STORAGE_ERRORS, Storage, StoredDefinition
from hpo_mab.storage._examples import ExampleWriter
from hpo_mab.storage._optuna import id_of, storage_of, tell
from hpo_mab.storage._process import release
from hpo_mab.storage._runs import deletion_is_an_error
from hpo_mab.training._device import release_memory

#: Called with study and trial after each trial. During trials its method ``running``, if it has
#: one, is called with the share of its budget that each running trial has spent, by number.
#: ``running_again`` is called likewise while the best trial is trained again to be tested.
OnTrial = Callable[[optuna.Study, FrozenTrial], None]
_OnProgress = Callable[[Mapping[int, float]], None]

SECONDS_BETWEEN_POLLS = 1.0
_STORAGE_FAILURES_IN_A_ROW = 3
#: Seconds to wait for a database that does not answer.
_DATABASE_SECONDS = 300.0


class FinishedTrials:
    """Passes every trial that finishes from now on to the callback once, if there is one."""

    def __init__(self, study: optuna.Study, on_trial: OnTrial | None) -> None:
        self._study = study
        self._on_trial = on_trial
        self.on_progress = getattr(on_trial, "running", None)
        self._known = {t.number for t in self._trials() if t.state.is_finished()}
        definition = StoredDefinition.load(study)
        self._evaluations = definition.settings.evaluations_of(definition.trial_examples) or 1

    def report(self, trial: FrozenTrial) -> None:
        """Pass a trial that has finished to the callback."""
        self._known.add(trial.number)
        if self._on_trial is not None:
            self._on_trial(self._study, trial)

    def report_new(self) -> list[FrozenTrial]:
        """Pass the trials finished since the last call to the callback; returns them."""
        trials = self._trials()
        new = [t for t in trials if t.state.is_finished() and t.number not in self._known]
        for trial in new:
            self.report(trial)
        # Trials of other processes show progress by their last report only.
        if self.on_progress is not None and not new:
            self.on_progress(
                {
                    t.number: t.last_step / (self._evaluations * budgets_of(t.user_attrs))
                    for t in trials
                    if not t.state.is_finished() and t.last_step is not None
                }
            )
        return new

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


class End(NamedTuple):
    """How a trial has ended."""

    trial: optuna.trial.Trial
    state: TrialState
    value: float | None = None


class _CallbackError(BaseException):
    """An error of a callback: it ends the run, and is not one of the trial that trains."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _guarded(callback: _OnProgress | None) -> _OnProgress | None:
    """The callback, whose errors are raised as `_CallbackError`."""
    if callback is None:
        return None

    def call(shares: Mapping[int, float]) -> None:
        try:
            callback(shares)
        except STORAGE_ERRORS:
            raise
        except Exception as error:
            raise _CallbackError(error) from None

    return call


class TrialLoop:
    """Runs trials of a study, alone or together with other workers.

    The study has the sampler and pruner of its definition. The objective's checkpoints are removed
    when they are no longer needed.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Storage,
        objective: TrainingObjective,
        *,
        examples: bool = False,
        on_trial: OnTrial | None = None,
    ) -> None:
        self._study = study
        self._storage = storage
        self._objective = objective
        self._on_trial = on_trial
        #: Trials claimed here that have not ended.
        self._claimed: list[optuna.trial.Trial] = []
        self._storage_failures = 0
        #: Complete trials whose checkpoint could not be used here.
        self._unusable: set[int] = set()
        #: None records nothing of examples.
        self._example_writer: ExampleWriter | None = None
        if examples:
            labels = objective.workload.labels
            self._example_writer = ExampleWriter(
                storage.examples,
                id_of(study),
                total=len(labels),
                labels=labels_digest(labels.numpy()),
                lock=functools.partial(storage.lock, study.study_name),
            )
            # The objective may have trained another study before.
            objective.workload.example_record = storage.examples.frozen(id_of(study))

    def run(self) -> bool:
        """Run trials until the study is done.

        Ctrl-C ends it in the middle of training, else after the current call to the database, which
        may wait for a lock. A second Ctrl-C is raised at once.

        Returns:
            Whether Ctrl-C was pressed.

        Raises:
            StorageError: The database does not answer for five minutes, or fails several times in
                a row.
            StudyFailedError: Three trials in a row failed.
        """
        before = self._objective.recording
        self._objective.recording = dataclasses.replace(
            before,
            example_writer=self._example_writer,
            on_progress=_guarded(getattr(self._on_trial, "running", None)),
            in_loop=True,
            collect_writes=self._storage.optuna.collect_writes,
        )
        name = self._study.study_name
        with deletion_is_an_error(self._storage, name), deferred_interrupts() as was_pressed:
            try:
                while self._step():
                    # Before another trial begins.
                    raise_if_interrupted()
            except KeyboardInterrupt:
                # Without a database the trial stays open. The next worker closes it as lost.
                with contextlib.suppress(StorageError, *STORAGE_ERRORS):
                    self._abandon()
                return True
            except _CallbackError as failed:
                # The callback may raise again.
                with contextlib.suppress(Exception):
                    self._abandon()
                raise failed.error from None
            except Exception:
                if self._claimed:
                    # Close the other trials of a stack, so that they are tried again. If closing
                    # fails, the first error must still be raised.
                    with contextlib.suppress(Exception):
                        self._abandon()
                raise
            finally:
                self._objective.recording = before
                self._release(*self._claimed)
                if self._example_writer is not None:
                    with contextlib.suppress(KeyError, StorageError, *STORAGE_ERRORS):
                        self._example_writer.flush()
                self._storage.optuna.remove_session()
        return was_pressed()

    def _step(self) -> bool:
        """Train a trial or a stack's round, or wait; returns False if the study is done."""
        try:
            following = self._train()
            if following is Next.DONE:
                self._remove_checkpoints()
                return False
            if following is Next.WAIT:
                with interruptible():
                    time.sleep(SECONDS_BETWEEN_POLLS)
            self._storage_failures = 0
        except STORAGE_ERRORS as error:
            self._wait_for_database(error)
        return True

    def _train(self) -> Next | None:
        """Train one trial; returns why there is none."""
        following = self._claim(1)
        if following is None:
            self._run(self._claimed[-1])
        return following

    def _claim(self, count: int) -> Next | None:
        """Claim trials, see `hpo_mab.search._claim.claim`; returns why the study has no more."""
        return claim(
            self._study,
            self._storage,
            self._claimed,
            count=count,
            queue_twins=self._objective.queue_twins,
            is_saved=self._is_saved,
        )

    def _run(self, trial: optuna.trial.Trial) -> TrialState:
        """Train a trial and store its end, which is returned."""
        value, state, out_of_memory = None, TrialState.FAIL, False
        try:
            value = self._objective(trial)
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except STORAGE_ERRORS:
            raise
        except Exception as error:
            # The objective has stored the reason with the trial.
            out_of_memory = memory_reason(error) is not None
        if out_of_memory:
            # Only now: the traceback of the error held references to the trial's tensors.
            release_memory()
            if self._make_room(trial):
                return state
        self._finish(End(trial, state, value))
        if state == TrialState.FAIL:
            raise_if_failing(self._study)
        return state

    def _make_room(self, trial: optuna.trial.Trial) -> bool:
        """Free memory after an out-of-memory error; returns whether the trial is tried again."""
        return False

    def _finish(self, *ends: End) -> None:
        """Store how trials have ended, with one lock."""
        # With the lock, as another worker may be closing a trial as lost.
        with self._storage.lock(self._study.study_name), self._storage.optuna.collect_writes():
            ended = self._tell(ends)
        self._release(*(end.trial for end in ends))
        for frozen in ended:
            attempt = Attempt.of(frozen)
            if attempt.lacked_checkpoint:
                self._unusable.add(frozen.user_attrs[PROMOTES_KEY])
            if self._example_writer is not None:
                self._example_writer.settle(id_of(frozen), counts=attempt.finished)
        if self._example_writer is not None:
            if self._objective.waits_for_record(self._study):
                self._example_writer.flush()
            self._example_writer.flush_if_due()
        self._remove_checkpoints()
        if self._on_trial is not None:
            for trial in ended:
                self._on_trial(self._study, trial)

    def _tell(self, ends: Sequence[End]) -> list[FrozenTrial]:
        """Store how trials have ended; returns the trials."""
        ids = [id_of(end.trial) for end in ends]
        # One query then reads all of them before the first ends, and one after the last has ended.
        self._storage.optuna.forget(*ids)
        for end in ends:
            tell(self._study, end.trial, end.value, end.state)
        return [self._storage.optuna.get_trial(trial_id) for trial_id in ids]

    @property
    def _in_slots(self) -> bool:
        """Whether trials are trained in slots of a stack."""
        return False

    def _is_saved(self, trial: FrozenTrial) -> bool:
        checkpoints = self._objective.recording.checkpoints
        if checkpoints is None or not checkpoints.seconds or trial.number in self._unusable:
            return False
        try:
            found = checkpoints.path(self._study, (slot_of(self._study, trial), "")).exists()
        except OSError:  # The folder may be on another machine that does not answer now.
            return False
        if found and STACK_SLOTS_KEY in trial.user_attrs and not self._in_slots:
            self._objective.note(
                "complete trials that were trained in slots continue only in slots"
            )
            return False
        return found

    def _remove_checkpoints(self) -> None:
        checkpoints = self._objective.recording.checkpoints
        if checkpoints is not None:
            checkpoints.sweep(self._study)

    def _abandon(self) -> None:
        """End the claimed trials as interrupted, so that a worker tries them again."""
        ends = []
        for trial in list(self._claimed):
            frozen = storage_of(self._study).get_trial(id_of(trial))
            if frozen.state.is_finished():
                self._release(trial)
                continue
            # Another machine may close it as lost just now.
            with contextlib.suppress(UpdateFinishedTrialError):
                trial.set_user_attr(INTERRUPTED_KEY, True)
            self._storage.optuna.forget_rungs(id_of(trial))
            ends.append(End(trial, TrialState.FAIL))
        if ends:
            # Together: the callback may raise, and all must have ended before.
            self._finish(*ends)

    def _release(self, *trials: optuna.trial.Trial) -> None:
        for trial in trials:
            release(self._storage.optuna, id_of(trial))
        self._claimed = [trial for trial in self._claimed if trial not in trials]

    def _wait_for_database(self, error: BaseException) -> None:
        """Wait until the database answers again; the claimed trials are tried again."""
        while True:
            # SQLAlchemy may have replaced the KeyboardInterrupt of a Ctrl-C with this error.
            raise_if_interrupted()
            self._storage_failures += 1
            if self._storage_failures > _STORAGE_FAILURES_IN_A_ROW:
                raise self._storage.error(error) from None
            if not self._storage.wait_until_back(seconds=_DATABASE_SECONDS):
                raise self._storage.error(error) from None
            try:
                return self._abandon()
            except STORAGE_ERRORS as again:
                error = again
