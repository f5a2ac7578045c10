"""Reading whole studies out of storage."""

from __future__ import annotations

import warnings

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import PAIRED_KEY, SLOT_KEY, trial_attributes
from hpo_mab._errors import StorageError, UnknownNameError
from hpo_mab.storage._definition import Definition
from hpo_mab.storage._open import Storage
from hpo_mab.storage._runs import StudyRun, TrialRun
from hpo_mab.training import Evaluation


class MissingCurvesWarning(UserWarning):
    """Trials whose learning curves are not in the database that holds their study."""


def study_names(storage: Storage) -> tuple[str, ...]:
    """Names of all studies in the database, oldest first."""
    return tuple(optuna.get_all_study_names(storage=storage.optuna))


def open_study(storage: Storage, name: str) -> optuna.Study:
    """A study that exists.

    Raises:
        UnknownNameError: There is none of that name; the message offers the nearest.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage.optuna)
    except KeyError:
        names = study_names(storage)
        if not names:
            raise StorageError(
                f"There is no study in {storage.shown_url}; 'hpo-mab run' makes one."
            ) from None
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
    definition = Definition.load(study)
    trials = study.get_trials(deepcopy=False)
    curves = storage.curves.load([trial._trial_id for trial in trials])
    run = StudyRun(
        name=name,
        arm=definition.arm,
        seed=definition.seed,
        trial_examples=definition.trial_examples,
        spec=definition.spec,
        trials=tuple(_trial_run(trial, curves.get(trial._trial_id, ())) for trial in trials),
    )
    if run.missing_curves:
        warnings.warn(
            f"{run.missing_curves} of {len(trials)} trials of '{name}' have no learning curve in "
            f"{storage.shown_url}: what the study has cost is not known. 'hpo-mab copy' copies a "
            "study with its curves.",
            MissingCurvesWarning,
            stacklevel=2,
        )
    return run


def _trial_run(trial: FrozenTrial, curve: tuple[Evaluation, ...]) -> TrialRun:
    attrs = trial_attributes(trial)
    return TrialRun(
        number=trial.number,
        slot=int(attrs.get(SLOT_KEY, trial.number)),
        state=trial.state.name.lower(),
        params=trial.params,
        # Optuna gives a pruned trial its last report as value.
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        paired=bool(attrs.get(PAIRED_KEY, False)),
        curve=curve,
        attrs=attrs,
    )
