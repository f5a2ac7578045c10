"""``hpo-mab dashboard`` serves the Optuna dashboard with our notes and figures."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from hpo_mab.cli import _options as opt

PORT = 8080


def dashboard(
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; with any but 127.0.0.1, everyone on the network can change "
            "and delete studies."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            callback=opt.within(0, 65535), help="Port; if it is in use, a free one is chosen."
        ),
    ] = PORT,
) -> None:
    """Serve the Optuna dashboard of the storage; Ctrl-C ends it.

    Notes and figures of studies with new trials are updated first.

    Examples:

    ```
    hpo-mab dashboard
    hpo-mab dashboard --storage sqlite:///studies.db --port 9000
    ```
    """
    from hpo_mab.cli._output import warn_unpublished
    from hpo_mab.dashboard import application
    from hpo_mab.dashboard._publish import refresh
    from hpo_mab.dashboard._serve import make_server
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    store = Storage(storage, create=False)
    # Before the notes are written: a database or an address that cannot be opened is named first.
    pages = application(store)
    server = make_server(pages, host=host, port=port)
    text = "Updating notes and figures of studies with new trials; many take minutes ..."
    # Once, however many studies there are.
    announce = functools.cache(lambda: typer.echo(text, err=True))
    # In a URL an IPv6 address has brackets.
    shown = f"[{host}]" if ":" in host else host
    try:
        warn_unpublished(refresh(store, on_news=announce))
        typer.echo(f"Optuna dashboard on {store.shown_url}: http://{shown}:{server.server_port}/")
        typer.echo("Ctrl-C ends it.")
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()
        store.close()
