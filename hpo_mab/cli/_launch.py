"""From the options of ``hpo-mab run`` to what runs the trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hpo_mab._errors import ArgumentError

if TYPE_CHECKING:
    from hpo_mab.search import Launch, StudySpec
    from hpo_mab.storage import Storage

_SQLITE_WORKERS = 2


def launcher(
    spec: StudySpec,
    storage: Storage,
    *,
    workers: int | None,
    ray: str | None,
    gpus_per_worker: float | None,
    quiet: bool,
) -> Launch | None:
    """What runs the trials; None where this process does.

    ``workers=None`` is as many as the machine has room for.

    Raises:
        ArgumentError: Options outside their bounds, or that do not go together.
        StorageError: A database the workers cannot reach.
    """
    if gpus_per_worker is not None and ray is None:
        raise ArgumentError("--gpus-per-worker needs --ray; --slots is for one machine.")
    if workers is None and ray is not None:
        raise ArgumentError("--workers auto counts this machine's cores; with --ray give a number.")
    if workers is None:
        from hpo_mab.workers import room

        training = spec.training
        workers = room(device=training.device, threads=training.threads)
    if ray is None and workers == 1:
        return None
    if storage.is_sqlite and workers > _SQLITE_WORKERS and not quiet:
        typer.echo(
            f"SQLite has one writer at a time: {workers} workers will wait for one another where "
            "trials are short. PostgreSQL serves any number: --storage postgresql://...",
            err=True,
        )
    from hpo_mab.workers import ProcessLauncher, RayLauncher, places

    if ray is not None:
        return RayLauncher(
            storage,
            workers=workers,
            address=ray,
            gpus_per_worker=gpus_per_worker or 0.0,
            data_root=spec.data.root,
        )
    devices = places(workers, device=spec.training.device)
    return ProcessLauncher(storage, devices=devices, data_root=spec.data.root)
