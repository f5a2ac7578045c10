"""Learning curves as a file that the dashboard offers for download."""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

from hpo_mab._errors import StorageError
from hpo_mab.storage import folder_beside
from hpo_mab.training import Evaluation

if TYPE_CHECKING:
    from hpo_mab.storage import Storage, StudyRun

CURVES_FILE = "learning-curves.csv"
#: Evaluations from which a study's curves are too many to be read off its pages.
LARGE = 1_000

_VARIABLE = "HPO_MAB_ARTIFACTS"


def artifact_folder(storage: Storage) -> Path:
    """Where a storage's files are kept.

    ``HPO_MAB_ARTIFACTS`` if it is set; beside an SQLite file, named after it; otherwise
    ``hpo_mab_artifacts`` in the working directory.
    """
    return folder_beside(storage, "artifacts")


def artifact_store(folder: Path) -> FileSystemArtifactStore:
    """Optuna's artifact store in a folder, which is made if it is missing.

    Raises:
        StorageError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The artifact folder {folder} cannot be made: {error.strerror}. "
            f"Name another with --artifacts or {_VARIABLE}."
        ) from None
    return FileSystemArtifactStore(folder)


def save_curves(study: optuna.Study, run: StudyRun, folder: Path) -> str:
    """Write all learning curves of a study as a CSV artifact, in place of an earlier one.

    Args:
        study: The study.
        run: The same study, read.
        folder: Folder of the artifact store.

    Returns:
        The artifact's id.
    """
    store = artifact_store(folder)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CURVES_FILE
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(_rows(run))
        for known in get_all_artifact_meta(study):
            if known.filename == CURVES_FILE:
                with path.open("rb") as content:
                    store.write(known.artifact_id, content)
                return known.artifact_id
        return upload_artifact(
            artifact_store=store, file_path=str(path), study_or_trial=study, mimetype="text/csv"
        )


def _rows(run: StudyRun) -> Iterator[list[Any]]:
    names = [field.name for field in dataclasses.fields(Evaluation)]
    yield ["trial", "state", *names]
    for trial in run.trials:
        for evaluation in trial.curve:
            yield [trial.number, trial.state, *(getattr(evaluation, name) for name in names)]
