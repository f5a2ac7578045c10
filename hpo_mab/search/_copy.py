"""A study copied or moved, whole, within a database or to another."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from copy import copy as shallow_copy
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import PUBLISHED_KEY, RECORD_KEY, TARGET_KEY
from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab.search._retries import close_lost
from hpo_mab.search._study import check_name
from hpo_mab.storage import Storage, open_study
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._open import STORAGE_ERRORS, files_folder
from hpo_mab.storage._optuna import ARTIFACT, add_copy, id_of, storage_of
from hpo_mab.storage._process import diagnose

_TRIAL_NOTE = re.compile(r"dashboard:(\d+):")
#: Figures of pairs, which belong to a verdict; users may have figures of other names.
_OF_PAIRS = re.compile(r"dashboard:plot_data:0[2-7]-(advantage|acceleration|fidelity|cost)")


def copy_study(
    source: Storage, name: str, target: Storage, *, to_name: str | None = None, move: bool = False
) -> int:
    """Copy a study with its learning curves, record of examples, notes and artifacts.

    All of it is copied, or nothing.

    Checkpoints stay behind: a trial that was cut off starts from zero in the copy.

    Args:
        source: Where the study is.
        name: Its name.
        target: Where the copy is made; may be ``source``.
        to_name: The copy's name; None keeps the name.
        move: Whether to delete the study once the copy is whole.

    Returns:
        The number of its trials.

    Raises:
        ArgumentError: The copy would be the study itself, or its name is one that commands could
            not take.
        StorageError: A study of that name exists, trials of this one are running, or it is to be
            moved and cannot be deleted.
        UnknownNameError: There is no such study.
    """
    chosen = to_name or name
    check_name(chosen)
    # Storages in memory are different databases with equal URLs.
    same = source is target or (not source.in_memory and source.secret_url == target.secret_url)
    if same and chosen == name:
        raise ArgumentError(
            f"A copy of '{name}' in the same database needs another name. Give one, or another "
            "database."
        )
    if move and source.is_archive:
        raise StorageError(
            f"{source.shown_url} may only be read: '{name}' can be copied, not moved."
        )
    with source.lock(name):
        study = open_study(source, name)
        if not source.is_archive:
            _close_lost(study, source)
        _refuse_running(study, source)
        copy = _create_copy(study, target, chosen)
        here, there = (files_folder(each, "artifacts").resolve() for each in (source, target))
        files: dict[str, str] = {}
        try:
            # A study that is moved within one folder keeps its files.
            if not move or here != there:
                _copy_artifacts(study, here, there, files)
            trials = _copy_content(copy, study, source, target, files)
        # Also after Ctrl-C: half a copy must not remain.
        except BaseException:
            for new in files.values():
                (there / new).unlink(missing_ok=True)
            with contextlib.suppress(Exception):
                optuna.delete_study(study_name=chosen, storage=target.optuna)
                target.remove_orphans()
            raise
        if move:
            _delete_copied(source, name, f"'{chosen}' in {target.shown_url}")
            # Files stay here: a copy that Optuna has made refers to them, too.
    return trials


def _delete_copied(source: Storage, name: str, copy: str) -> None:
    try:
        optuna.delete_study(study_name=name, storage=source.optuna)
    except STORAGE_ERRORS as error:
        raise StorageError(
            f"The copy {copy} is complete, but '{name}' could not be deleted: "
            f"{diagnose(error, source.url)}"
        ) from None
    source.remove_orphans()


def _close_lost(study: optuna.Study, source: Storage) -> None:
    if TARGET_KEY in study.user_attrs or StoredDefinition.is_in(study.user_attrs):
        close_lost(study, source)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # In a loop of the user's own Optuna queues them again, see `hpo_mab.storage._open._retry`.
        optuna.storages.fail_stale_trials(study)


def _refuse_running(study: optuna.Study, source: Storage) -> None:
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        numbers = ", ".join(str(trial.number) for trial in running[:5])
        gone = ""
        if source.is_archive:
            gone = "; if they are gone, first copy the file to a folder that may be written"
        elif not StoredDefinition.is_in(study.user_attrs):
            # Without heartbeats nobody knows whether a trial of `optuna.Study.ask` is lost.
            gone = "; end one that is gone: study.tell(NUMBER, state=optuna.trial.TrialState.FAIL)"
        raise StorageError(
            f"'{study.study_name}' has {len(running)} running trials ({numbers}); copy it when its "
            f"workers have ended{gone}."
        )


def _create_copy(study: optuna.Study, target: Storage, name: str) -> optuna.Study:
    try:
        return optuna.create_study(
            study_name=name, storage=target.optuna, directions=study.directions
        )
    except DuplicatedStudyError:
        raise StorageError(
            f"There is a study '{name}' in {target.shown_url} already; give the copy another name "
            "with --name."
        ) from None


def _copy_content(
    copy: optuna.Study,
    study: optuna.Study,
    source: Storage,
    target: Storage,
    files: Mapping[str, str],
) -> int:
    trials = study.get_trials(deepcopy=False)
    new_ids = {id_of(one): add_copy(copy, _trial_with_files(one, files)) for one in trials}
    # After the trials: curves that no trial refers to are removed as orphans.
    if source.secret_url != target.secret_url:
        source.curves.copy(list(new_ids), target.curves)
    source.examples.copy(id_of(study), target.examples, id_of(copy))
    system = _with_files(storage_of(study).get_study_system_attrs(id_of(study)), files)
    for key, value in _renumbered(system, new_ids):
        storage_of(copy).set_study_system_attr(id_of(copy), key, value)
    # Last: a worker can join the study only when it has a definition.
    for key, value in study.user_attrs.items():
        copy.set_user_attr(key, value)
    return len(new_ids)


def _renumbered(attrs: Mapping[str, Any], ids: Mapping[int, int]) -> Iterator[tuple[str, Any]]:
    """A study's system attributes, notes on trials under the trials' new ids."""
    for key, value in attrs.items():
        note = _TRIAL_NOTE.match(key)
        if note is not None and int(note[1]) in ids:
            yield key.replace(note[0], f"dashboard:{ids[int(note[1])]}:", 1), value
        # The copy has no pages and no verdict yet, and its record of examples has another number.
        elif note is None and key not in (PUBLISHED_KEY, RECORD_KEY) and not _OF_PAIRS.match(key):
            yield key, value
        elif key == PUBLISHED_KEY and "pictured" in value:
            # Without the data its pictures cannot be drawn again.
            yield key, {"pictured": value["pictured"]}


def _copy_artifacts(study: optuna.Study, here: Path, there: Path, ids: dict[str, str]) -> None:
    """Copy the files of a study and its trials; adds the new id of each to ``ids``, first."""
    attrs = [storage_of(study).get_study_system_attrs(id_of(study))]
    attrs += [trial.system_attrs for trial in study.get_trials(deepcopy=False)]
    # The dashboard stores "null" for an artifact that was deleted.
    keys = {key for each in attrs for key, value in each.items() if value != "null"}
    for name in sorted(key.removeprefix(ARTIFACT) for key in keys if key.startswith(ARTIFACT)):
        path = here / name
        # A key may hold a path to another folder.
        if path.parent == here and path.is_file():
            # Another id: both studies may keep their files in one folder, and replace them there.
            ids[name] = str(uuid.uuid4())
            there.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, there / ids[name])


def _with_files(attrs: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """System attributes with the new ids of artifacts."""
    renamed = {}
    for key, value in attrs.items():
        new = ids.get(key.removeprefix(ARTIFACT)) if key.startswith(ARTIFACT) else None
        if new is None:
            renamed[key] = value
        else:
            renamed[f"{ARTIFACT}{new}"] = json.dumps({**json.loads(value), "artifact_id": new})
    return renamed


def _trial_with_files(trial: FrozenTrial, ids: Mapping[str, str]) -> FrozenTrial:
    copied = shallow_copy(trial)
    copied.system_attrs = _with_files(trial.system_attrs, ids)
    return copied
