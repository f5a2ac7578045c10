"""A study's files in Optuna's artifact store: learning curves, and pictures of suspicious labels.

The pictures have a note, which lists the same examples in a table.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import optuna
import sqlalchemy as sa
import torch
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna_dashboard.artifact import get_artifact_path

from hpo_mab._errors import StorageError
from hpo_mab._examples import ExampleRecord, labels_digest
from hpo_mab.dashboard._notes import escaped, markdown_table, storage_option
from hpo_mab.data import ImageData
from hpo_mab.storage._open import files_folder
from hpo_mab.storage._optuna import ARTIFACT, id_of, storage_of
from hpo_mab.storage._tables import STUDY_ATTRIBUTES
from hpo_mab.training import Evaluation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hpo_mab.storage import Storage, StudyRun

CURVES_FILE = "learning-curves.csv"
PICTURES_FILE = "suspicious-labels.png"
#: Side of an example's picture, and the gap between two, in pixels.
_SIDE, _GAP = 96, 8
#: From this many evaluations on, a study's curves are also saved as a CSV file.
LARGE = 1_000


class Artifacts(FileSystemArtifactStore):
    """Optuna's store of a storage's files; the folder, see `files_folder`, is made on first use."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._folder = storage, files_folder(storage, "artifacts")
        super().__init__(self._folder)

    def drop_shared(self, study: optuna.Study, artifact_id: str) -> bool:
        """Drop a study's artifact if another study has it: Optuna copies one with its attributes.

        Returns:
            Whether it was dropped; the other study keeps it.
        """
        is_artifact = STUDY_ATTRIBUTES.c.key == f"{ARTIFACT}{artifact_id}"
        is_other = STUDY_ATTRIBUTES.c.study_id != id_of(study)
        with self._storage.optuna.engine.begin() as connection:
            if connection.scalar(sa.select(sa.func.count()).where(is_artifact, is_other)) == 0:
                return False
            connection.execute(STUDY_ATTRIBUTES.delete().where(is_artifact, ~is_other))
        return True

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The artifact folder {self._folder} cannot be made: {error.strerror}. "
                "Name another by HPO_MAB_ARTIFACTS."
            ) from None
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove a file unless it is another study's, too; a missing one must not keep its study.

        Files of trials are removed.
        """
        column = STUDY_ATTRIBUTES.c
        # The dashboard stores "null" for an artifact that was deleted.
        is_held = column.key == f"{ARTIFACT}{artifact_id}", column.value_json != '"null"'
        with self._storage.optuna.engine.begin() as connection:
            # Raises if the database may only be read, which keeps the file, too.
            connection.execute(STUDY_ATTRIBUTES.delete().where(sa.false()))
            if (connection.scalar(sa.select(sa.func.count()).where(*is_held)) or 0) > 1:
                return
        with contextlib.suppress(ArtifactNotFound):
            super().remove(artifact_id)


def save_curves(study: optuna.Study, run: StudyRun, store: Artifacts) -> str:
    """Write all learning curves of a study as a CSV artifact, in place of an earlier one.

    Returns:
        The artifact's id.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CURVES_FILE
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(_curve_rows(run))
        return _save_artifact(study, path, store, "text/csv")


def _save_artifact(study: optuna.Study, path: Path, store: Artifacts, mimetype: str) -> str:
    """Upload a file as an artifact, in place of an earlier one of its name."""
    artifact_id = _stored_file(study, path.name)
    if artifact_id is None or store.drop_shared(study, artifact_id):
        return upload_artifact(
            artifact_store=store, file_path=str(path), study_or_trial=study, mimetype=mimetype
        )
    with path.open("rb") as content:
        store.write(artifact_id, content)
    return artifact_id


def _stored_file(study: optuna.Study, name: str) -> str | None:
    """Id of a study's artifact of that file name; None if there is none."""
    for key, text in storage_of(study).get_study_system_attrs(id_of(study)).items():
        # The dashboard stores "null" for a deleted one, which `get_all_artifact_meta` cannot read.
        artifact = json.loads(text) if key.startswith(ARTIFACT) else None
        if artifact is not None and artifact["filename"] == name:
            return str(artifact["artifact_id"])
    return None


def _curve_rows(run: StudyRun) -> Iterator[list[Any]]:
    names = [field.name for field in dataclasses.fields(Evaluation)]
    yield ["trial", "state", *names]
    for trial in run.trials:
        for evaluation in trial.curve:
            yield [trial.number, trial.state, *(getattr(evaluation, name) for name in names)]


#: Examples in a note.
_LISTED = 8


def listed_examples(record: ExampleRecord) -> list[int]:
    """Places in a study's training part of the examples that its note lists."""
    return [int(row) for row in record.examples[_most_suspicious(record)]]


def _most_suspicious(record: ExampleRecord) -> NDArray[np.int64]:
    return np.argsort(-record.suspicion(), kind="stable")[:_LISTED]


def _predicted(record: ExampleRecord) -> list[int]:
    """Classes that networks predict for the examples of a note; empty if they are not kept."""
    preferred = record.preferred()
    return [] if preferred is None else [int(preferred[row]) for row in _most_suspicious(record)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedImages:
    """The listed examples that a study has a picture of.

    Attributes:
        rows: Their places in the training part.
        labels: Their classes.
        classes: Names of their classes and of those predicted for them, by number.
    """

    rows: list[int]
    labels: list[int]
    classes: dict[str, str]


def examples_note(
    record: ExampleRecord,
    name: str,
    storage: Storage,
    *,
    are_images: bool,
    images: ListedImages | None = None,
    path: str = "",
) -> str:
    """The most suspicious labels by a study's record of examples, in Markdown.

    Args:
        record: What the trials saw.
        name: The study's name.
        storage: Where it is stored, for the command that shows more.
        are_images: Whether the data are images, which the command needs.
        images: The examples listed that a picture shows; None if there is no picture.
        path: Path of the picture.
    """
    scores, first = record.suspicion(), _most_suspicious(record)
    named = {} if images is None else images.classes
    classes = {number: escaped(name) for number, name in named.items()}
    columns = {
        "place in the training part": [str(record.examples[place]) for place in first],
        "label": [] if images is None else [classes[str(label)] for label in images.labels],
        "class that networks predict": [
            # A number alone might be the name of another class.
            classes.get(str(number), f"number {number}" if number >= 0 else "")
            for number in _predicted(record)
        ],
        "score": [f"{scores[place]:.2f}" for place in first],
        "visits": [f"{record.counts.visits[place]:,.0f}" for place in first],
    }
    columns = {head: cells for head, cells in columns.items() if cells}
    head, rows = tuple(columns), list(zip(*columns.values(), strict=True))
    # The dashboard's Markdown shows images of artifacts, but not of `data:` URLs.
    parts = [
        f"## Suspicious labels\n\n{record.summary()} The most suspicious:",
        markdown_table(head, rows),
    ]
    if images is not None:
        parts[1:1] = [
            f"![the examples of the table, in its order]({path})",
            "From the left, the examples of the table in its order.",
        ]
    if are_images:
        command = f"hpo-mab examples {shlex.quote(name)}{storage_option(storage)}"
        parts.append(
            f"`{command} --html examples.html` shows more as pictures, and `--drop N` leaves some "
            "out."
        )
    return "\n\n".join(parts)


def draw_listed(
    study: optuna.Study,
    record: ExampleRecord,
    images: ImageData | None,
    store: Artifacts,
    *,
    before: ListedImages | None,
) -> ListedImages | None:
    """Draw the examples that a note lists; returns what is drawn."""
    listed = listed_examples(record)
    if images is None:
        same = before is not None and before.rows == listed
        # The dashboard may have deleted the picture.
        return before if same and pictures_path(study) else None
    if images.channels not in (1, 3):
        return None
    if labels_digest(images.labels.cpu().numpy()) != record.labels:
        return None
    rows = torch.tensor(listed, device=images.device)
    try:
        save_pictures(study, list(images.gather(rows).cpu()), store)
    except (OSError, StorageError):
        # The note without pictures is better than none.
        return None
    labels = [int(label) for label in images.labels[rows]]
    # Not all names: those of many classes exceed a text column of MySQL.
    shown = [number for number in (*labels, *_predicted(record)) if number >= 0]
    classes = {str(number): images.classes[number] for number in shown}
    return ListedImages(rows=listed, labels=labels, classes=classes)


def save_pictures(study: optuna.Study, pictures: Sequence[Tensor], store: Artifacts) -> None:
    """Write images in a row as one PNG artifact, in place of an earlier one.

    They are grey or RGB, uint8 [channels, height, width] on the CPU.
    """
    from PIL import Image

    row = Image.new("RGB", (len(pictures) * (_SIDE + _GAP) - _GAP, _SIDE), "white")
    for number, picture in enumerate(pictures):
        pixels = picture.expand(3, -1, -1).permute(1, 2, 0).numpy()
        # Enlarged without smoothing: the images may have a few pixels only.
        tile = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        row.paste(tile, (number * (_SIDE + _GAP), 0))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / PICTURES_FILE
        row.save(path)
        _save_artifact(study, path, store, "image/png")


def pictures_path(study: optuna.Study) -> str:
    """The path under which the dashboard serves a study's pictures; empty if it has none."""
    artifact_id = _stored_file(study, PICTURES_FILE)
    return "" if artifact_id is None else str(get_artifact_path(study, artifact_id))
