"""Joining a study that exists, from its own definition."""

from __future__ import annotations

from typing import Any

from hpo_mab._errors import StorageError
from hpo_mab.search._load import make_spec
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._spec import StudySpec
from hpo_mab.search._stack_loop import Slots, run_trials
from hpo_mab.search._stopping import Target
from hpo_mab.search._study import open_with_parts
from hpo_mab.search._trial_loop import TrialCallback
from hpo_mab.storage import Definition, Storage, open_study


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
