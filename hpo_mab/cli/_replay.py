"""``hpo-mab replay`` trains a recorded trial again and compares the curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab._interrupts import stoppable
from hpo_mab.cli import _options as opt
from hpo_mab.cli._files import refuse_unwritable, write_file

if TYPE_CHECKING:
    from hpo_mab.search import Replay
    from hpo_mab.storage import Storage

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

    On the same kind of CPU, with the same versions, both are equal bit for bit. Elsewhere and on a
    GPU rounding may differ; set --tolerance. A trial from a slot (--slots) may differ: sums are
    rounded in another order, and the bandits of a stack draw other batches. Exit status 1: the
    curves differ, in accuracies or losses; with --tolerance only accuracies count.

    Studies keep no networks; --save writes that of the trial, also where the curves differ.

    Examples: `hpo-mab replay digits-mab-seed0 7`;
    `hpo-mab replay digits-mab-seed0 best --save best.pt`.
    """
    from hpo_mab.search import replay as train_again
    from hpo_mab.storage import Storage

    with stoppable(), opt.user_prints_to_stderr(when=as_json):
        refuse_unwritable(save)
        number = None if trial == _BEST else int(trial)
        store = Storage(storage, create=False)
        result = train_again(store, study, number, device=device, data_root=data_root)
        changes = [] if result.is_identical else _changes(store, study)
    # Without a tolerance every number must be equal, not only accuracies.
    same = result.is_identical or result.largest_difference <= tolerance > 0
    typer.echo(_replay_json(result, study) if as_json else _replay_text(result, study, changes))
    if save is not None:
        _save(result, save)
    if not same:
        raise typer.Exit(1)


def _save(result: Replay, path: Path) -> None:
    import torch

    if not result.network:
        raise ArgumentError("The replay has diverged, so there is no network to save.")
    file = io.BytesIO()
    torch.save(dict(result.network), file)
    write_file(path, file.getvalue())
    typer.echo(f"Its network is in {path}.", err=True)


def _replay_json(result: Replay, study: str) -> str:
    curves = {"recorded": result.trial.curve, "replayed": result.curve}
    facts = {
        "study": study,
        "trial": result.trial.number,
        "identical": result.is_identical,
        "largest_difference": result.largest_difference,
        "slots": result.slots,
        **{name: [e.accuracy for e in curve] for name, curve in curves.items()},
    }
    return opt.json_text(facts)


#: Parts of a study's environment that may change how numbers are rounded or drawn.
_DECIDING = ("cpu", "gpus", "python", "hpo_mab", "numpy", "torch")


def _changes(store: Storage, study: str) -> list[str]:
    """What is other here than where a study began."""
    from hpo_mab._machine import environment
    from hpo_mab.storage import open_study
    from hpo_mab.storage._definition import StoredDefinition

    began = StoredDefinition.load(open_study(store, study)).environment
    before, here = ({**parts, **parts.get("packages", {})} for parts in (began, environment()))
    differ = [name for name in _DECIDING if name in before and before[name] != here[name]]
    return [f"{name} {_plain(before[name])}, here {_plain(here[name])}" for name in differ]


def _plain(value: Any) -> str:
    return (", ".join(value) if isinstance(value, list) else value) or "none"


def _replay_text(result: Replay, study: str, changes: Sequence[str]) -> str:
    lines = [f"{'examples':>12}  {'recorded':>10}  {'replayed':>10}"]
    for index, point in enumerate(result.trial.curve):
        other = f"{result.curve[index].accuracy:.4%}" if index < len(result.curve) else "diverged"
        lines.append(f"{point.examples:>12,}  {point.accuracy:>10.4%}  {other:>10}")
    if result.is_identical:
        verdict = "is reproduced bit for bit"
    elif math.isinf(result.largest_difference):
        verdict = "diverged before the end of its record"
    elif result.largest_difference == 0:
        verdict = "has the same accuracies, but other losses, perhaps by rounding"
    else:
        verdict = f"differs by up to {result.largest_difference:.4%} in accuracy"
    lines.append(f"Trial {result.trial.number} of {study} {verdict}.")
    if result.slots is not None and not result.is_identical:
        lines.append(
            f"A difference is expected: the trial was one of up to {result.slots} in a stack, with "
            "other rounding than alone, and with mab, hard_mining or augmentation also "
            "other batches."
        )
    if changes:
        lines.append(f"The study began elsewhere: {'; '.join(changes)}.")
    return "\n".join(lines)
