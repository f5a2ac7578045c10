"""The dashboard as a WSGI application."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna_dashboard import wsgi

from hpo_mab.dashboard._artifacts import artifact_folder, artifact_store

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from hpo_mab.storage import Storage


def application(storage: Storage, *, artifacts: Path | None = None) -> WSGIApplication:
    """Optuna's dashboard with the storage's files, and a study's figures in order of their names.

    Args:
        storage: The database.
        artifacts: Folder of the artifact store; None takes the storage's.
    """
    app: Any = wsgi(
        storage.optuna, artifact_store=artifact_store(artifacts or artifact_folder(storage))
    )
    app.install(_InOrder())
    made: WSGIApplication = app
    return made


class _InOrder:
    """Bottle plugin: left to itself the dashboard sends figures in a Python set's order."""

    name = "figures-in-order"
    api = 2

    def apply(self, view: Callable[..., Any], _route: Any) -> Callable[..., Any]:
        def ordered(*args: Any, **options: Any) -> Any:
            body = view(*args, **options)
            if isinstance(body, dict) and "plotly_graph_objects" in body:
                body["plotly_graph_objects"].sort(key=lambda figure: str(figure["id"]))
            return body

        return ordered
