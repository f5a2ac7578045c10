"""Train the best configurations of a study again, to see which one is the best.

The best of many values overrates its configuration, as its training had lucky initial weights and
batches. ``studies/confirm`` measures by how much.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from hpo_mab._attributes import CONFIRMED_KEY, SAMPLER_KEY
from hpo_mab._errors import ArgumentError, StorageError, require
from hpo_mab._interrupts import deferred_interrupts
from hpo_mab._plan import derive_seed
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._stored import reopen, train_stored_trial
from hpo_mab.storage import Storage, StudyRun, TrialRun, open_study, read_run
from hpo_mab.storage._runs import deletion_is_an_error
from hpo_mab.training import TrainingDiverged

#: Degrees of freedom from which a standard deviation is given: with fewer it may be 0 by chance.
_FEWEST_FREE = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration of a study with its validation accuracies.

    Attributes:
        trial: The trial that found it.
        repeats: Accuracies of its trainings with other seeds, in [0, 1]; 0 for one that diverged.
    """

    trial: TrialRun
    repeats: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Mean of the trainings with other seeds; without any the trial's own accuracy."""
        return statistics.fmean(self.repeats or (self.trial.value or 0.0,))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """The candidates of a study.

    Attributes:
        candidates: Configurations, each with its ``trial``, the accuracies of its ``repeats`` and
            its ``accuracy``, their mean or without any the trial's; the highest first.
        trainings: Trainings with other seeds that the first is to have.
    """

    candidates: tuple[Candidate, ...]
    trainings: int

    @property
    def finished(self) -> bool:
        """Whether the first candidate has its trainings."""
        return bool(self.candidates) and len(self.candidates[0].repeats) >= self.trainings

    @property
    def repeated(self) -> tuple[Candidate, ...]:
        """The candidates that were trained again, the best first."""
        return tuple(one for one in self.candidates if one.repeats)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracies of one configuration, pooled over all candidates.

        Trainings that diverged are left out. None with fewer than 4 degrees of freedom; five
        trainings of one configuration have 4.
        """
        kept = ([value for value in one.repeats if value > 0] for one in self.candidates)
        groups = [values for values in kept if len(values) > 1]
        free = sum(len(values) - 1 for values in groups)
        if free < _FEWEST_FREE:
            return None
        squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups)
        return math.sqrt(squares / free)


#: Called after each training, with its candidate.
ConfirmCallback = Callable[[Candidate], None]


def best_first(
    trials: Sequence[TrialRun], repeats: Mapping[int, Sequence[float]]
) -> tuple[Candidate, ...]:
    """The complete trials of a study as candidates, the highest accuracy first.

    Trials that were added with a value and not trained are left out. Of a trial and its
    continuations, the one with the highest value is the candidate.

    ``repeats`` holds accuracies of trainings with other seeds, by number of the trial.
    """
    best: dict[tuple[int, Any], TrialRun] = {}
    for trial in trials:
        if trial.value is not None and trial.was_run:
            place = trial.slot, trial.attrs.get(SAMPLER_KEY)
            earlier = best.get(place)
            if earlier is None or trial.value > (earlier.value or 0.0):
                best[place] = trial
    candidates = (
        Candidate(trial=trial, repeats=tuple(repeats.get(trial.number, ())))
        for trial in best.values()
    )
    return tuple(sorted(candidates, key=lambda one: one.accuracy, reverse=True))


def candidates_of(run: StudyRun, repeats: Mapping[int, Sequence[float]]) -> tuple[Candidate, ...]:
    """The candidates of a study, the best first; raises `ArgumentError` if there are none."""
    candidates = best_first(run.trials, repeats)
    if not candidates:
        raise ArgumentError(f"'{run.name}' has no best trial: none is complete.")
    return candidates


def confirm(
    storage: Storage,
    name: str,
    *,
    trainings: int = 2,
    max_trainings: int = 20,
    device: str | None = None,
    data_root: str | None = None,
    on_training: ConfirmCallback | None = None,
) -> Confirmation:
    """Train the best configurations of a study again with other seeds, until one stays the best.

    The candidate of the highest accuracy is trained once more. This repeats until the
    highest one has ``trainings`` trainings. Each training has the trial's length and the
    trial's own batch sampler, and is stored at once: later calls continue. The first trainings of
    all candidates have the same seed, and so have the second: less of a difference is luck. Trials
    that were trained in slots are trained alone here. Trials and their values stay as they are.

    Args:
        storage: The database.
        name: Optuna's study name.
        trainings: Trainings with other seeds that the best candidate is to have, at least 1.
        max_trainings: Trainings of this call, at least 1.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.
        on_training: Called after each training.

    Raises:
        ArgumentError: No trial is complete, or an argument is outside its bound.
        StorageError: The study was not made by ``hpo-mab``, the data here differ from its own, or
            the database may only be read.
        UnknownNameError: There is no such study.
    """
    require(trainings >= 1, "trainings", "at least 1", trainings)
    require(max_trainings >= 1, "max_trainings", "at least 1", max_trainings)
    run, study = read_run(storage, name), open_study(storage, name)
    objective: TrainingObjective | None = None
    repeats = stored_repeats(study.user_attrs)
    with deletion_is_an_error(storage, name):
        for done in itertools.count():
            confirmation = Confirmation(candidates=candidates_of(run, repeats), trainings=trainings)
            if confirmation.finished or done == max_trainings:
                break
            if objective is None:
                if storage.is_archive:
                    raise StorageError(
                        f"{storage.shown_url} may only be read: no training can be stored in it."
                    )
                _, objective = reopen(storage, name, device=device, data_root=data_root)
            best = confirmation.candidates[0]
            trained = dataclasses.replace(best, repeats=(*best.repeats, _train(objective, best)))
            repeats = _store(storage, study, trained)
            if on_training is not None:
                on_training(trained)
    return confirmation


def stored_repeats(study_attrs: Mapping[str, Any]) -> dict[int, tuple[float, ...]]:
    """Accuracies of a study's trainings with other seeds, by number of the trial."""
    stored: Mapping[str, Any] = study_attrs.get(CONFIRMED_KEY, {})
    return {int(number): tuple(accuracies) for number, accuracies in stored.items()}


def _store(
    storage: Storage, study: optuna.Study, trained: Candidate
) -> dict[int, tuple[float, ...]]:
    """Store a candidate's last training; returns all that is stored by now."""
    with deferred_interrupts() as was_pressed, storage.lock(study.study_name):
        repeats, number = stored_repeats(study.user_attrs), trained.trial.number
        # Another process may have stored the training with the same seed.
        if len(repeats.get(number, ())) < len(trained.repeats):
            repeats[number] = trained.repeats
            study.set_user_attr(CONFIRMED_KEY, {str(key): value for key, value in repeats.items()})
    if was_pressed():
        raise KeyboardInterrupt
    return repeats


def _train(objective: TrainingObjective, candidate: Candidate) -> float:
    """Validation accuracy of a candidate's next training; 0 if it diverges."""
    # Not of the trial's number, which interruptions shift.
    seed = derive_seed(objective.seed, "confirm", len(candidate.repeats))
    with train_stored_trial(objective, candidate.trial, seed=seed, evaluations=1) as training:
        try:
            *_, end = training
        except TrainingDiverged:
            return 0.0
        return end.accuracy
