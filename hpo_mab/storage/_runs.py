"""Stored studies as plain records, read once and analysed without a database."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    BUDGET_KEY,
    EVALUATION_KEY,
    EXAMPLES_KEY,
    LOST_KEY,
    PAIRED_KEY,
    PREFIX,
    REASON_KEY,
    RESUMED_KEY,
    SECONDS_KEY,
    SLOT_KEY,
    TWIN_KEY,
    WORKER_KEY,
    unreported,
)
from hpo_mab._errors import HpoMabWarning, StorageError, UnknownNameError
from hpo_mab._plan import budgets_of
from hpo_mab._results import Results
from hpo_mab._stored_settings import StudySettings
from hpo_mab.storage._definition import StoredDefinition, largest_batch
from hpo_mab.storage._open import Storage
from hpo_mab.storage._optuna import id_of, is_of_deleted
from hpo_mab.storage._tables import STUDIES
from hpo_mab.training import Evaluation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialRun:
    """One trial of a study with its learning curve.

    Attributes:
        number: Optuna's trial number.
        slot: Position in the study's plan. Trials of paired studies with the same slot share seed,
            initial weights and, where ``paired``, configuration. A retried trial keeps its slot.
        state: ``"complete"``, ``"pruned"``, ``"fail"`` or ``"running"``.
        params: Optuna's parameters.
        value: The objective (final validation accuracy); None unless complete and feasible.
        paired: Whether the configuration was given to every arm of a comparison.
        curve: Evaluations in order of budget.
        attrs: The trial's user attributes.
    """

    number: int
    slot: int
    state: str
    params: Mapping[str, Any]
    value: float | None
    paired: bool
    curve: tuple[Evaluation, ...]
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Training examples of the trial, including those of an earlier attempt it resumed."""
        return self.curve[-1].examples if self.curve else 0

    @property
    def budgets(self) -> int:
        """Its length, in budgets of a trial."""
        return budgets_of(self.attrs)

    @property
    def was_run(self) -> bool:
        """Whether it was trained, and not added with its value, e.g. by `add_trial`."""
        # A user's own attributes do not count.
        return any(key.startswith(PREFIX) for key in self.attrs)

    @property
    def twin(self) -> bool:
        """Whether it repeats another trial under another batch sampler."""
        return TWIN_KEY in self.attrs

    @property
    def is_comparable(self) -> bool:
        """Whether it is complete after one budget, and no twin: its value compares with others."""
        return self.value is not None and self.budgets == 1 and not self.twin

    @property
    def seconds(self) -> float:
        """Training seconds of the trial, counted as `examples`; the sampler's cost is included."""
        return self.curve[-1].seconds if self.curve else 0.0

    @property
    def lacks_curve(self) -> bool:
        """Whether its cost is not known: it was evaluated, but has no curve here."""
        evaluated = self.was_run and (self.state == "complete" or EXAMPLES_KEY in self.attrs)
        return evaluated and not self.curve

    @property
    def evaluation_seconds(self) -> float:
        """Seconds that this attempt has spent on evaluations; 0 in earlier records."""
        return float(self.attrs.get(EVALUATION_KEY, 0.0))

    @property
    def inherited(self) -> Evaluation | None:
        """The last evaluation of an earlier attempt, whose cost counts for that attempt."""
        count = min(int(self.attrs.get(RESUMED_KEY, 0)), len(self.curve))
        return self.curve[count - 1] if count else None

    @property
    def own_examples(self) -> int:
        """Training examples that this attempt at the trial has processed."""
        lost, _ = unreported(self.attrs)
        return self.examples + lost - (self.inherited.examples if self.inherited else 0)

    @property
    def own_seconds(self) -> float:
        """Training seconds that this attempt at the trial has spent."""
        _, lost = unreported(self.attrs)
        return self.seconds + lost - (self.inherited.seconds if self.inherited else 0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyRun:
    """One study: its definition and its trials in order of their number.

    Attributes:
        name: Optuna's study name.
        arm: Name of the arm of a comparison, e.g. ``"mab"`` or ``"uniform"``.
        seed: The study's seed; studies of different arms with one seed are paired.
        trial_examples: Budget of the longest unpruned trial, in examples.
        spec: The definition the study was made from, as JSON-like values.
        trials: All trials.
        training_examples: Size of the training part; None in records of earlier versions.
        environment: Versions and hardware that it began with; empty if not known.
        retrained: Test accuracies of its best configuration, trained again by a comparison.
        processes: The most processes that trained its trials at one time.
    """

    name: str
    arm: str
    seed: int
    trial_examples: int
    spec: Mapping[str, Any]
    trials: tuple[TrialRun, ...]
    training_examples: int | None = None
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    retrained: tuple[float, ...] = ()
    processes: int = 1

    @property
    def settings(self) -> StudySettings:
        """The definition as typed values."""
        return StudySettings.of(self.spec)

    @property
    def title(self) -> str:
        """Name of its definition; without one, its own."""
        return self.settings.name or self.name

    @property
    def epoch_examples(self) -> float | None:
        """Training examples of one pass, from the budget where the size is not on record."""
        epochs = self.settings.epochs
        return self.training_examples or (self.trial_examples / epochs if epochs else None)

    @property
    def largest_batch(self) -> int:
        """The largest batch size that was searched; 0 where it was not."""
        return largest_batch(self.trials)

    @property
    def missing_curves(self) -> int:
        """Number of trials without a curve; if it is not 0, the cost of the study is not known."""
        return sum(trial.lacks_curve for trial in self.trials)

    @property
    def examples(self) -> int | None:
        """Training examples spent by all trials, failed ones included; None if not known.

        Those of a failed trial end with its last evaluation, as its `seconds` do.
        """
        return None if self.missing_curves else sum(trial.own_examples for trial in self.trials)

    @property
    def seconds(self) -> float | None:
        """Training seconds spent by all trials, failed ones included; None if not known."""
        return None if self.missing_curves else sum(trial.own_seconds for trial in self.trials)

    @property
    def evaluation_seconds(self) -> float:
        """Seconds of evaluation of all trials, failed ones included; 0 in earlier records."""
        return Results(self.trials).evaluation_seconds

    def full_examples(self, trial: TrialRun) -> int:
        """Training examples of one of its trials at the end of one budget."""
        own = trial.attrs.get(BUDGET_KEY)
        if own is not None:
            return int(own)
        return self.settings.examples_of(trial.params, longest=self.trial_examples)

    @property
    def saved_examples(self) -> int | None:
        """Training examples that pruned trials did not spend; None if not known."""
        if self.missing_curves:
            return None
        return sum(self.full_examples(trial) - trial.examples for trial in self._pruned)

    @property
    def saved_seconds(self) -> float | None:
        """Seconds of training on those examples at each trial's own pace; None if not known."""
        if self.missing_curves:
            return None
        return sum(
            (self.full_examples(trial) - trial.examples) * trial.seconds / trial.examples
            for trial in self._pruned
            if trial.examples
        )

    @property
    def _pruned(self) -> list[TrialRun]:
        """Trials that a pruner stopped within one budget, and that no other trial has continued."""
        numbers = Results(self.trials).numbers_not_continued
        # A trial that diverged would have ended without a pruner, too.
        stopped = (trial for trial in self.trials if REASON_KEY not in trial.attrs)
        return [trial for trial in stopped if trial.number in numbers and trial.budgets == 1]

    @property
    def once(self) -> tuple[TrialRun, ...]:
        """The trials that show each configuration once, under the study's batch sampler."""
        numbers = Results(self.trials).numbers_once_per_configuration
        return tuple(trial for trial in self.trials if trial.number in numbers)

    @property
    def best(self) -> TrialRun | None:
        """The complete trial of the highest value, the earliest of equals, if there is one."""
        complete = [trial for trial in self.trials if trial.value is not None]
        return max(complete, key=lambda trial: trial.value or 0.0, default=None)


def study_names(storage: Storage) -> tuple[str, ...]:
    """Names of all studies in the database, oldest first; a missing file is not made."""
    if not storage.exists:
        return ()
    # Optuna's function reads all attributes of all studies, too, such as figures.
    query = sa.select(STUDIES.c.study_name).order_by(STUDIES.c.study_id)
    with storage.optuna.engine.connect() as connection:
        return tuple(connection.scalars(query))


@contextlib.contextmanager
def deletion_is_an_error(storage: Storage, name: str) -> Iterator[None]:
    """If the study or a trial is gone, raise `StorageError` in place of Optuna's KeyError."""
    try:
        yield
    except KeyError as error:
        if name not in study_names(storage):
            raise StorageError(f"Study '{name}' has been deleted.") from None
        if not is_of_deleted(error):
            raise
        raise StorageError(
            f"A trial of '{name}' is no longer in {storage.shown_url}: after a failover or a "
            "restored backup, run the same command again."
        ) from None


def open_study(storage: Storage, name: str) -> optuna.Study:
    """A study that exists.

    Raises:
        UnknownNameError: There is no study of that name; the message gives the nearest name.
    """
    try:
        study = optuna.load_study(study_name=name, storage=storage.optuna)
        # MySQL finds a name with other capitals, too; locks are of the exact name.
        if storage.optuna.get_study_name_from_id(id_of(study)) == name:
            return study
        raise KeyError(name)
    except KeyError:
        names = study_names(storage)
        if not names:
            raise StorageError(f"There is no study in {storage.shown_url}.") from None
        raise UnknownNameError("study", name, names) from None


def read_run(storage: Storage, name: str) -> StudyRun:
    """Read a study with the learning curves of all its trials.

    Args:
        storage: The database.
        name: Optuna's study name.

    Raises:
        StorageError: The study was not made by this product.
        UnknownNameError: There is no such study.
    """
    study = open_study(storage, name)
    definition = StoredDefinition.of(study)
    trials = study.get_trials(deepcopy=False)
    curves = storage.curves.load([id_of(trial) for trial in trials])
    run = StudyRun(
        name=name,
        arm=definition.arm,
        seed=definition.seed,
        trial_examples=definition.trial_examples,
        spec=definition.spec,
        trials=tuple(_trial_run(trial, curves.get(id_of(trial), ())) for trial in trials),
        training_examples=definition.epoch_examples or None,
        environment=definition.environment,
        processes=_most_processes(trials),
    )
    if run.missing_curves:
        warnings.warn(
            f"{run.missing_curves} of {len(trials)} trials of '{name}' have no learning curve in "
            f"{storage.shown_url}: what the study has cost is not known. Either it was copied "
            "without them, and 'hpo-mab copy' copies them, or its loop stores none; "
            "TrialReporter(curves=...) does.",
            HpoMabWarning,
            stacklevel=2,
        )
    return run


def _most_processes(trials: Sequence[FrozenTrial]) -> int:
    """The most processes that trained trials at one time."""
    spans = [span for trial in trials if (span := _span(trial)) is not None]
    most, ends = 1, dict[str, datetime.datetime]()
    for start, end, worker in sorted(spans):
        ends = {name: last for name, last in ends.items() if last > start}
        ends[worker] = max(end, ends.get(worker, end))
        most = max(most, len(ends))
    return most


def _span(trial: FrozenTrial) -> tuple[datetime.datetime, datetime.datetime, str] | None:
    """When a trial was trained, and the name of its process; None if that is not known."""
    start, end, attrs = trial.datetime_start, trial.datetime_complete, trial.user_attrs
    # A lost trial ends when another worker finds it.
    if start is None or end is None or LOST_KEY in attrs:
        return None
    # Local times repeat when the clocks go back.
    start, end = start.astimezone(datetime.UTC), end.astimezone(datetime.UTC)
    # None where Optuna's own loop has begun a trial that a worker was about to begin.
    if (worker := trial.system_attrs.get(WORKER_KEY)) is not None:
        return start, end, worker
    # A user's own loop stores none: of its trials, those that overlap count as processes. A failed
    # one may have been killed, and then ends when another process finds it.
    seconds = attrs.get(SECONDS_KEY)
    if seconds is None or trial.state == TrialState.FAIL:
        return None
    # `optuna.Study.ask` may have begun it long before it was trained.
    began = max(start, end - datetime.timedelta(seconds=seconds))
    return began, end, str(trial.number)


def _trial_run(trial: FrozenTrial, curve: tuple[Evaluation, ...]) -> TrialRun:
    attrs = trial.user_attrs
    feasible = all(value <= 0.0 for value in trial.constraints.values())
    return TrialRun(
        number=trial.number,
        slot=int(attrs.get(SLOT_KEY, trial.number)),
        state=trial.state.name.lower(),
        params=trial.params,
        # Optuna gives a pruned trial its last report as value. An infeasible one is never best.
        value=trial.value if trial.state == TrialState.COMPLETE and feasible else None,
        # A reporter's trials are paired wherever two studies have the same configuration.
        paired=bool(attrs.get(PAIRED_KEY, BUDGET_KEY in attrs)),
        curve=curve,
        attrs=attrs,
    )
