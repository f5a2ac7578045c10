"""``hpo-mab run`` creates a study or continues it; ``hpo-mab compare`` runs one with every arm."""

from __future__ import annotations

import functools
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo_mab._errors import ArgumentError, HpoMabError, StorageError
from hpo_mab._interrupts import stoppable
from hpo_mab.cli import _options as opt
from hpo_mab.cli._confirm import confirm
from hpo_mab.cli._files import refuse_unwritable, write_file
from hpo_mab.cli._options import command_line
from hpo_mab.cli._report import PORT, dashboard

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonRuns, ComparisonSummary
    from hpo_mab.search import RunOutcome, StudySpec
    from hpo_mab.search._definition import BudgetSection
    from hpo_mab.search._runner import Launch
    from hpo_mab.storage import Storage

_SQLITE_WORKERS = 2


def launcher(context: typer.Context, spec: StudySpec, storage: Storage) -> Launch | None:
    """What runs trials in other processes; None if this process runs all.

    ``--workers auto`` starts others once they are worth it, where they can reach the database.
    """
    options = context.params
    workers = opt.count("--workers", options["workers"])
    ray, gpus_per_worker = options["ray"], options["gpus_per_worker"]
    quiet = options["quiet"] or options["as_json"]
    if gpus_per_worker is not None and ray is None:
        raise ArgumentError(
            "--gpus-per-worker needs --ray. Without Ray, --slots shares a GPU among trials."
        )
    if workers is None and ray is not None:
        raise ArgumentError(
            "--ray needs --workers N, its number of workers: 'auto' counts this machine's cores."
        )
    # This command's values, because the stored definition's may be others.
    given: dict[str, Any] = {"data_root": spec.data.root, "slots": spec.training.slots}
    if (workers == 1 and ray is None) or (workers is None and storage.in_memory):
        return None
    if storage.is_sqlite and (workers or 0) > _SQLITE_WORKERS and not quiet:
        typer.echo(
            f"SQLite allows one writer at a time: with short trials, {workers} workers wait for "
            "one another. PostgreSQL has no such limit: --storage postgresql://...",
            err=True,
        )
    from hpo_mab.workers import ProcessLauncher, RayLauncher
    from hpo_mab.workers._room import later_devices, worker_devices

    device = spec.training.device
    if workers is None:
        later = functools.partial(later_devices, device=device, threads=spec.training.threads)
        return ProcessLauncher(storage, devices=later, **given)
    if ray is not None:
        return RayLauncher(
            storage,
            workers=workers,
            address=ray,
            gpus_per_worker=gpus_per_worker or 0.0,
            device=device,
            threads=spec.training.threads,
            **given,
        )
    # This process has the first.
    _, *devices = worker_devices(workers, device=device)
    return ProcessLauncher(storage, devices=devices, **given)


def run(
    context: typer.Context,
    spec: opt.Spec = "digits",
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
    began = time.monotonic()
    with opt.prints_aside(as_json):
        loaded = opt.definition(context)
    from hpo_mab.cli._output import print_summary, run_facts, warn_unpublished
    from hpo_mab.cli._progress import StudyProgress, shown_data
    from hpo_mab.search import StudyRunner
    from hpo_mab.search._study import check_study, choose_name
    from hpo_mab.storage import Storage

    silent = quiet or as_json
    opt.silence_optuna()
    store = Storage(storage)
    launch = launcher(context, loaded, store)
    study_name = choose_name(loaded, arm=loaded.sampler.kind, name=name)
    # Before the data are loaded, which may take long.
    check_study(store, study_name, loaded)
    with stoppable(), opt.prints_aside(as_json):
        with shown_data(quiet=silent):
            runner = StudyRunner(loaded, store)
        with StudyProgress(
            trials=loaded.budget.trials,
            label=study_name,
            quiet=silent,
            curves=store.curves,
            limited=loaded.budget.total is not None,
        ) as progress:
            outcome = runner.run(study_name, on_trial=progress, launch=launch)
    facts = run_facts(outcome, loaded, wall_seconds=time.monotonic() - began)
    if as_json:
        typer.echo(opt.json_text(facts))
    elif not quiet:
        print_summary(facts, _next_steps(context, store, outcome, loaded, named=name is not None))
    if outcome.interrupted:
        # No pages after Ctrl-C, which take seconds; 'hpo-mab dashboard' writes them.
        raise typer.Exit(130)
    # Last: the result is printed even if the pages cannot be written. Imported here: what the pages
    # need may take longer to load than the first trial takes to train.
    from hpo_mab.dashboard import publish_study

    if not store.in_memory:
        images = runner.objective.workload.images
        warn_unpublished(publish_study(store, outcome.run, images=images))


def _next_steps(
    context: typer.Context, storage: Storage, outcome: RunOutcome, spec: StudySpec, *, named: bool
) -> list[tuple[str, str]]:
    """Commands that are suggested after a run, each with its purpose."""
    if storage.in_memory:  # No command finds the study.
        return []
    from hpo_mab.cli._output import compared_text
    from hpo_mab.cli._study import replay

    shown = opt.shown_storage(context, storage)
    stored = outcome.run.settings
    # The other commands would take the root of the environment, or the study's first root.
    if (context.params["data_root"] or stored.data.options.get("root")) != spec.data.root:
        shown["data_root"] = str(spec.data.root)
    if stored.training.get("device") != spec.training.device:
        shown["device"] = spec.training.device
    name = {"name": outcome.run.name}
    more = {} if outcome.interrupted else _doubled_limit(outcome, spec.budget)
    # The names of the other arms may be those of other studies.
    own = {} if not named and _is_comparable(spec, storage) else name
    steps = [
        (command_line(context, compare, shown | own), compared_text(spec)),
        (command_line(context, dashboard, shown), "notes and figures in the browser"),
        (command_line(context, run, shown | (name if named else {}) | more), "continue the study"),
    ]
    if outcome.run.best is not None and not outcome.interrupted:
        study = shlex.quote(outcome.run.name)
        again = f"{command_line(context, confirm, shown)} {study}"
        saved = f"{command_line(context, replay, shown)} {study} best --save best.pt"
        steps[2:2] = [
            (again, "is the best trial the best again, with other seeds?"),
            (saved, "train the best trial again, keep its network"),
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


def _doubled_limit(outcome: RunOutcome, budget: BudgetSection) -> dict[str, str]:
    """The options, with their values, that double each limit that the study has reached."""
    from hpo_mab._attributes import TotalBudget
    from hpo_mab._plan import Plan

    run, doubled = outcome.run, {}
    # A study may be over its limit: it was started with a higher one.
    finished = Plan(run.trials).finished
    # Lengthened trials continue only with a larger total budget.
    lengthened = any(trial.budgets > 1 for trial in run.trials)
    if budget.total is None or (finished >= budget.trials and not lengthened):
        doubled["trials"] = str(2 * max(budget.trials, finished))
    if budget.total is not None:
        share = TotalBudget.parse(budget.total).share_spent(
            seconds=(run.seconds or 0.0) + run.evaluation_seconds,
            examples=run.examples or 0,
            epoch_examples=int(run.epoch_examples or 1),
        )
        if share >= 1 or not doubled:
            factor = 2 * max(1, round(share))
            amount = re.sub(
                r"[\d.]+", lambda known: f"{factor * float(known[0]):.15g}", budget.total
            )
            doubled["budget"] = amount
    return doubled


def _warn_of_sections_without_effect(context: typer.Context, loaded: StudySpec) -> None:
    arms = loaded.compare.arms.values()
    for section in ("sampler", "pruner"):
        if arms and all(getattr(arm, section) for arm in arms) and opt.is_set(context, section):
            text = f"hpo-mab: {section} has no effect: every arm of the definition has its own."
            typer.echo(text, err=True)


#: Additional seeds to suggest if an answer is "cannot tell".
_MORE_SEEDS = 4


def compare(
    context: typer.Context,
    spec: opt.Spec = "digits",
    storage: opt.StorageUrl = opt.DEFAULT_URL,
    name: Annotated[
        str | None,
        typer.Option(
            help="Begins the studies' names, in place of the definition's name. If a study has "
            "exactly this name, it is used for its arm and seed."
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds, starting at the definition's.")
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
    workers: opt.Workers = "1",
    slots: opt.Slots = None,
    ray: opt.Ray = None,
    gpus_per_worker: opt.GpusPerWorker = None,
    assignments: opt.Set = None,
    record: opt.Record = None,
    report: Annotated[
        Path | None, typer.Option(help="File to write a self-contained HTML report to.")
    ] = None,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Run a study and its comparisons, and say which is better.

    Without [compare.arms] the study is compared with the same study under uniform sampling. A study
    that is uniform itself is compared with mab. Digits is also run without pruning. All arms have
    the same budget, seeds, validation split and first configurations. Stored trials are not run
    again. `hpo-mab report` compares studies that exist.

    Examples:

    ```
    hpo-mab compare
    hpo-mab compare fashion_mnist --sampler mab --record record.json --report report.html
    hpo-mab compare --sampler gradnorm --pruner hyperband --name gradnorm
    ```
    """
    with opt.prints_aside(as_json):
        loaded = opt.definition(context)
    _warn_of_sections_without_effect(context, loaded)
    from hpo_mab.cli._output import warn_unpublished
    from hpo_mab.cli._progress import StudyProgress, shown_data
    from hpo_mab.compare import comparison_record, report_html, run_comparison
    from hpo_mab.compare._runner import arms_of, comparison_names
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    refuse_unwritable(record, report)
    silent = quiet or as_json
    store = Storage(storage)
    launch = launcher(context, loaded, store)
    names = comparison_names(loaded, store, name=name)
    shown = opt.shown_storage(context, store)
    with stoppable(), opt.prints_aside(as_json), shown_data(quiet=silent) as show_data:

        def progress(name: str, count: int) -> StudyProgress:
            show_data()
            return StudyProgress(
                trials=count,
                label=name,
                quiet=silent,
                curves=store.curves,
                limited=loaded.budget.total is not None,
            )

        found = run_comparison(
            loaded,
            store,
            names=names,
            launch=launch,
            progress=progress,
            on_retrain=None if silent else _print_retraining,
        )
    if found.interrupted:
        stored = "Finished trials are stored; the same command continues."
        typer.echo("Interrupted." if store.in_memory else f"Interrupted. {stored}", err=True)
        raise typer.Exit(130)
    summary = found.summarise()
    text = comparison_record(found, summary)
    if record is not None:
        write_file(record, text)
    if report is not None:
        write_file(report, report_html(found, summary, title=f"{loaded.name}: comparison"))
    if as_json:
        typer.echo(text)
    elif not quiet:
        more = {"seeds": str(loaded.compare.seeds + _MORE_SEEDS)}
        # A reference study has one seed.
        one_seed = any("reference" in arm.sources for arm in arms_of(loaded).values())
        _print_comparison(
            summary,
            found,
            store,
            dashboard=command_line(context, dashboard, shown),
            more_seeds=None if one_seed else command_line(context, compare, shown | more),
            verbose=verbose,
        )
    # Last: the result is printed even if the pages cannot be written. Imported here as by `run`.
    from hpo_mab.dashboard import publish_comparison

    if not store.in_memory:
        warn_unpublished(publish_comparison(store, found.runs, summary))


def _print_comparison(
    summary: ComparisonSummary,
    found: ComparisonRuns,
    storage: Storage,
    *,
    dashboard: str,
    more_seeds: str | None,
    verbose: bool,
) -> None:
    """Print tables and verdict, and where to look next."""
    from hpo_mab.cli._output import print_next, print_result
    from hpo_mab.compare import answers
    from hpo_mab.dashboard import comparison_path

    print_result(summary, verbose=verbose)
    if storage.in_memory:  # No command finds the studies.
        return
    path = comparison_path([run.name for run in found.runs], reference=summary.reference)
    link = f"http://127.0.0.1:{PORT}{path}"
    steps = [
        (dashboard, "notes and figures in the browser"),
        (link, "the arms side by side, in that dashboard, at the port that it prints"),
    ]
    given = [one for contrast in summary.contrasts for one in answers(contrast)]
    # Not where nothing was measured, or where both arms trained in the same way.
    unclear = [one for one in given if one.reply == "cannot tell" and not one.reason]
    if more_seeds and any(one.estimate is not None and one.estimate.n for one in unclear):
        steps.append((more_seeds, "more seeds narrow the intervals"))
    print_next(steps)


def _print_retraining(study: str, number: int, of: int) -> None:
    typer.echo(f"{study}: re-training its best configuration, {number} of {of}", err=True)
