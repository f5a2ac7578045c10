"""The server of Optuna's dashboard, with our figures first and pages of comparisons."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from wsgiref import simple_server

from bottle import HTTPResponse, request
from optuna_dashboard import wsgi

from hpo_mab._attributes import DEFINITION_KEY, EVIDENCE_KEY, PRUNED_KEY
from hpo_mab._errors import ArgumentError, HpoMabError
from hpo_mab.dashboard._files import Artifacts
from hpo_mab.dashboard._notes import pruning_note

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from hpo_mab.storage import Storage

#: Lines in the dashboard's figure of reports; each has its entry in the legend, too.
_LINES = 200
_COMPARISON = "/hpo-mab/compare"
#: What a file of a study may do when it is opened as a page.
_SANDBOX = "sandbox allow-scripts allow-downloads allow-popups"
#: The usual addresses that only this machine reaches, and their name.
_LOCAL = ("127.0.0.1", "::1", "localhost")
#: User attributes that the study's note has in words; the definition alone fills the table.
_IN_NOTE = (DEFINITION_KEY, EVIDENCE_KEY)
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


def application(storage: Storage) -> WSGIApplication:
    """Optuna's dashboard with the storage's files, our figures first, and pages of comparisons.

    Of a study of many trials, the browser gets the reports of 100 to 200, evenly chosen. It needs
    seconds to draw 1,000 lines. The stored definition and evidence are left out of the study's
    attributes, because its note has them in words.

    Args:
        storage: The database.
    """
    app: Any = wsgi(storage.optuna, artifact_store=Artifacts(storage))
    app.install(_StudyPage())
    app.route(_COMPARISON, callback=lambda: _comparison_page(storage))
    made: WSGIApplication = app
    return made


def comparison_path(studies: Iterable[str], *, reference: str) -> str:
    """Path of the page that compares studies with those of an arm: verdict, table and figures."""
    named = [("study", name) for name in studies]
    return f"{_COMPARISON}?{urlencode([*named, ('reference', reference)])}"


def _comparison_page(storage: Storage) -> HTTPResponse:
    """The report of the studies that the request names, as they are now."""
    from hpo_mab.compare import report_html
    from hpo_mab.compare._stored import comparison_of

    query = request.query.decode()
    names = query.getall("study")
    try:
        if not names:
            raise ArgumentError(f"study must be given, as in {_COMPARISON}?study=ONE&study=OTHER.")
        comparison = comparison_of(storage, names, reference=query.get("reference"))
        page, status, kind = report_html(comparison, comparison.summarise()), 200, "html"
    except HpoMabError as error:
        page, status, kind = str(error), 400, "plain"
    return HTTPResponse(page, status, {"Content-Type": f"text/{kind}; charset=utf-8"})


class _StudyPage:
    """Bottle plugin: changes what the dashboard sends.

    It orders a study's figures, which otherwise are in a Python set's order, and thins reports. A
    pruned trial without a note gets one with the reason. Files of a study are sandboxed.
    """

    name = "study-page"
    api = 2

    def apply(self, view: Callable[..., Any], route: Any) -> Callable[..., Any]:
        # Not an HTML file among a study's artifacts.
        is_page = str(route.rule).startswith("/dashboard")
        is_artifact = str(route.rule).startswith("/artifacts")

        def changed(*args: Any, **options: Any) -> Any:
            body = view(*args, **options)
            if is_page and isinstance(body, HTTPResponse) and hasattr(body.body, "read"):
                return _with_style(body)
            if is_artifact and isinstance(body, HTTPResponse):
                # Scripts of an HTML file run, but as those of another site.
                body.set_header("Content-Security-Policy", _SANDBOX)
            if isinstance(body, dict) and "plotly_graph_objects" in body:
                body["plotly_graph_objects"].sort(key=lambda figure: str(figure["id"]))
                body["user_attrs"] = [a for a in body["user_attrs"] if a["key"] not in _IN_NOTE]
                _thin_reports(body["trials"])
                _add_reasons(body["trials"])
            return body

        return changed


def _with_style(response: HTTPResponse) -> HTTPResponse:
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
    """Keep the reports of every n-th trial by number, and of running trials."""
    # By number, because the dashboard may request the trials in parts.
    every = 1 + max((trial["number"] for trial in trials), default=0) // _LINES
    for trial in trials:
        # The page of a running trial may be open.
        if trial["number"] % every and trial["state"] != "Running":
            trial["intermediate_values"] = []


def _add_reasons(trials: Iterable[dict[str, Any]]) -> None:
    """Show why trials were pruned, in place of empty notes; a note that is saved replaces it."""
    for trial in trials:
        if trial["state"] == "Pruned" and not trial["note"]["body"]:
            attrs = {each["key"]: each["value"] for each in trial["user_attrs"]}
            # The dashboard cuts JSON of more than 1,024 characters off. A record of another version
            # may lack a key, which must not cost the page.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if PRUNED_KEY in attrs:
                    attrs[PRUNED_KEY] = json.loads(attrs[PRUNED_KEY])
                trial["note"]["body"] = pruning_note(attrs)


class _QuietHandler(simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: these are requests of the user's own browser."""


class _ThreadedServer(ThreadingMixIn, simple_server.WSGIServer):
    """Browsers open idle connections, which would block a server of one thread."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # On Windows it would share a port that is in use.

    def __init__(self, address: Any, handler: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


def make_server(app: WSGIApplication, *, host: str, port: int) -> simple_server.WSGIServer:
    """A server that listens, and answers requests once its ``serve_forever`` is called.

    If the port is in use, the system chooses a free one.
    """
    refused = ArgumentError(
        f"--host must be an address of this machine, such as 127.0.0.1, got {host!r}."
    )
    if not host:
        # Python would listen on all addresses.
        raise refused
    if host in _LOCAL:
        app = _with_local_names(app)
    try:
        return _listen(app, host, port)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise refused from None
        if error.errno != errno.EADDRINUSE:
            raise ArgumentError(f"--port {port} cannot be used: {error.strerror}.") from None
        return _listen(app, host, 0)


def _with_local_names(app: WSGIApplication) -> WSGIApplication:
    """The application; it refuses requests to other names than those of `_LOCAL`.

    The owner of another name can make it resolve to this machine (DNS rebinding). To a browser, a
    page under that name and the dashboard would then be the same site.
    """

    def checked(environ: Any, start: Any) -> Any:
        try:
            name = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname
        except ValueError:
            name = None
        if name in _LOCAL:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Open the dashboard as localhost or 127.0.0.1; a proxy must request it so, too."]

    return checked


def _listen(app: WSGIApplication, host: str, port: int) -> simple_server.WSGIServer:
    return simple_server.make_server(host, port, app, _ThreadedServer, handler_class=_QuietHandler)
