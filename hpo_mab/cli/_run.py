"""``hpo-mab run`` creates a study or continues it."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._errors import HpoMabError, StorageError
from hpo_mab._interrupts import stoppable
from hpo_mab.cli import _options as opt
from hpo_mab.cli._compare import compare
from hpo_mab.cli._confirm import confirm
from hpo_mab.cli._dashboard import dashboard
from hpo_mab.cli._launcher import launcher
from hpo_mab.cli._options import command_line
from hpo_mab.cli._replay import replay

if TYPE_CHECKING:
    from hpo_mab.search import RunOutcome, StudySpec
    from hpo_mab.storage import Storage


def run(
    context: typer.Context,
    source: opt.Spec = "digits",
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    name: Annotated[
        str | None, typer.Option(help="Study name; default definition-sampler-seedN.")
    ] = None,
    trials: opt.Trials = None,
    budget: opt.Budget = None,
    epochs: opt.Epochs = None,
    seed: opt.Seed = None,
    data: opt.Data = None,
    data_root: opt.DataRoot = None,
    model: opt.Model = None,
    sampler: opt.Sampler = None,
    pruner: opt.Pruner = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    workers: opt.Workers = "auto",
    slots: opt.Slots = None,
    ray: opt.Ray = None,
    gpus_per_worker: opt.GpusPerWorker = None,
    assignments: opt.Set = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Run a study, or continue it up to the given number of trials.

    Without arguments: 30 trials on scikit-learn's digits, stored in hpo_mab.db.

    Examples:

    ```
    hpo-mab run
    hpo-mab run --trials 40                  # continue up to 40
    hpo-mab run fashion_mnist --data-root ~/data --trials 50
    hpo-mab run study.toml --budget 30m --set optimizer.momentum=0.9
    hpo-mab run --data image_folder --data-root ~/photos
    ```
    """
    # Typer fills context.params; opt.spec_of, launcher and command_line read other options there.
    began = time.monotonic()
    with opt.user_prints_to_stderr(when=as_json):
        spec = opt.spec_of(context)
    from hpo_mab.cli._output import print_summary, run_facts, warn_unpublished
    from hpo_mab.cli._progress import StudyProgress, data_lines
    from hpo_mab.search import StudyRunner
    from hpo_mab.search._study import check_study, choose_name
    from hpo_mab.storage import Storage

    silent = quiet or as_json
    opt.silence_optuna()
    store = Storage(storage)
    launch = launcher(context, spec, store)
    study_name = choose_name(spec, arm=spec.sampler.kind, name=name)
    # Before the data are loaded, which may take long.
    check_study(store, study_name, spec)
    with stoppable(), opt.user_prints_to_stderr(when=as_json):
        with data_lines(quiet=silent):
            runner = StudyRunner(spec, store)
        with StudyProgress(
            trials=spec.budget.trials,
            label=study_name,
            quiet=silent,
            curves=store.curves,
        ) as progress:
            outcome = runner.run(study_name, on_trial=progress, launch=launch)
    facts = run_facts(outcome, spec, wall_seconds=time.monotonic() - began)
    if as_json:
        typer.echo(opt.json_text(facts))
    elif not quiet:
        print_summary(facts, _next_steps(context, store, outcome, spec, named=name is not None))
    if outcome.interrupted:
        # No pages after Ctrl-C, which take seconds; 'hpo-mab dashboard' writes them.
        raise typer.Exit(130)
    # Last: the result is printed even if the pages cannot be written. Imported here: what the pages
    # need may take longer to load than the first trial takes to train.
    from hpo_mab.dashboard._publish import publish_study

    if not store.in_memory:
        images = runner.objective.workload.images
        warn_unpublished(publish_study(store, outcome.run, images=images))


def _next_steps(
    context: typer.Context, storage: Storage, outcome: RunOutcome, spec: StudySpec, *, named: bool
) -> list[tuple[str, str]]:
    """Commands that are suggested after a run, each with its purpose."""
    if storage.in_memory:  # No command finds the study.
        return []
    from hpo_mab._plan import Plan
    from hpo_mab.cli._output import compared_text

    shown = opt.storage_option(context, storage)
    stored = outcome.run.settings
    # The other commands would take the root of the environment, or the study's first root.
    if (context.params["data_root"] or stored.data.options.get("root")) != spec.data.root:
        shown["data_root"] = str(spec.data.root)
    if stored.training.get("device") != spec.training.device:
        shown["device"] = spec.training.device
    name = {"name": outcome.run.name}
    more, purpose = {}, "continue the study"
    if not outcome.interrupted:
        # The study may have been started with a higher limit.
        finished = Plan(outcome.run.trials).finished
        more = {"trials": str(2 * max(spec.budget.trials, finished))}
        purpose += "; raise --budget if it is spent" if spec.budget.total else ""
    # The names of the other arms may be those of other studies.
    compared = {} if not named and _is_comparable(spec, storage) else name
    steps = [
        (command_line(context, compare, shown | compared), compared_text(spec)),
        (command_line(context, dashboard, shown), "notes and figures in the browser"),
        (command_line(context, run, shown | (name if named else {}) | more), purpose),
    ]
    if outcome.run.best is not None and not outcome.interrupted:
        study = shlex.quote(outcome.run.name)
        confirmed = f"{command_line(context, confirm, shown)} {study}"
        replayed = f"{command_line(context, replay, shown)} {study} best --save best.pt"
        steps[2:2] = [
            (confirmed, "is the best trial the best again, with other seeds?"),
            (replayed, "train the best trial again, keep its network"),
        ]
    return steps


def _is_comparable(spec: StudySpec, storage: Storage) -> bool:
    """Whether no default name of a comparison's studies belongs to another study.

    ``hpo-mab compare`` reports other errors.
    """
    from hpo_mab.compare._runner import comparison_names

    try:
        comparison_names(spec, storage)
    except HpoMabError as error:
        return not isinstance(error, StorageError)
    return True
