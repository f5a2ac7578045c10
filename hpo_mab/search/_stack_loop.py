"""A worker that trains many trials at a time, as networks of stacks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence, Set

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from hpo_mab._attributes import PROMOTES_KEY, REASON_KEY, RESUMED_KEY, STACK_SLOTS_KEY
from hpo_mab._errors import failure_reason, memory_reason
from hpo_mab._interrupts import interruptible
from hpo_mab._plan import Attempt, Next, Plan, derive_seed
from hpo_mab.search._checkpoint import TrialCheckpoint
from hpo_mab.search._claim import raise_if_failing
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._observer import NOBODY, Observer
from hpo_mab.search._space import Assignment
from hpo_mab.search._stacks import Stacks, why_alone
from hpo_mab.search._trial_loop import End, TrialLoop
from hpo_mab.search._trial_record import NO_CHECKPOINT, TrialRecord, hand_over_sums, store_end
from hpo_mab.storage import Storage
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._optuna import id_of, storage_of
from hpo_mab.training import Evaluation, TrainingDiverged
from hpo_mab.training._device import cpu_threads, release_memory, seed_torch
from hpo_mab.training._stack import StackSlot


@dataclasses.dataclass(slots=True)
class _Running:
    """A trial in a slot of a stack; it is not saved if ``checkpoint`` is None."""

    trial: optuna.trial.Trial
    assignment: Assignment
    record: TrialRecord
    where: StackSlot
    checkpoint: TrialCheckpoint | None

    def close(self) -> None:
        """Close its record."""
        # Another machine may have closed the trial as lost.
        with contextlib.suppress(UpdateFinishedTrialError):
            self.record.close()


_Result = Evaluation | TrainingDiverged


class StackLoop(TrialLoop):
    """Runs trials of a study, many at a time, as networks of a stack.

    A trial that ends leaves its slot to the next one at once. Trials that no stack can train
    (`why_alone`) are trained alone, while the others wait. Out of memory halves the slots. With one
    slot, and if the network cannot be stacked, all trials are trained alone.

    The study has the sampler and pruner of its definition; ``slots`` is at least 2.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Storage,
        objective: TrainingObjective,
        *,
        slots: int,
        examples: bool = False,
        observer: Observer = NOBODY,
    ) -> None:
        super().__init__(study, storage, objective, examples=examples, observer=observer)
        self._stacks = Stacks(
            objective.workload, slots=slots, seed=objective.seed, examples=examples
        )
        self._running: dict[int, _Running] = {}

    def run(self) -> bool:
        """See `TrialLoop.run`; the masks of dropout follow from the study's seed."""
        device = self._objective.workload.device
        threads = cpu_threads(self._objective.workload.loop.threads)
        with threads, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # Dropout draws from torch's generators alone. Those of NumPy and Python are left to
            # search samplers and pruners of a user's own.
            seed_torch(derive_seed(self._objective.seed, "stack"), device)
            return super().run()

    @property
    def _in_slots(self) -> bool:
        return self._stacks.slots > 1

    def _claim_and_train(self) -> Next | None:
        """Fill the slots and train to the next evaluation; returns why no trial runs."""
        if self._stacks.slots == 1:
            # Faster than a stack of one.
            return super()._claim_and_train()
        following = self._fill()
        if self._running:
            self._halve_if_out_of_memory(self._advance)
            return None
        return following

    def _fill(self) -> Next | None:
        """Claim a trial for each free slot; returns why slots stay free, or None."""
        while self._stacks.slots > 1 and (free := self._stacks.slots - len(self._running)) > 0:
            before = len(self._claimed)
            following = self._claim(free)
            new = self._claimed[before:]
            # A trial that runs out of memory gives all claimed ones back.
            with self._storage.optuna.collect_writes():
                reasons = [(one, self._start_in_slot(one)) for one in new if one in self._claimed]
            for trial, why in reasons:
                if why is None or trial not in self._claimed:
                    continue
                if self._train_one(trial) != TrialState.FAIL:
                    self._objective.note(f"trained alone: {why}")
            if following is not None:
                return following
        return None

    def _start_in_slot(self, trial: optuna.trial.Trial) -> str | None:
        """Start a claimed trial in a slot.

        Returns why it must be trained alone instead. None if it runs, has ended, or was given back
        after an out-of-memory error.
        """
        try:
            assignment = self._objective.assign(trial, self._recording)
            why = why_alone(self._objective.workload, assignment.configuration)
            why = why or self._why_continued_alone(trial, assignment) or self._why_suspect(trial)
            if why is not None:
                return why
            checkpoint = self._objective.checkpoint(trial, assignment, self._recording)
            state = None if checkpoint is None else checkpoint.load()
            with interruptible():
                where, points = self._stacks.start(assignment, state)
            record = TrialRecord(trial, self._recording.curves)
            running = _Running(trial, assignment, record, where, checkpoint)
        except STORAGE_ERRORS:
            raise
        except Exception as error:
            failed = error
        else:
            self._running[id_of(trial)] = running
            if assignment.budgets > 1 and not points:
                self._end_without_checkpoint(running)
            else:
                self._begin_record(running, points)
            return None
        # The traceback would keep the stack's networks in memory.
        failed.with_traceback(None)
        release_memory()
        if memory_reason(failed) is None:
            # Perhaps only the stack fails, so the trial is trained alone. If that fails, too, the
            # reason is the trial's own.
            return failure_reason(failed)
        self._halve_slots()
        return None

    def _why_continued_alone(self, trial: optuna.trial.Trial, assignment: Assignment) -> str | None:
        """Why a trial cannot continue a complete one in a slot; None if it can or does not."""
        if assignment.budgets == 1:
            return None
        before = self._study.get_trials(deepcopy=False)[trial.user_attrs[PROMOTES_KEY]]
        alone = STACK_SLOTS_KEY not in before.user_attrs
        return "the trial that it continues was trained alone" if alone else None

    def _why_suspect(self, trial: optuna.trial.Trial) -> str | None:
        """Why a trial that may end its worker is trained alone; None if it need not be.

        A trial that ends its worker loses all trials of its stack. In stacks they would use up
        their retries together.
        """
        suspect = Plan.of(self._study).is_suspect(trial.number)
        return "its worker ended suddenly, at least twice" if suspect else None

    def _end_without_checkpoint(self, running: _Running) -> None:
        running.where.stop()
        with contextlib.suppress(UpdateFinishedTrialError):
            running.trial.set_user_attr(REASON_KEY, NO_CHECKPOINT)
        self._running.pop(id_of(running.trial)).close()
        self._finish(End(running.trial, TrialState.PRUNED))

    def _begin_record(self, running: _Running, points: Sequence[Evaluation]) -> None:
        """Report the evaluations of a checkpoint; the pruner may stop the trial at any of them."""
        with contextlib.suppress(UpdateFinishedTrialError):
            running.trial.set_user_attr(STACK_SLOTS_KEY, self._stacks.slots)
            if points:
                running.trial.set_user_attr(RESUMED_KEY, len(points))
        for point in points:
            if id_of(running.trial) in self._running:
                self._halve_if_out_of_memory(self._store_results, [(running, point)])

    def _advance(self) -> None:
        """Train to the next evaluations, and record these."""
        running_by_slot = {running.where: running for running in self._running.values()}
        try:
            with interruptible():
                results = list(self._stacks.advance())
        except Exception as error:
            if memory_reason(error) is not None:
                raise
            reason = failure_reason(error)
        else:
            # Not in `try`: an error here is not the stack's. The caller handles out of memory.
            self._handle_round([(running_by_slot[where], result) for where, result in results])
            return
        # Outside of the handler, as in `_halve_if_out_of_memory`. Trained alone, each trial has its
        # own reason.
        del running_by_slot
        self._give_up_stacks(reason)

    def _halve_if_out_of_memory(self, step: Callable[..., None], *args: object) -> None:
        """Take a step; an out-of-memory error in it halves the slots, other errors are raised."""
        try:
            step(*args)
            return
        except Exception as error:
            if memory_reason(error) is None:
                raise
        # Outside of the handler: frames of the error and of its causes refer to the networks.
        self._halve_slots()

    def _handle_round(self, results: Sequence[tuple[_Running, _Result]]) -> None:
        for reason in self._stacks.loop_reasons:
            self._objective.note_no_graph(reason)
        self._store_results(results)
        if (on_progress := self._recording.on_progress) is not None:
            on_progress(
                {
                    running.trial.number: running.record.last.index / running.where.evaluations
                    for running in self._running.values()
                    if running.record.last is not None
                }
            )

    def _store_results(self, results: Sequence[tuple[_Running, _Result]]) -> None:
        """Record evaluations; end the trials whose last it was or that the pruner stops."""
        with self._storage.optuna.collect_writes():
            trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            # Another machine may have closed some trials as lost. Most databases ignore writes to
            # these without an error, so they are found by their state.
            open_trials = {id_of(trial) for trial in trials}
            # All of the round, before a pruner compares them.
            for running, result in results:
                stack, slot = running.where
                running.record.evaluation_seconds = stack.evaluation_seconds[slot]
                running.record.idle_seconds = stack.idle_seconds[slot]
                if isinstance(result, Evaluation):
                    with contextlib.suppress(UpdateFinishedTrialError):
                        running.record.add_unwritten(result)
            ends = [end for one in results if (end := self._end_if_over(*one, open_trials))]
            ended = {id_of(end.trial) for end in ends}
            # Before the trials end: a finished trial must have its whole curve.
            TrialRecord.flush_all(
                running.record
                for trial_id, running in self._running.items()
                if trial_id in ended or running.record.is_due
            )
            for end in ends:
                self._running.pop(id_of(end.trial)).close()
        if ends:
            self._finish(*ends)
        if any(end.state == TrialState.FAIL for end in ends):
            raise_if_failing(self._study)
        for running, _ in results:
            checkpoint = running.checkpoint
            still_runs = id_of(running.trial) in self._running
            if checkpoint is not None and still_runs:
                checkpoint.save_if_due(running.record, running.where.state_dict)

    def _end_if_over(self, running: _Running, result: _Result, open_trials: Set[int]) -> End | None:
        """Free the slot of a trial that has ended; returns how it ended, None if it has not."""
        end: End | None = End(running.trial, TrialState.FAIL)
        if id_of(running.trial) in open_trials:
            try:
                end = self._end_of_result(running, result)
            except UpdateFinishedTrialError:
                pass
            except optuna.TrialPruned:
                end = End(running.trial, TrialState.PRUNED)
            except STORAGE_ERRORS:
                raise
            except Exception as error:  # A user's pruner may raise anything.
                if memory_reason(error) is not None:
                    raise
                store_end(running.trial, error)
        if end is not None:
            running.where.stop()
        return end

    def _end_of_result(self, running: _Running, result: _Result) -> End | None:
        """How a trial ends after a result; None if it trains on."""
        trial, where = running.trial, running.where
        if isinstance(result, TrainingDiverged):
            running.record.diverged(result)
            return End(trial, TrialState.PRUNED)
        # A checkpoint may hold all evaluations. The slot is then free before they are reported.
        ended = result.index == where.evaluations
        pruned = not ended and running.assignment.may_prune and running.record.should_prune()
        if not (ended or pruned):
            return None
        hand_over_sums(trial, where.stack.tally, self._recording.example_writer, slot=where.slot)
        if running.checkpoint is not None:
            running.checkpoint.save_if_due(
                running.record, where.state_dict, stops=True, pruned=pruned
            )
        if pruned:
            return End(trial, TrialState.PRUNED)
        self._objective.queue_pilot_twin(trial, running.assignment.plan_slot)
        return End(trial, TrialState.COMPLETE, result.accuracy)

    def _halve_slots(self) -> None:
        """Train half as many at a time after the device ran out of memory."""
        self._abandon()
        before = self._stacks.slots
        self._stacks.slots //= 2
        self._objective.note(
            f"out of memory: {self._stacks.slots} instead of {before} trials at a time"
        )

    def _retry_with_fewer_slots(self, trial: optuna.trial.Trial) -> bool:
        # After out of memory a trial is repeated once, with half the slots: it may be too large
        # even alone. Of the interrupted attempts, only one that itself had no memory has a reason.
        place = Attempt.of(storage_of(self._study).get_trial(id_of(trial))).place
        attempts = [] if place is None else Plan.of(self._study).places[place]
        failed = any(one.interrupted and REASON_KEY in one.attrs for one in attempts)
        if self._stacks.slots == 1 or failed:
            return False
        self._halve_slots()
        return True

    def _give_up_stacks(self, reason: str) -> None:
        """Train one trial at a time from now on: the network cannot be stacked."""
        self._abandon()
        self._stacks.slots = 1
        self._objective.note(f"the network cannot be stacked: {reason}")

    def _abandon(self) -> None:
        self._close_all()
        self._stacks.clear()
        release_memory()
        super()._abandon()

    def _close_all(self) -> None:
        # A method of its own: its variables would keep the stacks in memory.
        with contextlib.ExitStack() as ends:
            # If one raises, the others are closed nevertheless.
            for running in self._running.values():
                ends.callback(running.close)
            self._running.clear()
