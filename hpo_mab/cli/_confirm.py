"""``hpo-mab confirm`` trains the best configurations of a study again with other seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._interrupts import stoppable
from hpo_mab.cli import _options as opt
from hpo_mab.cli._options import command_line
from hpo_mab.cli._replay import replay

if TYPE_CHECKING:
    from hpo_mab.search import Confirmation
    from hpo_mab.search._confirm import Candidate


def confirm(
    context: typer.Context,
    study: opt.Study,
    trainings: Annotated[
        int,
        typer.Option(
            callback=opt.within(1),
            help="Train until the best configuration has this many new trainings.",
        ),
    ] = 2,
    max_trainings: Annotated[
        int, typer.Option(callback=opt.within(1), help="Most trainings of this command.")
    ] = 20,
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    device: opt.Device = None,
    data_root: opt.DataRoot = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Train a study's best configurations again with other seeds, to see which is the best.

    The best of many values is partly luck. The best configuration is trained again, and its value
    becomes the mean of its new trainings. Then the one with the highest value is next, until that
    one was trained again --trainings times. Each training is stored at once, so that the same
    command continues. Trials do not change. A trial of a GPU's slots is trained alone here.

    Example: `hpo-mab confirm digits-mab-seed0`.
    """
    from hpo_mab.search import confirm as train_again
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    store = Storage(storage, create=False)
    with stoppable(), opt.user_prints_to_stderr(when=as_json):
        confirmation = train_again(
            store,
            study,
            trainings=trainings,
            max_trainings=max_trainings,
            device=device,
            data_root=data_root,
            on_training=None if quiet or as_json else _print_training,
        )
    if as_json:
        typer.echo(_json(study, confirmation))
    elif not quiet:
        from hpo_mab.cli._output import print_next

        _print(confirmation)
        shown = opt.storage_option(context, store)
        best = confirmation.repeated[0].trial.number
        replayed = f"{command_line(context, replay, shown)} {best} --save best.pt"
        print_next([(replayed, "train that trial again, keep its network")])


def _print_training(candidate: Candidate) -> None:
    from hpo_mab.compare._text import repeats_text

    number, value = candidate.trial.number, candidate.trial.value or 0.0
    repeats = repeats_text(candidate.repeats)
    typer.echo(f"Trial {number}, {value:.2%}: trained again {repeats}", err=True)


def _print(confirmation: Confirmation) -> None:
    from rich.table import Table

    from hpo_mab.cli._output import console
    from hpo_mab.compare._text import repeats_text, trial_text

    table = Table("trial", "value", "trained again", "mean", box=None, padding=(0, 2, 0, 0))
    for candidate in confirmation.repeated:
        trial, repeats = candidate.trial, repeats_text(candidate.repeats)
        table.add_row(trial_text(trial), f"{trial.value:.2%}", repeats, f"{candidate.accuracy:.2%}")
    out, best, deviation = console(), confirmation.repeated[0], confirmation.deviation
    out.print(table)
    out.print()
    error = ""
    if deviation is not None:
        out.print(
            f"Trainings of one configuration differ by {100 * deviation:.2f} points (standard "
            "deviation)."
        )
        error = f", standard error {100 * deviation / math.sqrt(len(best.repeats)):.2f} points"
    out.print(
        f"Best: trial {best.trial.number}, {best.accuracy:.2%} validation accuracy when it is "
        f"trained again{error}. This mean is still a little too high, "
        "because the trial was chosen for it."
    )
    if not confirmation.finished:
        leader = confirmation.candidates[0]
        number = leader.trial.number
        lead = f"trial {number} may be better, with {leader.accuracy:.2%}; "
        out.print(
            f"Not finished: {'' if leader is best else lead}trial {number} was trained again "
            f"{len(leader.repeats)} of {confirmation.trainings} times. The same command continues."
        )


def _json(study: str, confirmation: Confirmation) -> str:
    rows = [
        {
            "trial": candidate.trial.number,
            "validation_accuracy": candidate.trial.value,
            "repeats": list(candidate.repeats),
            "mean": candidate.accuracy,
            "params": dict(candidate.trial.params),
        }
        for candidate in confirmation.repeated
    ]
    facts = {
        "study": study,
        "finished": confirmation.finished,
        "standard_deviation": confirmation.deviation,
        "candidates": rows,
    }
    return opt.json_text(facts)
