"""``hpo-mab evidence`` saves what studies measured, for later studies."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _options as opt
from hpo_mab.cli._files import refuse_unwritable, write_file
from hpo_mab.cli._options import study_names
from hpo_mab.cli._report import records_and_names

if TYPE_CHECKING:
    from hpo_mab.advantage import Evidence
    from hpo_mab.storage import StudyRun


def evidence(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            autocompletion=study_names,
            help="Studies of both arms, named as in hpo-mab report, or records (.json).",
        ),
    ],
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path(
        "evidence.json"
    ),
    arm: Annotated[
        str | None, typer.Option(help="Arm that is compared with uniform sampling; default mab.")
    ] = None,
    reference: Annotated[str, typer.Option(help="Arm with uniform sampling.")] = "uniform",
    margin: Annotated[
        float, typer.Option(callback=opt.within(0, 1), help="Tolerated loss of fidelity.")
    ] = 0.1,
    as_json: opt.Json = False,
) -> None:
    """Save what studies measured, for later studies: the early advantage, the choice of a sampler.

    Complete trials of both arms with the same seed and configuration form a pair. Four pairs are
    required; twenty or more are advisable. Nothing is trained. A study of the same data and network
    may then prune earlier. Its definition names the file:
    `pruner = { kind = "advantage", evidence = "evidence.json" }`.

    Of a study whose sampler was `auto` the file also holds the choice. A later study takes it
    without a race if data, network, budget of a trial and portfolio are the same:
    `sampler = { kind = "auto", evidence = "evidence.json" }`.

    Examples:

    ```
    hpo-mab evidence 'digits-*'
    hpo-mab evidence record.json -o evidence.json
    hpo-mab evidence 'digits-*' --arm bandit --reference uniform_median
    hpo-mab evidence cifar10-auto-seed0
    hpo-mab run cifar10 --name later --set sampler.evidence=evidence.json
    ```
    """
    opt.silence_optuna()
    refuse_unwritable(output, read=studies)
    measured = _evidence(studies, storage, arm=arm, reference=reference, margin=margin)
    text = json.dumps(measured.to_json())
    write_file(output, text + "\n")
    typer.echo(text if as_json else _evidence_text(measured, output))


def _evidence(
    studies: list[str], storage: str, *, arm: str | None, reference: str, margin: float
) -> Evidence:
    """Evidence of two arms or, if there is no arm ``mab``, of a study that held a race."""
    from hpo_mab.compare import evidence_of
    from hpo_mab.compare._evidence import race_evidence

    runs = _read_runs(studies, storage)
    arms = list(dict.fromkeys(run.arm for run in runs))
    # The arm is not there, so the studies may be those of a race.
    if arm is None and "mab" not in arms and "auto" in {run.settings.sampler.kind for run in runs}:
        _, names = records_and_names(studies)
        raced = race_evidence(names, storages=[storage], margin=margin) if names else ()
        if len(raced) > 1:
            several = ", ".join(race.source.removeprefix("study ") for race in raced)
            raise ArgumentError(f"Evidence holds the choice of one study, got {several}; name one.")
        if raced:
            return raced[0]
    if arm is None and "mab" not in arms:
        raise ArgumentError(f"There is no arm 'mab'; give --arm, one of {', '.join(arms)}.")
    return evidence_of(runs, arm=arm or "mab", reference=reference, margin=margin)


def _read_runs(studies: list[str], storage: str) -> list[StudyRun]:
    from hpo_mab.compare import read_record, stored_comparison

    records, names = records_and_names(studies)
    runs = [run for path in records for run in read_record(path).runs]
    return [*runs, *(stored_comparison(names, storages=[storage]).runs if names else ())]


def _evidence_text(measured: Evidence, output: Path) -> str:
    from hpo_mab.compare._tables import points, ratio

    lines = []
    if measured.race is not None:
        choice = measured.race["choice"]
        lines = [
            f"Study '{measured.race['study']}' chose {choice['sampler']}: {choice['why']}.",
            "Next: hpo-mab run with --sampler auto --set "
            f"sampler.evidence={shlex.quote(str(output))}",
        ]
    if not measured.pairs:
        return "\n".join(lines)
    moved = sum(rung.moved for rung in measured.rungs)
    lines += [
        f"{measured.pairs} pairs: {measured.source}.",
        f"{'budget':>8}{'advantage, points':>26}{'acceleration':>26}{'decided at':>12}",
    ]
    for budget, ahead, faster, rung in zip(
        measured.budgets, measured.advantage, measured.acceleration, measured.rungs, strict=True
    ):
        lines.append(
            f"{100 * budget:>7.3g}%{points(ahead):>26}{ratio(faster):>26}"
            f"{100 * rung.decided_at:>11.3g}%"
        )
    lines.append(f"{moved} of {len(measured.rungs)} rungs are decided earlier than under uniform.")
    if not moved:
        lines.append(
            "With this evidence a study prunes as successive halving does, unless its own first "
            "trials move the first rung."
        )
    lines.append(
        "Next: hpo-mab run with --pruner advantage --set "
        f"pruner.evidence={shlex.quote(str(output))}"
    )
    return "\n".join(lines)
