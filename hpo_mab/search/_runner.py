"""Running a study definition against a database: begin, continue, score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import optuna
from optuna.trial import FrozenTrial

from hpo_mab._environment import environment
from hpo_mab.search._objective import TrainingObjective, trial_seed
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._spec import StudySpec
from hpo_mab.search._stopping import StopWhenDone
from hpo_mab.search._study import default_name, fresh_name, make_study, requeue_interrupted
from hpo_mab.search._total import TotalBudget
from hpo_mab.storage import Definition, Storage, StudyRun, TrialRun, read_run
from hpo_mab.training import Budget

TrialCallback = Callable[[optuna.Study, FrozenTrial], None]

_TEST_KEY = "hpo_mab:test"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """Where a study stands after a run.

    Attributes:
        run: The study with all its trials.
        interrupted: Whether Ctrl-C ended it early.
        test_accuracy: Accuracy on the test set of the best trial's network, trained again as in
            its trial; None where it was not asked for, there is no complete trial or the run was
            interrupted.
    """

    run: StudyRun
    interrupted: bool
    test_accuracy: float | None


class StudyRunner:
    """Runs a study definition, or continues it, in a database.

    Args:
        spec: The definition.
        storage: Where the study lives.
        objective: The definition's objective; None makes it, loading the data. It writes its
            curves to ``storage`` from now on.
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
        self.objective.curves = storage.curves

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
    ) -> RunOutcome:
        """Run trials until the study has what the definition asks for.

        Args:
            name: The study's name; None takes the default.
            on_trial: Called with study and trial after each trial.
            score: Whether to score the best trial on the test set.

        Raises:
            StorageError: A study of that name is defined otherwise.
            StudyFailedError: Three trials in a row failed.
        """
        definition = self._definition()
        study = make_study(self.storage, self.name(name), self.spec, definition)
        stop = StopWhenDone(
            trials=self.spec.budget.trials,
            total=None
            if self.spec.budget.total is None
            else TotalBudget.parse(self.spec.budget.total),
            epoch_examples=definition.epoch_examples,
        )
        interrupted = False
        if not stop.is_done(study):
            requeue_interrupted(study)
            try:
                study.optimize(
                    self.objective,
                    catch=(Exception,),
                    callbacks=[*([on_trial] if on_trial else []), stop],
                )
            except KeyboardInterrupt:
                interrupted = True
        run = read_run(self.storage, study.study_name)
        accuracy = None
        if score and run.best is not None and not interrupted:
            accuracy = self._test_score(study, run.best)
        return RunOutcome(run=run, interrupted=interrupted, test_accuracy=accuracy)

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
        configuration = self.objective.space.at(trial.params)
        if sampler is not None:
            configuration = configuration.with_sampler(sampler)
        if seed is None:
            seed = trial_seed(self.spec.seed, trial.slot)
        workload = self.objective.workload
        with workload.training(configuration, seed=seed, final=final) as training:
            for _ in training.evaluations:
                pass
            return training.test_accuracy()

    def _test_score(self, study: optuna.Study, best: TrialRun) -> float:
        """The best trial's test accuracy, kept with the study: the test set is asked once."""
        known = study.user_attrs.get(_TEST_KEY, {})
        if known.get("trial") == best.number:
            return float(known["accuracy"])
        accuracy = self.train_again(best)
        study.set_user_attr(_TEST_KEY, {"trial": best.number, "accuracy": accuracy})
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
            environment=environment(workload.device),
        )
