"""``hpo-mab compare``: the same study with every arm, on equal budget and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo_mab.cli import _options as opt

#: How many more seeds are suggested where the seeds so far cannot tell.
_MORE_SEEDS = 4


def compare(
    context: typer.Context,
    spec: opt.Spec = "digits",
    storage: opt.StorageUrl = "sqlite:///hpo_mab.db",
    name: Annotated[
        str | None,
        typer.Option(
            help="Begins the names of the studies, in place of the definition's name. A study of "
            "exactly this name is used for its arm and seed."
        ),
    ] = None,
    fresh: opt.Fresh = False,
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
    record: Annotated[
        Path | None, typer.Option(help="File to write the raw record to (JSON).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="File to write a self-contained HTML report to.")
    ] = None,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Run the same study with the bandit and with uniform sampling, and compare the two.

    Both arms have the same budget, seeds, validation split and first configurations. Trials that
    the storage holds are not run again. `hpo-mab report` compares studies that exist, from any
    number of databases.

    Examples:

    ```
    hpo-mab compare
    hpo-mab compare fashion_mnist --seeds 3 --record record.json --report report.html
    hpo-mab compare --sampler gradnorm --pruner hyperband
    ```
    """
    loaded = opt.definition(context)
    from hpo_mab.cli._dashboard import dashboard
    from hpo_mab.cli._main import stoppable
    from hpo_mab.cli._options import command_line, is_given, worker_count
    from hpo_mab.cli._output import (
        StudyProgress,
        print_comparison,
        shown_data,
        warn_unpublished,
    )
    from hpo_mab.cli._run import launcher
    from hpo_mab.compare import comparison_record, report_html, run_comparison, summarise
    from hpo_mab.compare._runner import comparison_names
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    opt.refuse_unwritable(record, report)
    silent = quiet or as_json
    store = Storage(storage)
    launch = launcher(
        loaded,
        store,
        workers=worker_count(workers),
        ray=ray,
        gpus_per_worker=gpus_per_worker,
        quiet=silent,
    )
    names = comparison_names(loaded, store, name=name, fresh=fresh)
    # A URL with a password must not be shown.
    shown = {"storage": store.shown_url} if is_given(context, "storage") else {}
    if fresh:
        (arm, first), chosen = next(iter(names.items()))
        shown["name"] = chosen.removesuffix(f"-{arm}-seed{first}")
    with stoppable(), shown_data(quiet=silent) as show_data:

        def progress(name: str, count: int) -> StudyProgress:
            show_data()
            return StudyProgress(trials=count, label=name, quiet=silent, curves=store.curves)

        found = run_comparison(
            loaded,
            store,
            names=names,
            launch=launch,
            progress=progress,
            on_retrain=None if silent else _print_retraining,
        )
    if {run.arm for run in found.runs} <= {found.reference} or found.interrupted:
        continued = command_line(context, compare, shown) if fresh else "the same command"
        typer.echo(f"Interrupted. Finished trials are stored; {continued} continues.", err=True)
        raise typer.Exit(130)
    summary = summarise(found.runs, reference=found.reference, retrained=found.retrained)
    text = comparison_record(found, summary)
    if record is not None:
        opt.write_text(record, text)
    if report is not None:
        page = report_html(
            found.runs, summary, title=f"{loaded.name}: comparison", record=found.environment
        )
        opt.write_text(report, page)
    if as_json:
        typer.echo(text)
    elif not quiet:
        more = {"seeds": str(loaded.compare.seeds + _MORE_SEEDS)}
        print_comparison(
            summary,
            found,
            store,
            dashboard=command_line(context, dashboard, shown),
            more_seeds=command_line(context, compare, shown | more),
            verbose=verbose,
        )
    # Last: the result is printed even if the pages cannot be written. Imported here as by `run`.
    from hpo_mab.dashboard import publish_comparison

    warn_unpublished(publish_comparison(store, found.runs, summary))


def _print_retraining(study: str, number: int, of: int) -> None:
    typer.echo(f"{study}: re-training its best configuration, {number} of {of}", err=True)
