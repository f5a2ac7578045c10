"""Options that several commands share."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.cli import _complete as complete

if TYPE_CHECKING:
    from hpo_mab.search import StudySpec

Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="A study definition: a TOML file, or digits, fashion_mnist, cifar10, cifar100.",
        show_default=True,
        autocompletion=complete.definitions,
    ),
]
StorageUrl = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="HPO_MAB_STORAGE",
        help="Database URL as SQLAlchemy and Optuna take it, or a path to an SQLite file.",
    ),
]
Storages = Annotated[
    list[str] | None,
    typer.Option(
        "--storage",
        envvar="HPO_MAB_STORAGE",
        help="Database URL or path; repeat to take studies from several.",
        show_default="sqlite:///hpo_mab.db",
    ),
]
Trials = Annotated[
    int | None, typer.Option(help="Trials the study should have in all; a study continues.")
]
Budget = Annotated[
    str | None,
    typer.Option(help="Limit for all trials together: 45s, 30m, 2h, 200epochs, 1000000examples."),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training set a trial.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the study.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data set, e.g. digits, cifar10, image_folder.", autocompletion=complete.data_sets
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(envvar="HPO_MAB_DATA", help="Folder of the data sets; downloads go there."),
]
Model = Annotated[
    str | None,
    typer.Option(help="Network, e.g. small_cnn, resnet18.", autocompletion=complete.networks),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="Batch sampler, e.g. mab, uniform, gradnorm.", autocompletion=complete.batch_samplers
    ),
]
Pruner = Annotated[
    str | None,
    typer.Option(
        help="none, median, percentile, successive_halving, hyperband, advantage or top_k.",
        autocompletion=complete.pruners,
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Examples a batch.")]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1, mps.", autocompletion=complete.devices),
]
Workers = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Processes that run trials at the same time; auto fills the CPU cores or the GPUs.",
    ),
]
Slots = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Trials that a process trains at the same time as one stacked network; auto measures "
        "on a CUDA device how many are worth it.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run the workers on a Ray cluster: 'auto', ray://host:port, or 'local' to start one "
        "here. Needs a PostgreSQL storage.",
    ),
]
GpusPerWorker = Annotated[
    float | None, typer.Option(help="Share of a GPU that Ray reserves for each worker, e.g. 0.25.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of the definition, e.g. optimizer.lr=0.1 or "
        "'sampler.memory={ low = 20, high = 200 }'. Repeat for more.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Every table: also cost to target, and advantage, acceleration and fidelity by "
        "budget.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, and no progress.")
]


#: Options by their parameter's name, and the key of the definition that each replaces.
_KEYS = {
    "data": "data.name",
    "model": "model.name",
    "sampler": "sampler.kind",
    "pruner": "pruner.kind",
    "data_root": "data.root",
    "trials": "budget.trials",
    "budget": "budget.total",
    "epochs": "budget.epochs",
    "seed": "seed",
    "batch_size": "training.batch_size",
    "device": "training.device",
    "slots": "training.slots",
    "seeds": "compare.seeds",
}


def definition(context: typer.Context) -> StudySpec:
    """The definition that a command line asks for: a file or name, and what replaces its values."""
    given = context.params
    named = {key: given[name] for name, key in _KEYS.items() if given.get(name) is not None}
    if "training.slots" in named:
        named["training.slots"] = slot_count(named["training.slots"])
    return load(given["spec"], given["assignments"], named)


def load(
    spec: str, assignments: Sequence[str] | None, named: Mapping[str, Any] | None = None
) -> StudySpec:
    """A definition with overrides.

    Args:
        spec: File or name.
        assignments: ``KEY=VALUE`` texts.
        named: Values by dotted key.
    """
    from hpo_mab.search import load_spec

    # The kind of a thing comes first: changing it drops options that it does not have.
    return load_spec(spec, {**(named or {}), **dict(map(_assignment, assignments or []))})


def worker_count(text: str) -> int | None:
    """The number of workers asked for; None for ``auto``.

    Raises:
        ArgumentError: Neither.
    """
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"--workers must be a number or 'auto', got '{text}'.") from None


def slot_count(text: str) -> int | Literal["auto"]:
    """The number of slots asked for, or ``"auto"``.

    Raises:
        ArgumentError: Neither, or less than 1.
    """
    if text == "auto":
        return "auto"
    try:
        count = int(text)
    except ValueError:
        raise ArgumentError(f"--slots must be a number or 'auto', got '{text}'.") from None
    if count < 1:
        raise ArgumentError(f"--slots must be at least 1, got {count}.")
    return count


def silence_optuna() -> None:
    """Leave the telling to our own progress: Optuna logs a line, or a traceback, a trial."""
    import logging

    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    # A traceback for each connection that breaks, or that a second Ctrl-C leaves half reset.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


def _assignment(text: str) -> tuple[str, Any]:
    key, sign, raw = text.partition("=")
    if not sign or not key.strip():
        raise ArgumentError(f"--set needs KEY=VALUE, got {text!r}.")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is a string: --set model.name=resnet18.
        return key.strip(), raw.strip()
