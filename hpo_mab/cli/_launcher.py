"""How ``hpo-mab run`` and ``hpo-mab compare`` share their trials with other processes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt

if TYPE_CHECKING:
    import typer

    from hpo_mab.search import StudySpec
    from hpo_mab.search._runner import Launch
    from hpo_mab.storage import Storage


def launcher(context: typer.Context, spec: StudySpec, storage: Storage) -> Launch | None:
    """What runs trials in other processes; None if this process runs all.

    ``--workers auto`` starts others once they are worth it, where they can reach the database.
    """
    options = context.params
    workers = opt.number_or_auto("--workers", options["workers"])
    ray, gpus_per_worker = options["ray"], options["gpus_per_worker"]
    if gpus_per_worker is not None and ray is None:
        raise ArgumentError(
            "--gpus-per-worker needs --ray. Without Ray, --slots shares a GPU among trials."
        )
    if workers is None and ray is not None:
        raise ArgumentError(
            "--ray needs --workers N, its number of workers: 'auto' counts this machine's cores."
        )
    # This command's values, because the stored definition's may be others.
    values: dict[str, Any] = {"data_root": spec.data.root, "slots": spec.training.slots}
    if (workers == 1 and ray is None) or (workers is None and storage.in_memory):
        return None
    from hpo_mab.workers import ProcessLauncher, RayLauncher
    from hpo_mab.workers._room import later_devices, worker_devices

    device = spec.training.device
    if workers is None:
        later = functools.partial(later_devices, device=device, threads=spec.training.threads)
        return ProcessLauncher(storage, devices=later, **values)
    if ray is not None:
        return RayLauncher(
            storage,
            workers=workers,
            address=ray,
            gpus_per_worker=gpus_per_worker or 0.0,
            device=device,
            threads=spec.training.threads,
            **values,
        )
    # This process has the first.
    _, *devices = worker_devices(workers, device=device)
    return ProcessLauncher(storage, devices=devices, **values)
