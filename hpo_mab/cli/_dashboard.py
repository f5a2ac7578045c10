"""``hpo-mab dashboard``: Optuna's dashboard on a study database."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt

PORT = 8080


def dashboard(
    storage: opt.StorageUrl = "sqlite:///hpo_mab.db",
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Other machines can reach all but loopback."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            callback=opt.within(0, 65535), help="Port; if it is in use, a free one is chosen."
        ),
    ] = PORT,
    artifacts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the studies' files, e.g. long learning curves; default: next to the "
            "database.",
        ),
    ] = None,
) -> None:
    """Serve the Optuna dashboard of the storage; Ctrl-C ends it.

    Notes and figures of studies with new trials are updated first.

    Examples:

    ```
    hpo-mab dashboard
    hpo-mab dashboard --storage sqlite:///studies.db --port 9000
    ```
    """
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from hpo_mab.cli._output import warn_unpublished
    from hpo_mab.dashboard import application, refresh
    from hpo_mab.storage import Storage

    class QuietHandler(WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: these are requests of the user's own browser."""

    class ThreadedServer(ThreadingMixIn, WSGIServer):
        """Browsers open idle connections, which would block a server of one thread."""

        daemon_threads = True

    opt.silence_optuna()
    store = Storage(storage, create=False)
    # This opens the database: a broken one is reported as such, not as a failure to write notes.
    pages = application(store, artifacts=artifacts)
    warn_unpublished(refresh(store, artifacts=artifacts))
    server = make_server(
        host, _free_port(host, port), pages, ThreadedServer, handler_class=QuietHandler
    )
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"Optuna dashboard on {store.shown_url}: http://{shown}:{server.server_port}/")
    typer.echo("Ctrl-C ends it.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()
        store.close()


def _free_port(host: str, port: int) -> int:
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
