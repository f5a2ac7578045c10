"""Making a study or continuing it, and refusing to continue it as something else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import optuna

from hpo_mab._attributes import EVIDENCE_KEY
from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab.advantage import Evidence
from hpo_mab.search._components import sampler_factory, study_pruner
from hpo_mab.search._planned_sampler import PlannedSampler
from hpo_mab.search._spec import StudySpec
from hpo_mab.search._stopping import Target
from hpo_mab.storage import Definition, Storage, open_study, study_names

# What may change between two runs of one study without changing what its trials mean.
_FREE = (
    "name",
    "budget.trials",
    "budget.total",
    "data.root",
    "data.download",
    "training.device",
    "training.checkpoint",
    "training.graph",
    "training.slots",
    "compare",
)


def default_name(spec: StudySpec, arm: str) -> str:
    """The name a study is stored under: definition, arm and seed."""
    return f"{spec.name}-{arm}-seed{spec.seed}"


def fresh_name(storage: Storage, name: str) -> str:
    """The first of ``name``, ``name.2``, ``name.3``, ... that no study has."""
    taken = set(study_names(storage))
    count = 1
    candidate = name
    while candidate in taken:
        count += 1
        candidate = f"{name}.{count}"
    return candidate


def make_study(
    storage: Storage, name: str, spec: StudySpec, definition: Definition
) -> optuna.Study:
    """The stored study of that name, made now if there is none; its target becomes the spec's.

    Args:
        storage: The database.
        name: Optuna's study name.
        spec: What the study should be.
        definition: The same as it is to be stored.

    Raises:
        StorageError: A study of that name exists and is defined otherwise, or has other data.
    """
    # Several processes may start the same study at once.
    with storage.lock(name):
        if name in study_names(storage):
            study = open_with_parts(storage, name, spec)
            # One that died here before it had a definition has no trials either.
            if Definition.is_in(study.user_attrs) or study.get_trials(deepcopy=False):
                _refuse_other_definition(study, definition)
                _refuse_other_data(study, definition)
        else:
            # Those of studies that Optuna has deleted in the meantime.
            storage.curves.remove_orphans()
            study = optuna.create_study(
                study_name=name,
                storage=storage.optuna,
                direction="maximize",
                sampler=_sampler(spec),
                pruner=study_pruner(spec, {}),
            )
        if not Definition.is_in(study.user_attrs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(["validation accuracy"])
            definition.save(study)
        Target(
            trials=spec.budget.trials,
            total=spec.budget.total,
            epoch_examples=definition.epoch_examples,
        ).save(study)
    return study


def open_with_parts(storage: Storage, name: str, spec: StudySpec) -> optuna.Study:
    """A study that exists, with the sampler and pruner of its definition."""
    study = optuna.load_study(study_name=name, storage=storage.optuna, sampler=_sampler(spec))
    study.pruner = study_pruner(spec, study.user_attrs)
    return study


def check_pruner(storage: Storage, name: str, spec: StudySpec) -> None:
    """Refuse a pruner that cannot be made, before anything is run.

    Raises:
        ArgumentError: Evidence that cannot be read, and no study of that name has a copy.
    """
    known = open_study(storage, name).user_attrs if name in study_names(storage) else {}
    study_pruner(spec, known)


def _sampler(spec: StudySpec) -> PlannedSampler:
    return PlannedSampler(
        sampler_factory(spec.search.sampler, spec.search.options),
        seed=spec.seed,
        initial=spec.search.initial,
        twins=spec.has_pilot,
    )


def _refuse_other_definition(study: optuna.Study, wanted: Definition) -> None:
    stored = Definition.load(study)
    before, now = dict(_flat(stored.spec)), dict(_flat(wanted.spec))
    for key in sorted(before.keys() | now.keys()):
        if key.startswith(_FREE) or before.get(key) == now.get(key):
            continue
        if key == "pruner.evidence" and _is_its_evidence(study, now.get(key)):
            continue
        raise StorageError(
            f"Study '{study.study_name}' exists with another definition: "
            f"{key} is {before.get(key)!r} there and {now.get(key)!r} here. "
            "Use --fresh or --name to start another study."
        )


def _refuse_other_data(study: optuna.Study, wanted: Definition) -> None:
    stored = Definition.load(study)
    difference = stored.data_difference(wanted.epoch_examples, wanted.data)
    if difference:
        raise StorageError(
            f"Study '{study.study_name}' was made on other data ({difference}). Use --fresh or "
            "--name to start another study, or check --data-root."
        )


def _is_its_evidence(study: optuna.Study, path: Any) -> bool:
    """Whether a file holds the evidence that the study has a copy of: it was moved."""
    try:
        return Evidence.load(path).to_json() == study.user_attrs.get(EVIDENCE_KEY)
    except (ArgumentError, TypeError):
        return False


def _flat(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in spec.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
