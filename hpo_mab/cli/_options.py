"""Options that several commands share, with their completion, and the printing of commands."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hpo_mab._errors import ArgumentError, json_values
from hpo_mab.storage import DEFAULT_URL as DEFAULT_URL  # Exported to the commands.

if TYPE_CHECKING:
    from hpo_mab.search import StudySpec
    from hpo_mab.storage import Storage


def _names(module: str, name: str, *more: str) -> Callable[[], list[str]]:
    """Completes names from a module's collection, or from its function that returns one.

    The module is imported on completion only, so that commands start fast.
    """

    def complete() -> list[str]:
        names = getattr(importlib.import_module(module), name)
        return [*more, *(names() if callable(names) else names)]

    return complete


def study_names(ctx: typer.Context) -> list[str]:
    """Names of the studies in the storage on the command line, or in the default one."""
    from hpo_mab._errors import HpoMabError
    from hpo_mab.storage import Storage
    from hpo_mab.storage import study_names as stored

    try:
        return list(stored(Storage(ctx.params["storage"], create=False)))
    except HpoMabError:
        return []


def within(low: int, high: int | None = None) -> Callable[..., Any]:
    """A callback of an option that refuses values outside [low, high]; None is no bound."""

    def check(param: typer.CallbackParam, value: Any) -> Any:
        # Also NaN, which is below nothing.
        if not value >= low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise ArgumentError(f"{param.opts[0]} must be {allowed}, got {value}.")
        return value

    return check


# Each option is declared once. Commands list those that they take, because typer reads signatures.

Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="Study definition: a TOML file, or digits, fashion_mnist, cifar10, cifar100.",
        show_default=True,
        autocompletion=_names("hpo_mab.search._load", "builtin_names"),
    ),
]
StorageUrl = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="HPO_MAB_STORAGE",
        help="Database URL in SQLAlchemy's format, or path of an SQLite file.",
    ),
]
Study = Annotated[
    str,
    typer.Argument(
        help="Name of the study; hpo-mab studies lists them.", autocompletion=study_names
    ),
]
Trials = Annotated[int | None, typer.Option(help="Total number of trials, existing ones included.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Limit for all trials of a study together: 45s, 30m, 2h, 1d of training and "
        "evaluation, added up over workers; or 200epochs, 1000000examples. Trials that are running "
        "at that time are finished."
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training set per trial.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the study.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data set, e.g. digits, cifar10, image_folder. The study is named after it; the other "
        "settings stay those of SPEC.",
        autocompletion=_names("hpo_mab.data._load", "DATA_SETS"),
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(
        envvar="HPO_MAB_DATA",
        help="Folder of the data sets and downloads; for image_folder, the folder of images.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Network: mlp, small_cnn, resnet18, torchvision:NAME, timm:NAME or "
        "package.module:Name.",
        autocompletion=_names("hpo_mab.models", "NETWORKS"),
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="Batch sampler: auto (compares several on the data, then takes the best), mab, "
        "uniform, gradnorm and others, or package.module:Name.",
        autocompletion=_names("hpo_mab.samplers", "available", "auto"),
    ),
]
Pruner = Annotated[
    str | None,
    typer.Option(
        help="none, median, percentile, successive_halving, hyperband, advantage, promotion, "
        "top_k, or package.module:Name.",
        autocompletion=_names("hpo_mab.search._pruners", "PRUNERS"),
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Examples per batch.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto, cpu, cuda, cuda:1, mps; default: that of the definition.",
        autocompletion=lambda: ["auto", "cpu", "cuda", "mps"],
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Processes that run trials in parallel. auto: this one, and more if over 20 s of work "
        "are left, up to one per CPU core or GPU. With several the order of trials varies; 1 gives "
        "the same order each time.",
    ),
]
Slots = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Trials that a process trains in parallel as one stacked network; auto: measured on a "
        "CUDA device, 1 elsewhere.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run the workers on a Ray cluster: 'auto', ray://host:port, or 'local' to start one "
        "on this machine. Needs a PostgreSQL or MySQL storage.",
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        help="Share of a GPU that Ray reserves for each worker, e.g. 0.25. Without it, workers "
        "whose device is auto train on CPUs."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of the definition, e.g. optimizer.lr=0.1 or "
        "'sampler.memory={ low = 20, high = 200 }'. Repeatable.",
    ),
]
Record = Annotated[Path | None, typer.Option(help="File to write the raw record to (JSON).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Print every table: also gains, cost to target, and advantage, acceleration and "
        "fidelity by budget.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and no progress.")]


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


def spec_of(context: typer.Context) -> StudySpec:
    """The definition on a command line: a file or name, and the options that replace its values."""
    params = context.params
    # Options that were not given must not replace values of the file.
    changes = {key: params[name] for name, key in _KEYS.items() if params.get(name) is not None}
    if "training.slots" in changes:
        changes["training.slots"] = slots_of(changes["training.slots"])
    # A typed option replaces the same key of --set, because suggested commands add options. An
    # option from the environment does not.
    typed = {key for name, key in _KEYS.items() if is_typed(context, name)}
    texts = params["assignments"] or []
    left = [text for text in texts if text.partition("=")[0].strip() not in typed]
    from hpo_mab.search import load_spec

    return load_spec(params["source"], {**changes, **dict(map(_assignment, left))})


def names_section(context: typer.Context, section: str) -> bool:
    """Whether a command line names a section of the definition, by its option or by ``--set``."""
    texts = context.params["assignments"] or []
    return is_typed(context, section) or any(
        text.partition("=")[0].strip().partition(".")[0] == section for text in texts
    )


def storage_option(context: typer.Context, store: Storage) -> dict[str, str]:
    """``--storage`` of a printed command, if it was given: a URL without its password."""
    return {"storage": store.shown_url} if is_typed(context, "storage") else {}


def number_or_auto(option: str, text: str) -> int | None:
    """The number that an option has; None for ``auto``."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise ArgumentError(f"{option} must be a number or 'auto', got '{text}'.") from None


def slots_of(text: str) -> int | Literal["auto"]:
    """The value of ``--slots``; the definition checks its bound."""
    slots = number_or_auto("--slots", text)
    return "auto" if slots is None else slots


def silence_optuna() -> None:
    """Switch Optuna's log off: it writes a line, or a traceback, per trial."""
    import logging

    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    # SQLAlchemy logs a traceback for each connection that breaks or that Ctrl-C interrupts.
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


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether an argument is typed on the command line, not from the environment or a default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def user_prints_to_stderr(*, when: bool) -> contextlib.AbstractContextManager[object]:
    """Send a user's own prints to standard error, as where standard output is for JSON."""
    return contextlib.redirect_stdout(sys.stderr) if when else contextlib.nullcontext()


def command_line(
    context: typer.Context, command: Callable[..., None], changes: Mapping[str, str] | None = None
) -> str:
    """A command with those of the current arguments that it has; ``changes`` replaces values."""
    taken = inspect.signature(command).parameters
    words: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        if changes and name in changes:
            value: Any = changes[name]
        elif is_typed(context, name):
            value = context.params[name]
        else:
            continue
        words += _arguments(parameter, value) if name in taken else ()
    return shlex.join(["hpo-mab", command.__name__, *words])


def _arguments(parameter: Any, value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list | tuple) else [value]:
        if parameter.param_type_name == "argument":
            yield str(one)
        elif one is True:
            yield parameter.opts[0]
        else:
            # A whole number is shown as it is typed.
            text = str(one).removesuffix(".0") if isinstance(one, float) else str(one)
            yield from (parameter.opts[0], text)


def json_text(facts: object) -> str:
    """Facts as JSON, with None in place of NaN and infinity, which it lacks."""
    return json.dumps(json_values(facts), indent=1)
