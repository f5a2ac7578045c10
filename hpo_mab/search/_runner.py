"""Running a study: a new one, one that is continued, or one that a worker joins by name.

`StudyRunner` scores the best trial. `join_study` works from the stored definition.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import optuna

from hpo_mab._attributes import AUTO, TEST_KEY
from hpo_mab._errors import failure_reason
from hpo_mab._machine import environment
from hpo_mab.pruners._reasons import WeakRung
from hpo_mab.search._choice import Choice, stored_choice
from hpo_mab.search._definition import Slots, StudySpec, TrainingSection
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._observer import Observer, OnTrial, observer_of
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._pruners import PRUNERS
from hpo_mab.search._slots import note_alone, slots_of_process
from hpo_mab.search._stack_loop import StackLoop
from hpo_mab.search._stored import reopen, train_stored_trial
from hpo_mab.search._study import check_study, choose_name, make_study, open_for_training
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.storage import Storage, StudyRun, TrialRun, read_run, study_names
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._runs import deletion_is_an_error
from hpo_mab.training import Budget, TrainingDiverged


class RunHere(Protocol):
    """Runs trials in this process until the study is done; returns whether Ctrl-C ended it early.

    A `Launch` calls it once, with an observer that calls the run's own, and with the number of
    processes that share the study.
    """

    def __call__(self, observer: Observer, /, *, workers: int = 1) -> bool: ...


#: Runs trials in this and other processes, or in others only; returns what `RunHere` does.
Launch = Callable[[optuna.Study, Observer, RunHere], bool]


def run_worker(
    study: optuna.Study,
    storage: Storage,
    objective: TrainingObjective,
    settings: TrainingSection,
    observer: Observer,
    *,
    workers: int = 1,
) -> bool:
    """Run trials of a study until it is done; returns whether Ctrl-C ended it early.

    The study has the sampler and pruner of its definition; ``workers`` processes share it, this one
    included. ``settings.slots`` trials run at the same time; with ``"auto"`` a probe measures
    whether a stack is faster. ``settings.examples`` is whether trials add to the study's record of
    examples.
    """
    count = slots_of_process(study, objective, settings.slots, workers=workers)
    make = TrialLoop if count == 1 else functools.partial(StackLoop, slots=count)
    return make(study, storage, objective, examples=settings.examples, observer=observer).run()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """A study after `StudyRunner.run`.

    Attributes:
        run: The study with all its trials.
        interrupted: Whether Ctrl-C ended it early.
        test_accuracy: Accuracy on the test set of the best trial's network, trained again as in
            its trial; None where it was not requested, there is no complete trial, the run was
            interrupted, or scoring failed (see ``notes``).
        choice: What ``kind = "auto"`` chose and why, once its race is over.
        notes: Why trials were trained without a CUDA graph, one at a time, or not beyond
            their budget, although the definition requests more; why the best trial has no test
            accuracy.
        weak_rung: Where the pruner began to stop trials, if that evaluation is not shown to rank
            them.
    """

    run: StudyRun
    interrupted: bool
    test_accuracy: float | None
    choice: Choice | None = None
    notes: tuple[str, ...] = ()
    weak_rung: WeakRung | None = None


class StudyRunner:
    """Runs a study definition, or continues it, in a database.

    Args:
        spec: The definition.
        storage: The study's database.
        objective: The definition's objective; None makes it, loading the data. It writes its
            curves to ``storage``, and its checkpoints next to it, from now on.
        arm: The study's arm in a comparison; None takes the sampler's kind.

    Examples:
        >>> from hpo_mab.search import StudyRunner, make_spec
        >>> spec = make_spec(
        ...     {
        ...         "name": "small",
        ...         "budget": {"steps": 4, "trials": 1},
        ...         "model": {"name": "mlp"},
        ...         "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 0.1}},
        ...     }
        ... )
        >>> from hpo_mab.storage import Storage
        >>> with Storage("sqlite:///studies.db") as storage:
        ...     outcome = StudyRunner(spec, storage).run(score=False)
        >>> len(outcome.run.trials)
        1
    """

    def __init__(
        self,
        spec: StudySpec,
        storage: Storage,
        *,
        objective: TrainingObjective | None = None,
        arm: str | None = None,
    ) -> None:
        self.spec = spec
        self.storage = storage
        self.arm = spec.sampler.kind if arm is None else arm
        self.objective = objective or make_objective(spec, load_splits(spec))
        self.objective.store_in(storage, checkpoint=spec.training.checkpoint)

    def study_name(self, name: str | None = None) -> str:
        """The study's name, see `choose_name`."""
        return choose_name(self.spec, arm=self.arm, name=name)

    def check(self, name: str | None = None) -> None:
        """Refuse what `run` would refuse before its first trial, except a pruner's reference.

        Args:
            name: The study's name; None takes the default.

        Raises:
            ArgumentError: The pruner's evidence cannot be used; or a new study's trials have fewer
                steps than evaluations, see `Workload.check_evaluations`.
            StorageError: A study of that name is defined otherwise, or has other data.
        """
        study_name = self.study_name(name)
        check_study(self.storage, study_name, self.spec, self._definition())
        if study_name not in study_names(self.storage):
            auto = self.spec.sampler.kind == AUTO
            counts_on_all = auto or PRUNERS.takes(self.spec.pruner.kind, "max_resource")
            self.objective.workload.check_evaluations(
                self.objective.space.batch_sizes,
                needs_all=counts_on_all,
                name="budget.evaluations",
            )

    def run(
        self,
        name: str | None = None,
        *,
        on_trial: OnTrial | None = None,
        score: bool = True,
        launch: Launch | None = None,
        keep_target: bool = False,
    ) -> RunOutcome:
        """Run trials until the study has reached its definition's target.

        Args:
            name: The study's name; None takes the default.
            on_trial: A function that is called with study and trial after each trial, or an
                `Observer`.
            score: Whether to score the best trial on the test set.
            launch: Shares the trials with other processes, see `hpo_mab.workers`; None does not.
            keep_target: Whether a stored study keeps a target that is higher than the definition's.

        Raises:
            ArgumentError: See `check`; or a study of that name minimizes, or the pruner's reference
                cannot be paired with the study.
            StorageError: See `check`; or the database fails.
            StudyFailedError: Three trials in a row failed.
            UnknownNameError: The pruner's reference is no study.
        """
        observer = observer_of(on_trial)
        # Again, now with the data.
        self.check(name)
        study = make_study(
            self.storage,
            self.study_name(name),
            self.spec,
            self._definition(),
            data_digest=self.objective.source,
            in_comparison=keep_target,
        )
        with deletion_is_an_error(self.storage, study.study_name):
            return self._run_and_score(study, observer, launch, score=score)

    def _run_and_score(
        self,
        study: optuna.Study,
        observer: Observer,
        launch: Launch | None,
        *,
        score: bool,
    ) -> RunOutcome:
        self.objective.begin_study(study, self.storage)
        # Also where no trial is run here.
        note_alone(self.objective, slots=self.spec.training.slots)
        self._note_no_continuation()
        run_here = functools.partial(
            run_worker, study, self.storage, self.objective, self.spec.training
        )
        interrupted = launch(study, observer, run_here) if launch else run_here(observer)
        # Other processes may have kept it.
        self.objective.read_record(study, self.storage)
        run = read_run(self.storage, study.study_name)
        accuracy = None
        if score and run.best is not None and run.best.was_run and not interrupted:
            try:
                accuracy = self._test_score(study, run.best, observer)
            except KeyboardInterrupt:
                # The trials have finished: their summary is still printed.
                interrupted = True
            except STORAGE_ERRORS:
                raise
            except Exception as error:  # A user's test set or network may raise anything.
                reason = failure_reason(error)
                self.objective.note(f"the best trial has no test accuracy: {reason}")
        return RunOutcome(
            run=run,
            interrupted=interrupted,
            test_accuracy=accuracy,
            choice=stored_choice(study),
            notes=tuple(self.objective.notes),
            weak_rung=WeakRung.find(
                study.pruner,
                study.get_trials(deepcopy=False),
                full=self.objective.workload.loop.evaluations,
            ),
        )

    def _note_no_continuation(self) -> None:
        """Note why no trial continues beyond its budget, though the definition suggests that."""
        spec = self.spec
        suggested = spec.training.schedule == "constant" and spec.budget.total is not None
        if suggested and spec.pruner.kind == "promotion" and spec.sampler.kind == AUTO:
            self.objective.note(
                f"no trial continues beyond its budget: sampler '{AUTO}' compares them there; with "
                "--sampler uniform the best continue"
            )

    def train_again(
        self,
        trial: TrialRun,
        *,
        seed: int | None = None,
        sampler: str | None = None,
        final: Budget | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> float:
        """Train a trial's configuration to the end of a budget and score it on the test set.

        Args:
            trial: Whose parameters to use.
            seed: Seed of the training; None takes the trial's own.
            sampler: Batch sampler with its default knobs; None takes the trial's own.
            final: Budget; None takes a trial's.
            on_progress: Called with the share of the steps that is done.

        Returns:
            Test accuracy, in [0, 1]; 0 if the training diverges.
        """
        again = train_stored_trial(self.objective, trial, seed=seed, sampler=sampler, final=final)
        with again as training:
            training.on_progress = on_progress
            try:
                for _ in training:
                    pass
            except TrainingDiverged:
                return 0.0
            return self.objective.workload.test_accuracy(training)

    def _test_score(self, study: optuna.Study, best: TrialRun, observer: Observer) -> float:
        """The best trial's test accuracy, stored so that the test set is used once."""
        stored = study.user_attrs.get(TEST_KEY, {})
        if stored.get("trial") == best.number:
            return float(stored["accuracy"])
        accuracy = self.train_again(
            best, on_progress=lambda share: observer.testing({best.number: share})
        )
        study.set_user_attr(TEST_KEY, {"trial": best.number, "accuracy": accuracy})
        return accuracy

    def _definition(self) -> StoredDefinition:
        workload = self.objective.workload
        return StoredDefinition(
            arm=self.arm,
            seed=self.spec.seed,
            trial_examples=self.objective.trial_examples,
            epoch_examples=workload.num_examples,
            spec=self._stored_spec(),
            environment={**environment(), "cpu_threads": self.spec.training.threads},
            data=self.objective.data,
        )

    def _stored_spec(self) -> dict[str, Any]:
        """The definition with each ``"auto"`` replaced by its value on the data."""
        if self.spec.budget.early_validation != "auto":
            return self.spec.model_dump(mode="json")
        early = self.objective.workload.loop.early_validation
        budget = {"early_validation": "all" if early is None else early}
        whole = self.spec.model_copy(update={"budget": self.spec.budget.model_copy(update=budget)})
        return whole.model_dump(mode="json")


def join_study(
    storage: Storage,
    name: str,
    *,
    device: str | None = None,
    data_root: str | None = None,
    slots: Slots | None = None,
    workers: int = 1,
    on_trial: OnTrial | None = None,
) -> bool:
    """Run trials of a stored study until it has reached its target.

    Args:
        storage: The database.
        name: Optuna's study name.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.
        slots: Trials that this process trains at the same time; None takes the definition's.
        workers: Processes that share the study, this one included: ``"auto"`` slots are shared.
        on_trial: A function that is called with study and trial after each trial, or an `Observer`.

    Returns:
        Whether Ctrl-C ended it early.

    Raises:
        StorageError: The study was not made by ``hpo-mab``, the data here differ from its own, or
            the database fails.
        UnknownNameError: There is no such study.
        StudyFailedError: Three trials in a row failed.
    """
    observer = observer_of(on_trial)
    spec, objective = reopen(storage, name, device=device, data_root=data_root, slots=slots)
    objective.store_in(storage, checkpoint=spec.training.checkpoint)
    study = open_for_training(storage, name, spec)
    return run_worker(study, storage, objective, spec.training, observer, workers=workers)
