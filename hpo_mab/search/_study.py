"""Making a study or continuing it, and refusing to continue it as something else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from hpo_mab._errors import StorageError
from hpo_mab.search._components import create_pruner, sampler_factory
from hpo_mab.search._planned_sampler import PlannedSampler
from hpo_mab.search._spec import StudySpec
from hpo_mab.storage import Definition, Storage, study_names

# What may change between two runs of one study without changing what its trials mean.
_FREE = (
    "name",
    "budget.trials",
    "budget.total",
    "data.root",
    "data.download",
    "training.device",
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
    """The stored study of that name, made now if there is none.

    Args:
        storage: The database.
        name: Optuna's study name.
        spec: What the study should be.
        definition: The same as it is to be stored.

    Raises:
        StorageError: A study of that name exists and is defined otherwise.
    """
    options: dict[str, Any] = {
        "study_name": name,
        "storage": storage.optuna,
        "sampler": _sampler(spec),
        "pruner": create_pruner(
            spec.pruner.kind, spec.pruner.options, evaluations=spec.budget.evaluations
        ),
    }
    if name in study_names(storage):
        study = optuna.load_study(**options)
        _refuse_other_definition(study, definition)
        return study
    study = optuna.create_study(**options, direction="maximize")
    definition.save(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["validation accuracy"])
    return study


def requeue_interrupted(study: optuna.Study) -> int:
    """Queue every interrupted trial that has no retry yet; returns how many were queued."""
    trials = study.get_trials(deepcopy=False)
    retried = {number for t in trials for number in t.system_attrs.get("retry_history", [])}
    lost = [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and trial.user_attrs.get("interrupted")
        and trial.number not in retried
    ]
    for trial in lost:
        # Ctrl-C is no fault of the trial: it does not count towards the bound on retries.
        attrs = {k: v for k, v in trial.user_attrs.items() if k in ("slot", "paired")}
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=attrs,
                system_attrs={"failed_trial": trial.number, "retry_history": [trial.number]},
            )
        )
    return len(lost)


def _sampler(spec: StudySpec) -> PlannedSampler:
    from hpo_mab.samplers import knobs

    return PlannedSampler(
        sampler_factory(spec.search.sampler, spec.search.options),
        seed=spec.seed,
        initial=spec.search.initial,
        defaults={f"sampler.{knob}": value for knob, value in knobs(spec.sampler.kind).items()},
    )


def _refuse_other_definition(study: optuna.Study, wanted: Definition) -> None:
    stored = Definition.load(study)
    before, now = dict(_flat(stored.spec)), dict(_flat(wanted.spec))
    for key in sorted(before.keys() | now.keys()):
        if key.startswith(_FREE) or before.get(key) == now.get(key):
            continue
        raise StorageError(
            f"Study '{study.study_name}' exists with another definition: "
            f"{key} is {before.get(key)!r} there and {now.get(key)!r} here. "
            "Use --fresh or --name to start another study."
        )


def _flat(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in spec.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
