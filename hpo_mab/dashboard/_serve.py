"""The dashboard as a WSGI application, its port, and the learning curves it offers for download."""

from __future__ import annotations

import csv
import dataclasses
import errno
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from bottle import HTTPResponse, request
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna_dashboard import wsgi
from optuna_dashboard.artifact import get_artifact_path

from hpo_mab._attributes import DEFINITION_KEY, EVIDENCE_KEY
from hpo_mab._errors import ArgumentError, HpoMabError, StorageError
from hpo_mab.storage import files_folder
from hpo_mab.training import Evaluation

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from torch import Tensor

    from hpo_mab.storage import Storage, StudyRun

CURVES_FILE = "learning-curves.csv"
PICTURES_FILE = "suspicious-labels.png"
#: Width of a picture in it, and of the gap between two, in pixels.
_SIDE, _GAP = 96, 8
#: Evaluations from which a study's curves are too many to be read off its pages.
LARGE = 1_000

_VARIABLE = "HPO_MAB_ARTIFACTS"


def artifact_folder(storage: Storage) -> Path:
    """Where a storage's files are kept.

    ``HPO_MAB_ARTIFACTS`` if it is set; next to an SQLite file, named after it; otherwise
    ``hpo_mab_artifacts`` in the working directory.
    """
    return files_folder(storage, "artifacts")


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
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CURVES_FILE
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(_rows(run))
        return _save(study, path, folder, "text/csv")


def save_pictures(study: optuna.Study, pictures: Sequence[Tensor], folder: Path) -> None:
    """Write images in a row as one PNG artifact, in place of an earlier one.

    Args:
        study: The study.
        pictures: Grey or RGB, uint8 [channels, height, width] on the CPU.
        folder: Folder of the artifact store.
    """
    from PIL import Image

    row = Image.new("RGB", (len(pictures) * (_SIDE + _GAP) - _GAP, _SIDE), "white")
    for number, picture in enumerate(pictures):
        pixels = picture.expand(3, -1, -1).permute(1, 2, 0).numpy()
        tile = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        row.paste(tile, (number * (_SIDE + _GAP), 0))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / PICTURES_FILE
        row.save(path)
        _save(study, path, folder, "image/png")


def pictures_path(study: optuna.Study) -> str:
    """The path under which the dashboard serves a study's pictures; empty if it has none."""
    for known in get_all_artifact_meta(study):
        if known.filename == PICTURES_FILE:
            return str(get_artifact_path(study, known.artifact_id))
    return ""


def _save(study: optuna.Study, path: Path, folder: Path, mimetype: str) -> str:
    """Upload a file as an artifact, in place of an earlier one of its name."""
    store = artifact_store(folder)
    for known in get_all_artifact_meta(study):
        if known.filename == path.name:
            with path.open("rb") as content:
                store.write(known.artifact_id, content)
            return known.artifact_id
    return upload_artifact(
        artifact_store=store, file_path=str(path), study_or_trial=study, mimetype=mimetype
    )


def _rows(run: StudyRun) -> Iterator[list[Any]]:
    names = [field.name for field in dataclasses.fields(Evaluation)]
    yield ["trial", "state", *names]
    for trial in run.trials:
        for evaluation in trial.curve:
            yield [trial.number, trial.state, *(getattr(evaluation, name) for name in names)]


#: Lines in the dashboard's figure of reports; each has its entry in the legend, too.
_LINES = 200
_COMPARISON = "/hpo-mab/compare"
#: User attributes that the note has in words; the definition alone fills the table.
_SAID = (DEFINITION_KEY, EVIDENCE_KEY)
#: Our figures first, then the dashboard's own; one column on a telephone.
_STYLE = """<style>
.MuiBox-root:has(> .MuiGrid-container > * [id^="user-defined-plot:"]) {
  display: flex; flex-flow: row wrap; }
.MuiBox-root:has(> .MuiGrid-container > * [id^="user-defined-plot:"]) > * { flex-basis: 100%; }
.MuiGrid-container:has(> * [id^="user-defined-plot:"]) { display: contents; }
.MuiGrid-container:has(> * [id^="user-defined-plot:"]) > * {
  flex: 0 0 50%; max-width: 50%; box-sizing: border-box; margin: 0; padding: 8px; }
.MuiGrid-container > :has([id^="user-defined-plot:"]) { order: -1; }
main, main > *, .MuiBox-root, .MuiCard-root { min-width: 0; }
.MuiCard-root table:not(.MuiTable-root) { display: block; overflow-x: auto; }
@media (max-width: 700px) {
  .MuiGrid-container:has(> * [id^="user-defined-plot:"]) > *,
  .MuiGrid-container > .MuiGrid-grid-xs-6 { flex-basis: 100%; max-width: 100%; }
}
</style></head>"""


def application(storage: Storage, *, artifacts: Path | None = None) -> WSGIApplication:
    """Optuna's dashboard with the storage's files, our figures first, and pages of comparisons.

    Of a study of many trials, the browser gets the reports of about 200, evenly chosen. It needs
    seconds to draw 1,000 lines. The stored definition and evidence are left out of the study's
    attributes, because its note has them in words.

    Args:
        storage: The database.
        artifacts: Folder of the artifact store; None takes the storage's.
    """
    app: Any = wsgi(
        storage.optuna, artifact_store=artifact_store(artifacts or artifact_folder(storage))
    )
    app.install(_StudyPage())
    app.route(_COMPARISON, callback=lambda: _comparison_page(storage))
    made: WSGIApplication = app
    return made


def comparison_path(study_ids: Iterable[int]) -> str:
    """Path of the page that compares studies: verdict, table and figures."""
    return f"{_COMPARISON}?ids={','.join(map(str, study_ids))}"


def _comparison_page(storage: Storage) -> HTTPResponse:
    """The report of the studies that the request names by their ids, as they are now."""
    from hpo_mab.compare import report_html, stored_comparison, summarise

    ids = str(request.query.get("ids", "")).split(",")
    try:
        names = [storage.optuna.get_study_name_from_id(int(text)) for text in ids]
        found = stored_comparison(names, storages=[storage.secret_url])
        summary = summarise(found.runs, reference=found.reference, retrained=found.retrained)
    except HpoMabError as error:
        return _plain(400, str(error))
    except (KeyError, ValueError):
        shown = f"{_COMPARISON}?ids=1,2"
        return _plain(404, f"ids must be ids of stored studies, as in {shown}.")
    title = ", ".join(dict.fromkeys(run.title for run in found.runs))
    page = report_html(found.runs, summary, title=title, record=dict(found.environment))
    return HTTPResponse(page, 200, {"Content-Type": "text/html; charset=utf-8"})


def _plain(status: int, text: str) -> HTTPResponse:
    return HTTPResponse(text, status, {"Content-Type": "text/plain; charset=utf-8"})


class _StudyPage:
    """Bottle plugin: orders a study's figures, and thins what its page shows.

    Without it the dashboard sends figures in a Python set's order, and every report.
    """

    name = "study-page"
    api = 2

    def apply(self, view: Callable[..., Any], _route: Any) -> Callable[..., Any]:
        def changed(*args: Any, **options: Any) -> Any:
            body = view(*args, **options)
            if isinstance(body, HTTPResponse) and hasattr(body.body, "read"):
                return _styled(body)
            if isinstance(body, dict) and "plotly_graph_objects" in body:
                body["plotly_graph_objects"].sort(key=lambda figure: str(figure["id"]))
                body["user_attrs"] = [a for a in body["user_attrs"] if a["key"] not in _SAID]
                _thin_reports(body["trials"])
            return body

        return changed


def _styled(response: HTTPResponse) -> HTTPResponse:
    """The dashboard's page with our style; other files as they are."""
    if not str(response.content_type).startswith("text/html"):
        return response
    with response.body as file:
        text = file.read().decode("utf-8").replace("</head>", _STYLE, 1)
    kept = {"Content-Security-Policy": response.get_header("Content-Security-Policy", "")}
    headers = {key: value for key, value in kept.items() if value}
    # Without a date, so that browsers request it again.
    return HTTPResponse(text, 200, {"Content-Type": "text/html; charset=utf-8", **headers})


def _thin_reports(trials: list[dict[str, Any]]) -> None:
    """Keep the reports of some trials, the same ones however many are requested at once."""
    every = 1 + max((trial["number"] for trial in trials), default=0) // _LINES
    for trial in trials:
        # The page of a running trial may be open.
        if trial["number"] % every and trial["state"] != "Running":
            trial["intermediate_values"] = []


def free_port(host: str, port: int) -> int:
    """``port`` if it is free, else 0, with which the system chooses one.

    Raises:
        ArgumentError: The address is not of this machine.
    """
    mistake = f"--host must be an address of this machine, such as 127.0.0.1, got {host!r}."
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except socket.gaierror:
        raise ArgumentError(mistake) from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ArgumentError(mistake) from None
        return 0
    return port
