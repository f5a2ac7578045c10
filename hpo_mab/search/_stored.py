"""A stored study: its objective, and a trial trained again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import optuna

from hpo_mab._errors import StorageError
from hpo_mab._plan import trial_seed
from hpo_mab._stored_settings import MAY_CHANGE, flat_spec
from hpo_mab.search._definition import Slots, StudySpec
from hpo_mab.search._load import make_spec
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.storage import Storage, TrialRun, open_study
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.training import Budget, Training


def stored_spec(
    study: optuna.Study,
    *,
    device: str | None = None,
    data_root: str | None = None,
    slots: Slots | None = None,
) -> StudySpec:
    """The spec a study was made from, with what may differ on this machine."""
    raw: dict[str, Any] = dict(StoredDefinition.load(study).spec)
    given = (
        ("training", "device", device),
        ("training", "slots", slots),
        ("data", "root", data_root),
    )
    for section, key, value in given:
        if value is not None:
            raw[section] = {**raw[section], key: value}
    return make_spec(raw)


def other_data(spec: StudySpec, difference: str = "") -> StorageError:
    """The error that the data here are not those of the study."""
    what = f" ({difference})" if difference else ""
    return StorageError(
        f"The study was made on other data than those of '{spec.data.name}' here{what}; check "
        "--data-root, and whether files were added, moved or changed."
    )


def reopen(
    storage: Storage,
    name: str,
    *,
    device: str | None,
    data_root: str | None,
    slots: Slots | None = None,
) -> tuple[StudySpec, TrainingObjective]:
    """Definition and objective of a stored study, its data loaded.

    A ``device``, ``data_root`` or ``slots`` of None is the definition's.

    Raises:
        StorageError: The data are others, or the definition lacks a key that this version has.
    """
    study = open_study(storage, name)
    definition = StoredDefinition.load(study)
    spec = stored_spec(study, device=device, data_root=data_root, slots=slots)
    # Such a key has a default now, which had no effect on the trials of the study.
    before, now = (dict(flat_spec(one)) for one in (definition.spec, spec.model_dump(mode="json")))
    if added := now.keys() - {*before, *MAY_CHANGE}:
        raise StorageError(
            f"Study '{name}' is of an earlier hpo-mab without {', '.join(sorted(added))}: "
            "use that version, or start another study."
        )
    objective = make_objective(spec, load_splits(spec))
    difference = definition.data_difference(objective.workload.num_examples, objective.data)
    if difference:
        raise other_data(spec, difference)
    objective.begin_study(study, storage)
    return spec, objective


def train_stored_trial(
    objective: TrainingObjective,
    trial: TrialRun,
    *,
    seed: int | None = None,
    sampler: str | None = None,
    final: Budget | None = None,
    evaluations: int | None = None,
) -> AbstractContextManager[Training]:
    """Train a recorded trial's configuration again, from the start; see `Workload.training`.

    ``objective`` is that of the trial's study. ``seed``, batch ``sampler`` (with its default knobs)
    and ``evaluations`` in a budget replace the trial's own. ``final`` is another budget than the
    trial's, evaluated at its end only.
    """
    configuration = objective.configuration_of(trial.params, trial.attrs)
    if sampler is not None:
        configuration = configuration.with_sampler(sampler)
    if seed is None:
        seed = trial_seed(objective.seed, trial.slot)
    budgets = trial.budgets
    if final is not None:
        budgets = evaluations = 1
    return objective.workload.training(
        configuration, seed=seed, final=final, budgets=budgets, evaluations=evaluations
    )
