"""Running a study definition against a database: begin, continue, score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import optuna

from hpo_mab._attributes import TEST_KEY
from hpo_mab._environment import environment
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._pilot import Choice, stored_choice
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._recorded import train_recorded
from hpo_mab.search._spec import StudySpec
from hpo_mab.search._stack_loop import run_trials
from hpo_mab.search._study import default_name, fresh_name, make_study
from hpo_mab.search._trial_loop import TrialCallback
from hpo_mab.storage import Definition, Storage, StudyRun, TrialRun, read_run
from hpo_mab.training import Budget

#: Runs a study's trials until its target is reached; returns whether Ctrl-C ended it early.
Launch = Callable[[optuna.Study, TrialCallback | None], bool]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """Where a study stands after a run.

    Attributes:
        run: The study with all its trials.
        interrupted: Whether Ctrl-C ended it early.
        test_accuracy: Accuracy on the test set of the best trial's network, trained again as in
            its trial; None where it was not asked for, there is no complete trial or the run was
            interrupted.
        choice: What ``kind = "auto"`` chose and why, once its pilot is done.
        loop_reasons: Why trials on a CUDA device were trained without a CUDA graph, or alone.
    """

    run: StudyRun
    interrupted: bool
    test_accuracy: float | None
    choice: Choice | None = None
    loop_reasons: tuple[str, ...] = ()


class StudyRunner:
    """Runs a study definition, or continues it, in a database.

    Args:
        spec: The definition.
        storage: Where the study lives.
        objective: The definition's objective; None makes it, loading the data. It writes its
            curves to ``storage``, and its checkpoints beside it, from now on.
        arm: The study's arm in a comparison; None takes the sampler's kind.
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
        self.arm = arm or spec.sampler.kind
        self.objective = objective or make_objective(spec, load_splits(spec))
        self.objective.store_in(storage, checkpoint=spec.training.checkpoint)

    def name(self, name: str | None = None, *, fresh: bool = False) -> str:
        """The study's name: as given, or from definition, arm and seed.

        Args:
            name: A name of the user's choice.
            fresh: Take the first name ``name.2``, ``name.3``, ... that no study has.
        """
        chosen = name or default_name(self.spec, self.arm)
        return fresh_name(self.storage, chosen) if fresh else chosen

    def run(
        self,
        name: str | None = None,
        *,
        on_trial: TrialCallback | None = None,
        score: bool = True,
        launch: Launch | None = None,
    ) -> RunOutcome:
        """Run trials until the study has what the definition asks for.

        Args:
            name: The study's name; None takes the default.
            on_trial: Called with study and trial after each trial.
            score: Whether to score the best trial on the test set.
            launch: Has the trials run elsewhere, see `hpo_mab.workers`; None runs them here.

        Raises:
            StorageError: A study of that name is defined otherwise, or the database fails.
            StudyFailedError: Three trials in a row failed.
        """
        study = make_study(self.storage, self.name(name), self.spec, self._definition())
        interrupted = (launch or self._run_here)(study, on_trial)
        run = read_run(self.storage, study.study_name)
        accuracy = None
        if score and run.best is not None and not interrupted:
            accuracy = self._test_score(study, run.best)
        return RunOutcome(
            run=run,
            interrupted=interrupted,
            test_accuracy=accuracy,
            choice=stored_choice(study) if self.objective.auto else None,
            loop_reasons=tuple(self.objective.loop_reasons),
        )

    def _run_here(self, study: optuna.Study, on_trial: TrialCallback | None) -> bool:
        return run_trials(
            study,
            self.storage,
            self.objective,
            slots=self.spec.training.slots,
            trials=self.spec.budget.trials,
            on_trial=on_trial,
        )

    def train_again(
        self,
        trial: TrialRun,
        *,
        seed: int | None = None,
        sampler: str | None = None,
        final: Budget | None = None,
    ) -> float:
        """Train a trial's configuration to the end of a budget and score it on the test set.

        Args:
            trial: Whose parameters to use.
            seed: Seed of the training; None takes the trial's own.
            sampler: Batch sampler with its default knobs; None takes the trial's own.
            final: Budget; None takes a trial's.

        Returns:
            Test accuracy, in [0, 1].
        """
        recorded = train_recorded(self.objective, trial, seed=seed, sampler=sampler, final=final)
        with recorded as training:
            for _ in training.evaluations:
                pass
            return training.test_accuracy()

    def _test_score(self, study: optuna.Study, best: TrialRun) -> float:
        """The best trial's test accuracy, kept with the study: the test set is asked once."""
        known = study.user_attrs.get(TEST_KEY, {})
        if known.get("trial") == best.number:
            return float(known["accuracy"])
        accuracy = self.train_again(best)
        study.set_user_attr(TEST_KEY, {"trial": best.number, "accuracy": accuracy})
        return accuracy

    def _definition(self) -> Definition:
        batch_size = self.spec.training.batch_size
        workload = self.objective.workload
        # A searched batch size rounds each trial's budget by less than a batch.
        fixed = batch_size if isinstance(batch_size, int) else 1
        return Definition(
            arm=self.arm,
            seed=self.spec.seed,
            trial_examples=workload.trial_examples(fixed),
            epoch_examples=workload.num_examples,
            spec=self.spec.model_dump(mode="json"),
            environment={**environment(), "cpu_threads": self.spec.training.threads},
            data=self.objective.data,
        )
