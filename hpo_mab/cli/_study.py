"""The commands on one study that exists: ``worker``, ``replay`` and ``copy``."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab._interrupts import interrupt_at_eof, stoppable
from hpo_mab.cli import _options as opt
from hpo_mab.cli._files import refuse_unwritable, write_file
from hpo_mab.cli._options import study_names

if TYPE_CHECKING:
    from hpo_mab.search import Replay


def worker(
    study: Annotated[
        str,
        typer.Option(
            help="Name of the study; hpo-mab studies lists them.", autocompletion=study_names
        ),
    ],
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

    Example: `hpo-mab worker --storage postgresql://me@host/studies --study cifar10-auto-seed0`.
    """
    with stoppable():
        if until_eof:
            interrupt_at_eof()
        from hpo_mab.cli._progress import StudyProgress
        from hpo_mab.search import join_study
        from hpo_mab.search._target import Target
        from hpo_mab.storage import Storage, open_study

        opt.silence_optuna()
        store = Storage(storage, create=False)
        target = Target.load(open_study(store, study))
        with StudyProgress(
            trials=target.trials,
            label=study,
            quiet=quiet,
            curves=store.curves,
            limited=target.total is not None,
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
    if interrupted:
        raise typer.Exit(130)


#: In place of a trial's number.
_BEST = "best"


def _trial_number(given: str) -> str:
    if given != _BEST and not given.isdecimal():
        raise typer.BadParameter(f"must be a trial's number or '{_BEST}', got '{given}'")
    return given


def replay(
    study: opt.Study,
    trial: Annotated[
        str,
        typer.Argument(
            callback=_trial_number,
            help="Number of the trial, or 'best'. After hpo-mab confirm, a trial's value is the "
            "mean of its new trainings if it has any.",
        ),
    ],
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    device: opt.Device = None,
    data_root: opt.DataRoot = None,
    tolerance: Annotated[
        float,
        typer.Option(
            callback=opt.within(0), help="Accuracies that differ by at most this count as equal."
        ),
    ] = 0.0,
    save: Annotated[
        Path | None,
        typer.Option(
            help="File to write the trained network to; hpo_mab.search.load_network reads it."
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Train a recorded trial again, alone, and compare its learning curve with the record.

    On a CPU both are equal bit for bit. On a GPU rounding may differ; set --tolerance. A trial from
    a slot (--slots) may differ: sums are rounded in another order, and the bandits of a stack draw
    other batches. Exit status 1: the curves differ.

    Studies keep no networks; --save writes that of the trial, also where the curves differ.

    Examples: `hpo-mab replay digits-mab-seed0 7`;
    `hpo-mab replay digits-mab-seed0 best --save best.pt`.
    """
    from hpo_mab.search import replay as train_again
    from hpo_mab.storage import Storage

    with stoppable(), opt.prints_aside(as_json):
        refuse_unwritable(save)
        number = None if trial == _BEST else int(trial)
        found = train_again(
            Storage(storage, create=False), study, number, device=device, data_root=data_root
        )
    # Without a tolerance every figure must be equal, not only accuracies.
    same = found.is_identical or found.largest_difference <= tolerance > 0
    typer.echo(_replay_json(found, study) if as_json else _replay_text(found, study))
    if save is not None:
        _save(found, save)
    if not same:
        raise typer.Exit(1)


def _save(found: Replay, path: Path) -> None:
    import torch

    if not found.network:
        raise ArgumentError("The replay has diverged, so there is no network to save.")
    file = io.BytesIO()
    torch.save(dict(found.network), file)
    write_file(path, file.getvalue())
    typer.echo(f"Its network is in {path}.", err=True)


def _replay_json(found: Replay, study: str) -> str:
    curves = {"recorded": found.trial.curve, "replayed": found.curve}
    facts = {
        "study": study,
        "trial": found.trial.number,
        "identical": found.is_identical,
        "largest_difference": found.largest_difference,
        "slots": found.slots,
        **{name: [e.accuracy for e in curve] for name, curve in curves.items()},
    }
    return opt.json_text(facts)


def _replay_text(found: Replay, study: str) -> str:
    lines = [f"{'examples':>12}  {'recorded':>10}  {'replayed':>10}"]
    for index, one in enumerate(found.trial.curve):
        other = f"{found.curve[index].accuracy:.4%}" if index < len(found.curve) else "diverged"
        lines.append(f"{one.examples:>12,}  {one.accuracy:>10.4%}  {other:>10}")
    if found.is_identical:
        verdict = "is reproduced bit for bit"
    elif math.isinf(found.largest_difference):
        verdict = "diverged before the end of its record"
    else:
        verdict = f"differs by up to {found.largest_difference:.2%} in accuracy"
    lines.append(f"Trial {found.trial.number} of {study} {verdict}.")
    if found.slots is not None and not found.is_identical:
        lines.append(
            f"A difference is expected: the trial was one of up to {found.slots} in a stack, with "
            "other rounding than alone, and with mab, hard_mining or augmentation also "
            "other batches."
        )
    return "\n".join(lines)


def copy(
    study: opt.Study,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Database URL or path of the copy; default: the same database."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the copy; default: the study's name.")
    ] = None,
    move: Annotated[
        bool,
        typer.Option(
            "--move",
            help="Delete the study once the copy is complete; files of its artifacts stay.",
        ),
    ] = False,
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    as_json: opt.Json = False,
) -> None:
    """Copy or move a study with its trials, curves, record of examples, notes and artifacts.

    Optuna's own `copy_study` does not copy the learning curves to another database.

    Examples:

    ```
    hpo-mab copy digits-mab-seed0 --to sqlite:///archive.db
    hpo-mab copy digits-mab-seed0 --to postgresql://me@host/studies --move
    hpo-mab copy digits-mab-seed0 --name before
    ```
    """
    from hpo_mab.search import copy_study
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    source = Storage(storage, create=False)
    target = source if to is None else Storage(to)
    if target.in_memory:
        raise ArgumentError(f"--to must be a file or a server, got {to}: the copy would be lost.")
    with stoppable():
        copied = copy_study(source, study, target, to_name=name, move=move)
    if as_json:
        typer.echo(opt.json_text({**dataclasses.asdict(copied), "moved": move}))
        return
    done = "Moved" if move else "Copied"
    typer.echo(
        f"{done} '{study}' to '{copied.name}' in {target.shown_url}: {copied.trials} trials, "
        f"{copied.curves} learning curves."
    )
