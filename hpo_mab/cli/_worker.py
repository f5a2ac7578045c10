"""``hpo-mab worker``: help with a study that exists."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo_mab.cli import _options as opt
from hpo_mab.cli._complete import study_names


def worker(
    study: Annotated[
        str,
        typer.Option(
            help="Name of the study, as hpo-mab studies lists it.", autocompletion=study_names
        ),
    ],
    storage: opt.StorageUrl = "sqlite:///hpo_mab.db",
    device: opt.Device = None,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", hidden=True, help="Stop when standard input closes.")
    ] = False,
) -> None:
    """Run trials of a study that 'hpo-mab run' has made, until it is done.

    Any number of workers on any number of machines may share a study; all they need is its
    storage. Put a URL with a password into HPO_MAB_STORAGE: command lines are public.

    Example: `hpo-mab worker --storage postgresql://me@host/studies --study cifar10-mab-seed0`.
    """
    from hpo_mab.cli._signals import interrupt_at_eof, stoppable

    if until_eof:
        interrupt_at_eof()
    with stoppable():
        from hpo_mab.cli._progress import StudyProgress
        from hpo_mab.search import Target, join_study
        from hpo_mab.storage import Storage, open_study

        opt.silence_optuna()
        store = Storage(storage, create=False)
        trials = Target.load(open_study(store, study)).trials
        with StudyProgress(trials=trials, label=study, quiet=quiet) as progress:
            interrupted = join_study(
                store, study, device=device, data_root=data_root, on_trial=progress
            )
    if interrupted:
        raise typer.Exit(130)
