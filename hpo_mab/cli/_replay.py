"""``hpo-mab replay``: train a recorded trial again and compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab.cli import _options as opt
from hpo_mab.cli._complete import study_names

if TYPE_CHECKING:
    from hpo_mab.search import Replay


def replay(
    study: Annotated[
        str,
        typer.Argument(
            help="Name of the study, as hpo-mab studies lists it.", autocompletion=study_names
        ),
    ],
    trial: Annotated[int, typer.Argument(help="Number of the trial.")],
    storage: opt.StorageUrl = "sqlite:///hpo_mab.db",
    device: opt.Device = None,
    data_root: opt.DataRoot = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="Difference of accuracies that still counts as the same."),
    ] = 0.0,
    as_json: opt.Json = False,
) -> None:
    """Train one recorded trial again, alone, and compare its learning curve with the record.

    On a CPU both are the same bit for bit; on a GPU sums may be taken in another order, for which
    --tolerance allows. Exit status 1 means that they differ.

    Example: `hpo-mab replay digits-mab-seed0 7`.
    """
    from hpo_mab.cli._signals import stoppable
    from hpo_mab.search import replay as train_again
    from hpo_mab.storage import Storage

    with stoppable():
        found = train_again(
            Storage(storage, create=False), study, trial, device=device, data_root=data_root
        )
    same = found.is_identical or found.largest_difference <= tolerance > 0
    typer.echo(_json(found, study) if as_json else _text(found, study))
    if not same:
        raise typer.Exit(1)


def _json(found: Replay, study: str) -> str:
    curves = {"recorded": found.trial.curve, "replayed": found.curve}
    facts = {
        "study": study,
        "trial": found.trial.number,
        "identical": found.is_identical,
        "largest_difference": found.largest_difference,
        **{name: [e.accuracy for e in curve] for name, curve in curves.items()},
    }
    return json.dumps(facts, indent=1)


def _text(found: Replay, study: str) -> str:
    lines = [f"{'examples':>12}  {'recorded':>10}  {'replayed':>10}"]
    for index, one in enumerate(found.trial.curve):
        other = f"{found.curve[index].accuracy:.4%}" if index < len(found.curve) else "diverged"
        lines.append(f"{one.examples:>12,}  {one.accuracy:>10.4%}  {other:>10}")
    verdict = (
        "comes out the same, bit for bit"
        if found.is_identical
        else f"differs by up to {found.largest_difference:.2%} in accuracy"
    )
    return "\n".join([*lines, f"Trial {found.trial.number} of {study} {verdict}."])
