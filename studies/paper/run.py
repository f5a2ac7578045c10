"""The paper's experiments: every sampler from the same seeds, on three data sets.

    python studies/paper/run.py --scale small     # two CPU cores
    python studies/paper/run.py --scale paper     # a GPU
    python studies/paper/run.py --scale small --figures-only

If it is interrupted, the same command continues and runs nothing twice. For each data set it writes
to this folder the record, ``SCALE-DATA.json``, and a figure of it, ``SCALE-DATA.svg``:
validation accuracy and training loss against iterations. Figures need ``pip install kaleido`` and
Chrome or Chromium.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_mab._attributes import SECONDS_KEY
from hpo_mab._errors import HpoMabError
from hpo_mab.cli import _options as cli
from hpo_mab.compare import (
    ComparisonRuns,
    comparison_record,
    figures,
    read_record,
    report_html,
    run_comparison,
)
from hpo_mab.search import StudySpec
from hpo_mab.storage import Storage
from hpo_mab.training import select_device

if TYPE_CHECKING:
    import plotly.graph_objects as go

HERE = Path(__file__).resolve().parent
DATA = ("fashion_mnist", "cifar10", "cifar100")

#: Keys that differ from ``paper.toml``.
SCALES: Mapping[str, Mapping[str, Any]] = {
    "small": {"model.name": "small_cnn", "budget.epochs": 2, "budget.evaluations": 8},
    "paper": {
        "model.name": "resnet18",
        "budget.epochs": 30,
        "budget.evaluations": 30,
        "training.precision": "bfloat16",
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if not options.figures_only:
            _run(options)
        for data in options.data:
            draw(_record_path(options, data))
    except HpoMabError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command continues.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=tuple(SCALES), required=True)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--data-root", default=os.environ.get("HPO_MAB_DATA", "data"))
    parser.add_argument("--storage", default="sqlite:///paper.db", help="where studies are kept")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--workers", type=int, default=1, help="seeds that run at the same time")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of records and figures")
    parser.add_argument("--report", action="store_true", help="write HTML reports as well")
    parser.add_argument("--figures-only", action="store_true", help="draw stored records, run none")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def _run(options: argparse.Namespace) -> None:
    device = device_of(options.scale, options.device)
    specs = {
        data: definition(
            options.scale, data, root=options.data_root, device=device, assignments=options.set
        )
        for data in options.data
    }
    _run_seeds(list(specs.values()), options.storage, workers=options.workers)
    storage = Storage(options.storage)
    for data, spec in specs.items():
        # All runs are stored, so this only reads them.
        found = run_comparison(spec, storage)
        path = _record_path(options, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = record(found, scale=options.scale, device=device)
        path.write_text(text, encoding="utf-8")
        if options.report:
            summary = found.summarise()
            page = report_html(found.runs, summary, title=f"The paper's experiment on {data}")
            path.with_suffix(".html").write_text(page, encoding="utf-8")
        print("\n".join(["", data, *json.loads(text)["verdict"]]))
    storage.close()


def _record_path(options: argparse.Namespace, data: str) -> Path:
    out: Path = options.out
    return out / f"{options.scale}-{data}.json"


def device_of(scale: str, name: str) -> str:
    """The device to train on.

    Raises:
        HpoMabError: The paper's scale without a GPU, unless ``name`` is a device.
    """
    kind = select_device(name).type
    if scale == "paper" and kind == "cpu" and name != "cpu":
        raise HpoMabError(
            "--scale paper trains a ResNet-18 for "
            f"{SCALES['paper']['budget.epochs']} epochs 105 times and needs a GPU, which PyTorch "
            "does not find here; take --scale small, or insist with --device cpu (weeks)."
        )
    return kind if name == "auto" else name


def definition(
    scale: str, data: str, *, root: str, device: str, assignments: Sequence[str] = ()
) -> StudySpec:
    """The comparison on one data set at one scale."""
    named = {"name": f"paper-{scale}-{data}", "data.name": data}
    where = {"data.root": root, "training.device": device}
    return cli.load(str(HERE / "paper.toml"), assignments, {**named, **SCALES[scale], **where})


def _run_seeds(specs: Sequence[StudySpec], url: str, *, workers: int) -> None:
    """Run every seed of every comparison, several at a time."""
    Storage(url).curves  # noqa: B018  Creates its tables, once.
    parts = [
        spec.model_copy(
            update={"seed": seed, "compare": spec.compare.model_copy(update={"seeds": 1})}
        )
        for spec in specs
        for seed in range(spec.seed, spec.seed + spec.compare.seeds)
    ]
    if workers == 1:
        for part in parts:
            _raise_if_any(_run_seed(part, url))
        return
    # Spawned: a forked process cannot use the CUDA context or the threads of its parent.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            for done in concurrent.futures.as_completed(
                [pool.submit(_run_seed, part, url) for part in parts]
            ):
                _raise_if_any(done.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _run_seed(spec: StudySpec, url: str) -> str | None:
    """Run all arms of one seed; returns the error, if there is one."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    storage = Storage(url)
    try:
        found = run_comparison(spec, storage, progress=_say_when_done)
    except HpoMabError as error:
        return str(error)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        storage.close()
    return "interrupted" if found.interrupted else None


def _raise_if_any(problem: str | None) -> None:
    if problem == "interrupted":
        raise KeyboardInterrupt
    if problem is not None:
        raise HpoMabError(problem)


@contextlib.contextmanager
def _say_when_done(name: str, trials: int) -> Iterator[Callable[..., None]]:
    def say(study: Any, trial: Any) -> None:
        shown = "-" if trial.value is None else f"{trial.value:.2%}"
        seconds = trial.user_attrs.get(SECONDS_KEY, 0.0)
        print(f"{name}: {trial.state.name.lower()}, {shown}, {seconds:.0f} s", flush=True)

    yield say


def record(found: ComparisonRuns, *, scale: str, device: str) -> str:
    """The record of `hpo-mab compare`, with its scale and the reason for it."""
    summary = found.summarise()
    plain = json.loads(comparison_record(found, summary))
    gpus = plain["environment"]["gpus"]
    why = "it was not asked for" if gpus else "no GPU was found where this was run"
    plain["scale"] = {
        "name": scale,
        "device": device,
        "paper_scale_run": scale == "paper",
        "paper_scale_missing": None if scale == "paper" else why,
    }
    return json.dumps(plain, separators=(",", ":"))


def draw(path: Path) -> None:
    """Draw a record as ``NAME.svg`` in the same folder."""
    target = path.with_suffix(".svg")
    try:
        picture(path).write_image(target)
    except (ImportError, RuntimeError, ValueError) as error:  # No kaleido, or no browser.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(f"{target.name} is not drawn: {reason}", file=sys.stderr)


def picture(path: Path) -> go.Figure:
    """Validation accuracy and training loss of a record against iterations."""
    from plotly.subplots import make_subplots

    stored = read_record(path)
    seeds = len({run.seed for run in stored.runs})
    made = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    for column, metric in enumerate(("accuracy", "train_loss"), start=1):
        panel = figures.learning_curves(stored.runs, metric=metric, against="steps")
        for trace in panel.data:
            shown = column == 1 and trace.showlegend is not False
            made.add_trace(trace.update(showlegend=shown), row=1, col=column)
        made.update_xaxes(title_text="iterations", row=1, col=column)
        made.update_yaxes(title_text=panel.layout.yaxis.title.text, row=1, col=column)
    made.update_layout(
        template="plotly_white",
        title=f"{stored.runs[0].settings.data.kind}: mean and 95% interval of {seeds} seeds",
        width=1000,
        height=420,
        margin={"l": 60, "r": 20, "t": 60, "b": 60},
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
