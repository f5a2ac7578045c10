"""``hpo-mab compare`` runs a study with every arm and says which is better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo_mab._interrupts import stoppable
from hpo_mab.cli import _options as opt
from hpo_mab.cli._dashboard import PORT, dashboard
from hpo_mab.cli._files import refuse_unwritable, write_file
from hpo_mab.cli._launcher import launcher
from hpo_mab.cli._options import command_line

if TYPE_CHECKING:
    from hpo_mab.compare import ComparisonRuns, ComparisonSummary
    from hpo_mab.search import StudySpec
    from hpo_mab.storage import Storage


def _warn_of_sections_without_effect(context: typer.Context, spec: StudySpec) -> None:
    arms = spec.compare.arms.values()
    for section in ("sampler", "pruner"):
        if (
            arms
            and all(getattr(arm, section) for arm in arms)
            and opt.names_section(context, section)
        ):
            text = f"hpo-mab: {section} has no effect: every arm of the definition has its own."
            typer.echo(text, err=True)


#: Additional seeds to suggest if an answer is "cannot tell".
_MORE_SEEDS = 4


def compare(
    context: typer.Context,
    source: opt.Spec = "digits",
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
    # As in `run`, the other options are read from context.params.
    with opt.user_prints_to_stderr(when=as_json):
        spec = opt.spec_of(context)
    _warn_of_sections_without_effect(context, spec)
    from hpo_mab.cli._output import warn_unpublished
    from hpo_mab.cli._progress import StudyProgress, data_lines
    from hpo_mab.compare import comparison_record, report_html, run_comparison
    from hpo_mab.compare._runner import arms_of, comparison_names
    from hpo_mab.storage import Storage

    opt.silence_optuna()
    refuse_unwritable(record, report)
    silent = quiet or as_json
    store = Storage(storage)
    launch = launcher(context, spec, store)
    names = comparison_names(spec, store, name=name)
    shown = opt.storage_option(context, store)
    with stoppable(), opt.user_prints_to_stderr(when=as_json), data_lines(quiet=silent) as lines:

        def progress(name: str, count: int) -> StudyProgress:
            lines.show()
            return StudyProgress(trials=count, label=name, quiet=silent, curves=store.curves)

        comparison = run_comparison(
            spec,
            store,
            names=names,
            launch=launch,
            progress=progress,
            on_retrain=None if silent else _print_retraining,
        )
    if comparison.interrupted:
        stored = "Finished trials are stored; the same command continues."
        typer.echo("Interrupted." if store.in_memory else f"Interrupted. {stored}", err=True)
        raise typer.Exit(130)
    summary = comparison.summarise()
    text = comparison_record(comparison, summary)
    if record is not None:
        write_file(record, text)
    if report is not None:
        write_file(report, report_html(comparison, summary, title=f"{spec.name}: comparison"))
    if as_json:
        typer.echo(text)
    elif not quiet:
        more = {"seeds": str(spec.compare.seeds + _MORE_SEEDS)}
        # A reference study has one seed.
        one_seed = any("reference" in arm.given_evidence for arm in arms_of(spec).values())
        _print_comparison(
            summary,
            comparison,
            store,
            dashboard=command_line(context, dashboard, shown),
            more_seeds=None if one_seed else command_line(context, compare, shown | more),
            verbose=verbose,
        )
    # Last: the result is printed even if the pages cannot be written. Imported here as by `run`.
    from hpo_mab.dashboard._publish import publish_comparison

    if not store.in_memory:
        warn_unpublished(publish_comparison(store, comparison.runs, summary))


def _print_comparison(
    summary: ComparisonSummary,
    comparison: ComparisonRuns,
    storage: Storage,
    *,
    dashboard: str,
    more_seeds: str | None,
    verbose: bool,
) -> None:
    """Print tables and verdict, and where to look next."""
    from hpo_mab.cli._output import print_next, print_result
    from hpo_mab.compare import answers
    from hpo_mab.dashboard._serve import comparison_path

    print_result(summary, verbose=verbose)
    if storage.in_memory:  # No command finds the studies.
        return
    path = comparison_path([run.name for run in comparison.runs], reference=summary.reference)
    link = f"http://127.0.0.1:{PORT}{path}"
    steps = [
        (dashboard, "notes and figures in the browser"),
        (link, "the arms side by side, in that dashboard, at the port that it prints"),
    ]
    # Not where nothing was measured, or where both arms trained in the same way.
    unclear = [
        answer.estimate
        for contrast in summary.contrasts
        for answer in answers(contrast)
        if answer.reply == "cannot tell" and not answer.reason
    ]
    if more_seeds and any(estimate is not None and estimate.n for estimate in unclear):
        steps.append((more_seeds, "more seeds narrow the intervals"))
    print_next(steps)


def _print_retraining(study: str, number: int, of: int) -> None:
    typer.echo(f"{study}: re-training its best configuration, {number} of {of}", err=True)
