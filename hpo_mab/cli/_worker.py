"""``hpo-mab worker`` runs trials of a stored study."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo_mab._interrupts import interrupt_at_eof, stoppable
from hpo_mab.cli import _options as opt


def worker(
    study: opt.Study,
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    device: opt.Device = None,
    slots: opt.Slots = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="How many workers share the study. With slots = auto each trains 1/N of the "
            "trials that may run at a time.",
            callback=opt.within(1),
        ),
    ] = 1,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", hidden=True, help="Stop when standard input closes.")
    ] = False,
) -> None:
    """Run trials of a stored study until it is complete.

    Any number of workers, on any number of machines, can share a study; they need its storage and
    its data. Put a URL with a password into HPO_MAB_STORAGE: other users can read command lines.

    Example: `hpo-mab worker cifar10-auto-seed0 --storage postgresql://me@host/studies`.
    """
    with stoppable():
        if until_eof:
            interrupt_at_eof()
        from hpo_mab.cli._progress import StudyProgress
        from hpo_mab.search._runner import join_study
        from hpo_mab.search._target import StudyTarget
        from hpo_mab.storage import Storage, open_study

        opt.silence_optuna()
        store = Storage(storage, create=False)
        target = StudyTarget.load(joined := open_study(store, study))
        with StudyProgress(
            trials=target.trials, label=study, quiet=quiet, curves=store.curves
        ) as progress:
            interrupted = join_study(
                store,
                study,
                device=device,
                data_root=data_root,
                slots=None if slots is None else opt.slots_of(slots),
                workers=workers,
                on_trial=progress,
            )
            progress.over(joined)
    if interrupted:
        raise typer.Exit(130)
