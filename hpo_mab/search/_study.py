"""A study in the database: made or continued.

Continuing it under another definition is refused.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner

from hpo_mab._attributes import AUTO, UNIFORM
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError, require
from hpo_mab._stored_settings import MAY_CHANGE, StudySettings, differing_keys, flat_spec
from hpo_mab.pruners import PromotionPruner
from hpo_mab.search._definition import StudySpec
from hpo_mab.search._evidence_file import is_its_evidence, race_in_file, store_evidence
from hpo_mab.search._pruners import study_pruner
from hpo_mab.search._ranges import searched
from hpo_mab.search._searchers import PlannedSearcher, searcher_maker
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_record import check_direction
from hpo_mab.storage import Storage, open_study, study_names
from hpo_mab.storage._definition import StoredDefinition

#: Keys of a definition that name evidence.
_EVIDENCE = {"pruner.evidence", "sampler.evidence"}


def default_name(spec: StudySpec, arm: str, *, base: str | None = None) -> str:
    """The name a study is stored under: definition (or ``base``), arm and seed."""
    return f"{base or spec.name}-{arm}-seed{spec.seed}"


def choose_name(spec: StudySpec, *, arm: str, name: str | None = None) -> str:
    """A study's name: as given, or from definition, arm and seed."""
    chosen = name or default_name(spec, arm)
    check_name(chosen)
    return chosen


def choose_names(
    storage: Storage,
    studies: Mapping[tuple[str, int], StudySpec],
    *,
    name: str | None = None,
) -> dict[tuple[str, int], str]:
    """Names of the studies of a comparison, by arm and seed.

    ``name`` begins the names, in place of the definition's name. Only with it the database is read:
    a stored study of exactly this ``name`` is used for its arm and seed.
    """
    chosen = {(arm, seed): default_name(s, arm, base=name) for (arm, seed), s in studies.items()}
    for chosen_name in (name or "", *chosen.values()):
        check_name(chosen_name)
    if name is None or name not in (stored_names := study_names(storage)):
        return chosen
    study = open_study(storage, name)
    if StoredDefinition.is_in(study.user_attrs):
        stored = StoredDefinition.load(study)
        key = (stored.arm, stored.seed)
        # A study that was run under its own name before is continued in the comparison.
        if key in chosen and chosen[key] not in stored_names:
            chosen[key] = name
    return chosen


def check_name(name: str) -> None:
    """Refuse a name that no command could take: ``hpo-mab report`` reads ``ARM=DATABASE#STUDY``."""
    # A tab or a line break would change the commands that are printed. Optuna's column holds 512
    # characters, which SQLite does not check.
    fits = name.isprintable() and len(name) <= 512
    fits = fits and not {*"=#"} & {*name} and not name.endswith(".json")
    require(
        fits,
        "the study's name (see --name)",
        "printable, at most 512 characters, without = and #, and not end in .json",
        repr(name),
    )


def make_study(
    storage: Storage,
    name: str,
    spec: StudySpec,
    wanted: StoredDefinition,
    *,
    data_digest: str = "",
    in_comparison: bool = False,
) -> optuna.Study:
    """The stored study of that name, made now if there is none.

    ``wanted`` is what is stored of ``spec``, with data and machine. ``data_digest`` is that of
    `hpo_mab.data._identity.source_digest`, empty if it is not known. In a comparison the study
    takes the arm, and its target is only raised; else its target becomes the spec's.
    """
    # Several processes may start the same study at once.
    with storage.lock(name):
        if name in study_names(storage):
            study = _continued(storage, name, spec, wanted, takes_arm=in_comparison)
        else:
            study = _created(storage, name, spec, wanted)
        if not StoredDefinition.is_in(study.user_attrs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(["validation accuracy"])
            store_evidence(study, spec, data_digest)
            # Last: a worker can join the study only when it has a definition.
            wanted.save(study)
        target = StudyTarget(
            trials=spec.budget.trials,
            total=spec.budget.total,
            epoch_examples=wanted.epoch_examples,
        )
        if in_comparison:
            target = target.at_least(StudyTarget.load(study))
        target.save(study)
    return study


def _continued(
    storage: Storage, name: str, spec: StudySpec, wanted: StoredDefinition, *, takes_arm: bool
) -> optuna.Study:
    study = open_for_training(storage, name, spec)
    check_direction(study)
    # Again, with the lock: another process may have made it meanwhile.
    _refuse_other(study, spec, wanted)
    if StoredDefinition.is_in(study.user_attrs):
        # A study that `hpo-mab run` made under an arm's name is that arm from now on.
        _store_allowed_changes(study, spec, wanted, takes_arm=takes_arm)
    return study


def _created(
    storage: Storage, name: str, spec: StudySpec, wanted: StoredDefinition
) -> optuna.Study:
    # "auto" has become a number, which the reference must have, too.
    early = {"early_validation": wanted.settings.early_validation}
    budget = spec.budget.model_copy(update=early)
    check_reference(storage, spec.model_copy(update={"budget": budget}))
    # Optuna deletes a study without its curves and records of examples.
    storage.remove_orphans()
    pruner = study_pruner(spec, {})
    try:
        return optuna.create_study(
            study_name=name,
            storage=storage.optuna,
            direction="maximize",
            sampler=_study_searcher(spec, pruner),
            pruner=pruner,
        )
    except optuna.exceptions.DuplicatedStudyError:
        # No other process makes it now; MySQL compares names without case.
        raise StorageError(
            f"The database has a study whose name differs from '{name}' in capitals or "
            "accents only; give another --name."
        ) from None


#: Keys of ``training`` that may change and that the workers of a study read in its definition.
_FOR_WORKERS = ("checkpoint", "examples", "graph")


def _store_allowed_changes(
    study: optuna.Study, spec: StudySpec, wanted: StoredDefinition, *, takes_arm: bool
) -> None:
    """Store what may change in the study's definition, for workers that are started from now on.

    In a comparison also the arm and the comparison's own settings.
    """
    stored = StoredDefinition.load(study)
    before = stored.settings.training
    training = {**before, **{key: getattr(spec.training, key) for key in _FOR_WORKERS}}
    arm, changed = stored.arm, {**stored.spec, "training": training}
    if takes_arm:
        arm, changed["compare"] = wanted.arm, spec.compare.model_dump(mode="json")
    after = dataclasses.replace(stored, arm=arm, spec=changed)
    if after != stored:
        after.save(study)


def open_for_training(storage: Storage, name: str, spec: StudySpec) -> optuna.Study:
    """A stored study with the sampler and pruner of its definition; `open_study` sets neither."""
    study = optuna.load_study(study_name=name, storage=storage.optuna)
    study.pruner = study_pruner(spec, study.user_attrs)
    study.sampler = _study_searcher(spec, study.pruner)
    return study


def check_study(
    storage: Storage,
    name: str,
    spec: StudySpec,
    wanted: StoredDefinition | None = None,
) -> None:
    """Refuse the name of another study, and evidence that cannot be used.

    ``wanted`` is None before the data are loaded. A missing database is not made.
    """
    attrs: Mapping[str, Any] = {}
    if name in study_names(storage):
        study = open_study(storage, name)
        attrs = study.user_attrs
        _refuse_other(study, spec, wanted)
    if "evidence" in spec.pruner.options:
        study_pruner(spec, attrs)  # Raises if the evidence cannot be read.
    if not StoredDefinition.is_in(attrs):
        race_in_file(spec)  # Raises if the evidence has no race that can be read.


def check_reference(
    storage: Storage, spec: StudySpec, *, planned: Mapping[str, StudySpec] | None = None
) -> None:
    """Refuse a pruner's reference that does not exist or cannot be paired with the study.

    ``planned`` are studies that run before it, by name. A missing database is not made.
    """
    reference, planned = spec.given_evidence.get("reference"), planned or {}
    if reference is None:
        return
    if reference in (names := study_names(storage)):
        study = open_study(storage, reference)
        if StoredDefinition.is_in(study.user_attrs):
            _refuse_other_reference(spec, reference, StoredDefinition.load(study).spec)
    elif reference in planned:
        _refuse_other_reference(spec, reference, planned[reference].model_dump(mode="json"))
    else:
        raise UnknownNameError("study of pruner.reference", reference, (*names, *planned))


def _refuse_other_reference(spec: StudySpec, reference: str, other: Mapping[str, Any]) -> None:
    """Refuse a reference that is not uniform, or trains the same configuration in another way."""
    own = spec.model_dump(mode="json")
    own["sampler"]["kind"] = UNIFORM
    if different := differing_keys(own, other):
        key = different[0]
        there, here = (_value_text(dict(flat_spec(one)), key) for one in (other, own))
        raise ArgumentError(
            f"pruner.reference: study '{reference}' has {key} = {there}, but pairs with this study "
            f"need {here}."
        )


def _study_searcher(spec: StudySpec, pruner: BasePruner) -> PlannedSearcher:
    continues = isinstance(pruner, PromotionPruner)
    return PlannedSearcher(
        searcher_maker(spec.search.sampler, spec.search.options),
        seed=spec.seed,
        initial=spec.search.initial,
        repeats=spec.has_pilot or spec.sampler.kind == AUTO or continues,
    )


def _refuse_other(study: optuna.Study, spec: StudySpec, wanted: StoredDefinition | None) -> None:
    """Refuse a stored study of another definition, or of other data if ``wanted`` is known."""
    # A study whose process died while it was made has neither definition nor trials.
    if not (StoredDefinition.is_in(study.user_attrs) or study.get_trials(deepcopy=False)):
        return
    refuse_other_definition(study, spec.model_dump(mode="json"))
    if wanted is None:
        return
    stored = StoredDefinition.load(study)
    difference = stored.data_difference(wanted.epoch_examples, wanted.data)
    if difference:
        raise StorageError(
            f"Study '{study.study_name}' was made on other data ({difference}). Give --name to "
            "start another study, or check --data-root."
        )


def refuse_other_definition(study: optuna.Study, wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a study under another definition than the stored one."""
    stored = StoredDefinition.load(study).spec
    before, now = dict(flat_spec(stored)), dict(flat_spec(wanted))
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    allowed = {*MAY_CHANGE, *(key for key in changed if key.startswith("compare."))}
    # Its race has samplers that use the record.
    if now.get("sampler.kind") == AUTO:
        allowed.discard("training.examples")
    # "auto" takes the part that the study began with.
    if now.get("budget.early_validation") == "auto":
        allowed.add("budget.early_validation")
    # The file may have been moved or renamed.
    allowed |= {key for key in changed & _EVIDENCE if is_its_evidence(study, now.get(key))}
    for key in sorted(changed - allowed):
        raise _other_definition(study, key, _value_text(before, key), _value_text(now, key))
    # Equal numbers may make other ranges: of floats and of integers.
    there, here = (searched(StudySettings.of(one).ranges) for one in (stored, wanted))
    for name in sorted(there.keys() & here.keys()):
        if there[name] != here[name]:
            raise _other_definition(study, name, str(there[name]), str(here[name]))


def _other_definition(study: optuna.Study, key: str, there: str, here: str) -> StorageError:
    return StorageError(
        f"Study '{study.study_name}' exists with another definition: {key} is {there} there and "
        f"{here} here. Give --name to start another study."
    )


def _value_text(values: Mapping[str, Any], key: str) -> str:
    """The value of a key as a definition writes it, a range as a table."""
    within = {
        name.removeprefix(f"{key}."): value
        for name, value in values.items()
        if name.startswith(f"{key}.")
    }
    if within:
        return f"{{ {', '.join(f'{name} = {value!r}' for name, value in within.items())} }}"
    return repr(values[key]) if key in values else "not set"
