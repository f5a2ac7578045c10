"""Running a study: begun, continued, joined by name, or one trial of it trained again.

`StudyRunner` scores the best trial. `join_study` and `replay` work from the stored definition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import optuna

from hpo_mab._attributes import STACK_KEY, TEST_KEY, environment
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.search._definition import StudySpec, make_spec
from hpo_mab.search._objective import TrainingObjective, train_recorded
from hpo_mab.search._plan import Target
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._standing import Choice, stored_choice
from hpo_mab.search._study import check_study, choose_name, make_study, open_with_parts
from hpo_mab.search._trial_loop import Slots, TrialCallback, run_trials
from hpo_mab.storage import Definition, Storage, StudyRun, TrialRun, open_study, read_run
from hpo_mab.training import Budget, Evaluation, TrainingDiverged

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
        loop_reasons: Why trials were trained without a CUDA graph, or one at a time, where they
            were meant to be otherwise.
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
        """The study's name, see `choose_name`."""
        return choose_name(self.storage, self.spec, arm=self.arm, name=name, fresh=fresh)

    def check(self, name: str | None = None) -> None:
        """Refuse what `run` would refuse before its first trial.

        Raises:
            ArgumentError: The pruner's evidence cannot be read.
            StorageError: A study of that name is defined otherwise, or has other data.
        """
        check_study(self.storage, self.name(name), self.spec, self._definition())

    def run(
        self,
        name: str | None = None,
        *,
        on_trial: TrialCallback | None = None,
        score: bool = True,
        launch: Launch | None = None,
        keep_target: bool = False,
    ) -> RunOutcome:
        """Run trials until the study has what the definition asks for.

        Args:
            name: The study's name; None takes the default.
            on_trial: Called with study and trial after each trial.
            score: Whether to score the best trial on the test set.
            launch: Has the trials run elsewhere, see `hpo_mab.workers`; None runs them here.
            keep_target: Whether a stored study keeps a target that is higher than the definition's.

        Raises:
            StorageError: A study of that name is defined otherwise, or the database fails.
            StudyFailedError: Three trials in a row failed.
        """
        study = make_study(
            self.storage,
            self.name(name),
            self.spec,
            self._definition(),
            keep_target=keep_target,
        )
        # What it began with, whatever "auto" stands for by now.
        self.objective.evaluate_early_on(Definition.load(study).spec["budget"]["early_validation"])
        self.objective.note_alone(self.spec.training.slots)
        interrupted = (launch or self._run_here)(study, on_trial)
        self.objective.workload.known = self.storage.examples.frozen(study._study_id)
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
            examples=self.spec.training.examples,
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
            spec=self._stored_spec(),
            environment={**environment(), "cpu_threads": self.spec.training.threads},
            data=self.objective.data,
        )

    def _stored_spec(self) -> dict[str, Any]:
        """The definition with what ``"auto"`` stands for on its data."""
        spec: dict[str, Any] = self.spec.model_dump(mode="json")
        early = self.objective.workload.loop.early_validation
        spec["budget"]["early_validation"] = "all" if early is None else early
        return spec


def join_study(
    storage: Storage,
    name: str,
    *,
    device: str | None = None,
    data_root: str | None = None,
    slots: Slots | None = None,
    on_trial: TrialCallback | None = None,
) -> bool:
    """Run trials of a stored study until it has reached its target.

    Args:
        storage: The database.
        name: Optuna's study name.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.
        slots: Trials at the same time on a CUDA device; None takes the definition's.
        on_trial: Called with study and trial after each trial.

    Returns:
        Whether Ctrl-C ended it early.

    Raises:
        StorageError: The study was not made by this product, its data are others here, or the
            database fails.
        UnknownNameError: There is no such study.
        StudyFailedError: Three trials in a row failed.
    """
    definition = Definition.load(open_study(storage, name))
    spec = stored_spec(definition, device=device, data_root=data_root, slots=slots)
    objective = stored_objective(definition, spec)
    objective.store_in(storage, checkpoint=spec.training.checkpoint)
    study = open_with_parts(storage, name, spec)
    return run_trials(
        study,
        storage,
        objective,
        slots=spec.training.slots,
        examples=spec.training.examples,
        trials=Target.load(study).trials,
        on_trial=on_trial,
    )


def stored_spec(
    definition: Definition,
    *,
    device: str | None = None,
    data_root: str | None = None,
    slots: Slots | None = None,
) -> StudySpec:
    """The spec a study was made from, with what may differ on this machine."""
    raw: dict[str, Any] = dict(definition.spec)
    if device is not None:
        raw["training"] = {**raw["training"], "device": device}
    if slots is not None:
        raw["training"] = {**raw["training"], "slots": slots}
    if data_root is not None:
        raw["data"] = {**raw["data"], "root": data_root}
    return make_spec(raw)


def stored_objective(definition: Definition, spec: StudySpec) -> TrainingObjective:
    """The objective of a stored study, its data loaded.

    Raises:
        StorageError: The data set here is another than the study's.
    """
    objective = make_objective(spec, load_splits(spec))
    difference = definition.data_difference(objective.workload.num_examples, objective.data)
    if difference:
        raise StorageError(
            f"The study was made on other data than '{spec.data.name}' is here ({difference}); "
            "check --data-root."
        )
    return objective


# Clocks differ between two runs of anything.
_TIMES = ("seconds", "sampler_seconds")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trial's learning curve beside that of its replay.

    Attributes:
        trial: The recorded trial.
        curve: The replayed curve, as long as the recorded one.
    """

    trial: TrialRun
    curve: tuple[Evaluation, ...]

    @property
    def is_identical(self) -> bool:
        """Whether every value but the seconds is the same, bit for bit."""
        return [_timeless(e) for e in self.trial.curve] == [_timeless(e) for e in self.curve]

    @property
    def slots(self) -> int | None:
        """Slots of the stack that the trial was trained in; None if it was trained alone.

        Alone, sums are taken in another order, and ``mab`` draws other batches.
        """
        slots = self.trial.attrs.get(STACK_KEY)
        return None if slots is None else int(slots)

    @property
    def largest_difference(self) -> float:
        """Largest difference of validation accuracies; infinite where the replay is shorter."""
        if len(self.curve) < len(self.trial.curve):
            return float("inf")
        pairs = zip(self.trial.curve, self.curve, strict=True)
        return max((abs(one.accuracy - other.accuracy) for one, other in pairs), default=0.0)


def replay(
    storage: Storage,
    name: str,
    number: int,
    *,
    device: str | None = None,
    data_root: str | None = None,
) -> Replay:
    """Train a recorded trial again from its record alone, as far as its curve goes.

    Args:
        storage: The database.
        name: Optuna's study name.
        number: The trial's number.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.

    Raises:
        ArgumentError: The study has no such trial, or it has no curve.
        StorageError: The study was not made by this product, or its data are others here.
        UnknownNameError: There is no such study.
    """
    trial = _recorded(storage, name, number)
    study = open_study(storage, name)
    definition = Definition.load(study)
    spec = stored_spec(definition, device=device, data_root=data_root)
    objective = stored_objective(definition, spec)
    objective.workload.known = storage.examples.frozen(study._study_id)
    with train_recorded(objective, trial) as run:
        curve = tuple(_first(len(trial.curve), run.evaluations))
    return Replay(trial=trial, curve=curve)


def _recorded(storage: Storage, name: str, number: int) -> TrialRun:
    trials = {trial.number: trial for trial in read_run(storage, name).trials}
    if number not in trials:
        raise UnknownNameError("trial", str(number), map(str, trials))
    if not trials[number].curve:
        told = ", ".join(str(known) for known, trial in trials.items() if trial.curve)[:80]
        raise ArgumentError(
            f"Trial {number} of '{name}' has no learning curve to compare with; "
            + (f"trials that have one: {told}." if told else "no trial of the study has one.")
        )
    return trials[number]


def _first(count: int, evaluations: Iterator[Evaluation]) -> Iterator[Evaluation]:
    try:
        for _, evaluation in zip(range(count), evaluations, strict=False):
            yield evaluation
    except TrainingDiverged:
        return


def _timeless(evaluation: Evaluation) -> dict[str, float | int | None]:
    return {k: v for k, v in dataclasses.asdict(evaluation).items() if k not in _TIMES}
