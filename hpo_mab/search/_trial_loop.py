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
from hpo_mab._plan import Attempt, Next, slot_of
from hpo_mab.search._claim import claim, raise_if_failing
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._observer import NOBODY, Observer
from hpo_mab.storage import Storage
from hpo_mab.storage._examples import ExampleWriter
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._optuna import id_of, storage_of, tell
from hpo_mab.storage._process import release
from hpo_mab.storage._runs import deletion_is_an_error
from hpo_mab.training._device import release_memory

SECONDS_BETWEEN_POLLS = 1.0
_STORAGE_FAILURES_IN_A_ROW = 3
#: Seconds to wait for a database that does not answer.
_DATABASE_SECONDS = 300.0


class End(NamedTuple):
    """How a trial has ended."""

    trial: optuna.trial.Trial
    state: TrialState
    value: float | None = None


class _ObserverError(BaseException):
    """An error of an observer: it ends the run, and is not one of the trial that trains."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _guarded(observer: Observer) -> Callable[[Mapping[int, float]], None]:
    """The observer's ``running``, whose errors are raised as `_ObserverError`."""

    def call(shares: Mapping[int, float]) -> None:
        try:
            observer.running(shares)
        except STORAGE_ERRORS:
            raise
        except Exception as error:
            raise _ObserverError(error) from None

    return call


def _example_writer(
    study: optuna.Study, storage: Storage, objective: TrainingObjective
) -> ExampleWriter:
    labels = objective.workload.labels
    return ExampleWriter(
        storage.examples,
        id_of(study),
        total=len(labels),
        labels=labels_digest(labels.numpy()),
        lock=functools.partial(storage.lock, study.study_name),
    )


class TrialLoop:
    """Runs trials of a study, alone or together with other workers.

    The study has the sampler and pruner of its definition. The objective's checkpoints are removed
    when they are no longer needed. `hpo_mab.search._stack_loop.StackLoop` overrides
    ``_claim_and_train``, ``_retry_with_fewer_slots``, ``_in_slots`` and ``_abandon``.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Storage,
        objective: TrainingObjective,
        *,
        examples: bool = False,
        observer: Observer = NOBODY,
    ) -> None:
        self._study = study
        self._storage = storage
        self._objective = objective
        self._observer = observer
        #: Trials claimed here that have not ended.
        self._claimed: list[optuna.trial.Trial] = []
        self._storage_failures = 0
        #: Complete trials whose checkpoint could not be used here.
        self._unusable: set[int] = set()
        self._recording = dataclasses.replace(
            objective.recording,
            example_writer=_example_writer(study, storage, objective) if examples else None,
            on_progress=_guarded(observer),
            in_loop=True,
            collect_writes=storage.optuna.collect_writes,
        )

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
        name = self._study.study_name
        with deletion_is_an_error(self._storage, name), deferred_interrupts() as was_pressed:
            try:
                while self._work_or_wait():
                    # Before another trial begins.
                    raise_if_interrupted()
            except KeyboardInterrupt:
                # Without a database the trial stays open. The next worker closes it as lost.
                with contextlib.suppress(StorageError, *STORAGE_ERRORS):
                    self._abandon()
                return True
            except _ObserverError as failed:
                # The observer may raise again.
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
                self._release(*self._claimed)
                if self._recording.example_writer is not None:
                    with contextlib.suppress(KeyError, StorageError, *STORAGE_ERRORS):
                        self._recording.example_writer.flush()
                self._storage.optuna.remove_session()
        return was_pressed()

    def _work_or_wait(self) -> bool:
        """Train a trial or a stack's round, or wait; returns False if the study is done."""
        try:
            stop = self._claim_and_train()
            if stop is Next.DONE:
                self._remove_checkpoints()
                return False
            if stop is Next.WAIT:
                with interruptible():
                    time.sleep(SECONDS_BETWEEN_POLLS)
            self._storage_failures = 0
        except STORAGE_ERRORS as error:
            self._wait_for_database(error)
        return True

    def _claim_and_train(self) -> Next | None:
        """Train the study's next trial; returns `Next.DONE` or `Next.WAIT` if there is none."""
        stop = self._claim(1)
        if stop is None:
            self._train_one(self._claimed[-1])
        return stop

    def _claim(self, count: int) -> Next | None:
        """Claim trials, see `hpo_mab.search._claim.claim`, and return what it returns."""
        return claim(
            self._study,
            self._storage,
            self._claimed,
            count=count,
            queue_twins=functools.partial(
                self._objective.samplers.queue_twins, writer=self._recording.example_writer
            ),
            is_saved=self._is_saved,
        )

    def _train_one(self, trial: optuna.trial.Trial) -> TrialState:
        """Train a trial and store its end, which is returned."""
        value, state, out_of_memory = None, TrialState.FAIL, False
        try:
            value = self._objective.train(trial, self._recording)
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
            if self._retry_with_fewer_slots(trial):
                return state
        self._finish(End(trial, state, value))
        if state == TrialState.FAIL:
            raise_if_failing(self._study)
        return state

    def _retry_with_fewer_slots(self, trial: optuna.trial.Trial) -> bool:
        """Free memory after an out-of-memory error; returns whether the trial is tried again."""
        return False

    def _finish(self, *ends: End) -> None:
        """Store how trials have ended, with one lock."""
        # With the lock, as another worker may be closing a trial as lost.
        with self._storage.lock(self._study.study_name), self._storage.optuna.collect_writes():
            ended = self._tell(ends)
        self._release(*(end.trial for end in ends))
        writer = self._recording.example_writer
        for ended_trial in ended:
            attempt = Attempt.of(ended_trial)
            if attempt.lacked_checkpoint:
                self._unusable.add(ended_trial.user_attrs[PROMOTES_KEY])
            if writer is not None:
                writer.take_or_drop(id_of(ended_trial), take=attempt.finished)
        if writer is not None:
            if self._objective.waits_for_record(self._study):
                writer.flush()
            writer.flush_if_due()
        self._remove_checkpoints()
        for trial in ended:
            self._observer.ended(self._study, trial)

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
        checkpoints = self._recording.checkpoints
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
        checkpoints = self._recording.checkpoints
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
            # Together: the observer may raise, and all must have ended before.
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
