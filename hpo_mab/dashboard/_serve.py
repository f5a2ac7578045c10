"""The dashboard as a WSGI application."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna_dashboard import wsgi

from hpo_mab.dashboard._artifacts import artifact_folder, artifact_store

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from hpo_mab.storage import Storage

#: Lines in the dashboard's figure of reports; each has its entry in the legend, too.
_LINES = 200


def application(storage: Storage, *, artifacts: Path | None = None) -> WSGIApplication:
    """Optuna's dashboard with the storage's files, and a study's figures in order of their names.

    Of a study of many trials, it is sent the reports of about 200 trials, evenly chosen: to
    draw a line for each of 1,000 takes a browser seconds.

    Args:
        storage: The database.
        artifacts: Folder of the artifact store; None takes the storage's.
    """
    app: Any = wsgi(
        storage.optuna, artifact_store=artifact_store(artifacts or artifact_folder(storage))
    )
    app.install(_StudyPage())
    made: WSGIApplication = app
    return made


def comparison_path(study_ids: Iterable[int]) -> str:
    """Path of the page that shows studies side by side."""
    return f"/dashboard/compare-studies?ids={','.join(map(str, study_ids))}"


class _StudyPage:
    """Bottle plugin: orders a study's figures, and thins the reports of its trials.

    Left to itself the dashboard sends figures in a Python set's order, and every report.
    """

    name = "study-page"
    api = 2

    def apply(self, view: Callable[..., Any], _route: Any) -> Callable[..., Any]:
        def changed(*args: Any, **options: Any) -> Any:
            body = view(*args, **options)
            if isinstance(body, dict) and "plotly_graph_objects" in body:
                body["plotly_graph_objects"].sort(key=lambda figure: str(figure["id"]))
                _thin_reports(body["trials"])
            return body

        return changed


def _thin_reports(trials: list[dict[str, Any]]) -> None:
    """Leave the reports of some trials, the same ones however many are asked for at once."""
    every = 1 + max((trial["number"] for trial in trials), default=0) // _LINES
    for trial in trials:
        # Of a running one somebody may be watching the page.
        if trial["number"] % every and trial["state"] != "Running":
            trial["intermediate_values"] = []
