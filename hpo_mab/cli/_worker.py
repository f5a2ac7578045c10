"""``hpo-mab worker``: help with a study that exists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab.cli import _options as opt
from hpo_mab.cli._complete import study_names

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


def worker(
    study: Annotated[
        str,
        typer.Option(
            help="Name of the study, as hpo-mab studies lists it.", autocompletion=study_names
        ),
    ],
    storage: opt.StorageUrl = "sqlite:///hpo_mab.db",
    device: opt.Device = None,
    slots: opt.Slots = None,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
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
        target = Target.load(open_study(store, study)).trials
        here: list[FrozenTrial] = []
        with StudyProgress(trials=target, label=study, quiet=quiet or as_json) as progress:

            def on_trial(joined: optuna.Study, trial: FrozenTrial) -> None:
                here.append(trial)
                progress(joined, trial)

            interrupted = join_study(
                store,
                study,
                device=device,
                data_root=data_root,
                slots=None if slots is None else opt.slot_count(slots),
                on_trial=on_trial,
            )
    if as_json:
        typer.echo(_json(study, target, here, interrupted=interrupted))
    if interrupted:
        raise typer.Exit(130)


def _json(study: str, target: int, here: Sequence[FrozenTrial], *, interrupted: bool) -> str:
    """What this worker has done; the study as a whole is what ``run`` and ``report`` tell."""
    from hpo_mab.search._plan import Plan

    facts = {
        "study": study,
        "target": target,
        "trials": Plan(here).counts(twins=True),
        "numbers": [trial.number for trial in here],
        "interrupted": interrupted,
    }
    return json.dumps(facts, indent=1)
