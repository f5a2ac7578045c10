"""Writing notes, figures and curves of studies where the dashboard finds them."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from hpo_mab._attributes import PUBLISHED_KEY, TEST_KEY
from hpo_mab.dashboard._artifacts import LARGE, artifact_folder, save_curves
from hpo_mab.dashboard._buffer import DashboardBuffer, trial_ids
from hpo_mab.dashboard._evidence_note import evidence_note
from hpo_mab.dashboard._figures import comparison_figures, study_figures
from hpo_mab.dashboard._serve import comparison_path
from hpo_mab.dashboard._study_note import keep_users_part, study_note
from hpo_mab.dashboard._trial_notes import pruning_notes
from hpo_mab.storage import Definition, Storage, StudyRun, open_study, read_run, study_names

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.compare import ComparisonSummary

_FINISHED = ("complete", "pruned", "fail")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What came of publishing.

    Attributes:
        studies: Names of the studies whose pages are up to date now.
        seconds: How long it took.
        problem: Why some are not, in one line; empty if all are.
    """

    studies: tuple[str, ...]
    seconds: float
    problem: str = ""


def publish_study(storage: Storage, run: StudyRun, *, artifacts: Path | None = None) -> Published:
    """Write a study's note, figures, trial notes and, where large, its learning curves.

    Never raises for what it cannot write: the study itself is stored already.

    Args:
        storage: Where the study lives.
        run: The study, read.
        artifacts: Folder of the artifact store; None takes the storage's.
    """

    def write(name: str) -> bool:
        study = open_study(storage, name)
        _write(storage, run, study, study_figures([run]), artifacts=artifacts)
        return True

    return _each([run.name], write)


def publish_comparison(
    storage: Storage,
    runs: Sequence[StudyRun],
    summary: ComparisonSummary,
    *,
    artifacts: Path | None = None,
) -> Published:
    """Write notes with the verdict, and figures of all arms, into every study of a comparison.

    Never raises for what it cannot write: the studies themselves are stored already.

    Args:
        storage: Where the studies live.
        runs: The studies, read.
        summary: Their comparison.
        artifacts: Folder of the artifact store; None takes the storage's.
    """
    from hpo_mab.compare import verdict

    @functools.cache
    def shared() -> tuple[dict[str, str], dict[str, go.Figure]]:
        ids = [open_study(storage, run.name)._study_id for run in runs]
        found = {"verdict": verdict(summary), "compared": comparison_path(ids)}
        return found, study_figures(runs) | comparison_figures(summary)

    def write(name: str) -> bool:
        found, drawn = shared()
        study = open_study(storage, name)
        _write(storage, by_name[name], study, drawn, artifacts=artifacts, found=found)
        return True

    by_name = {run.name: run for run in runs}
    return _each(by_name, write)


def refresh(storage: Storage, *, artifacts: Path | None = None) -> Published:
    """Publish every study of ours that has gone on since it was published, or never was.

    Args:
        storage: The database.
        artifacts: Folder of the artifact store; None takes the storage's.
    """

    def write(name: str) -> bool:
        study = open_study(storage, name)
        stale = Definition.is_in(study.user_attrs) and _is_stale(storage, study)
        if stale:
            run = read_run(storage, name)
            _write(storage, run, study, study_figures([run]), artifacts=artifacts)
        return stale

    return _each(study_names(storage), write)


def _each(names: Iterable[str], write: Callable[[str], bool]) -> Published:
    """Write the pages of each study; what is wrong with one leaves the others theirs.

    Args:
        names: Names of the studies.
        write: Writes a study's pages; returns whether there was anything to write.
    """
    began = time.perf_counter()
    written: list[str] = []
    problems: list[str] = []
    for name in names:
        try:
            if write(name):
                written.append(name)
        except Exception as error:
            problems.append(" ".join(f"'{name}': {type(error).__name__}: {error}".split()))
    more = f" (and {len(problems) - 1} more studies)" if len(problems) > 1 else ""
    return Published(
        studies=tuple(written),
        seconds=time.perf_counter() - began,
        problem=f"{problems[0]}{more}" if problems else "",
    )


def _write(
    storage: Storage,
    run: StudyRun,
    study: optuna.Study,
    drawn: Mapping[str, go.Figure],
    *,
    artifacts: Path | None,
    found: Mapping[str, str] | None = None,
) -> None:
    attrs = storage.optuna.get_study_system_attrs(study._study_id)
    buffer = DashboardBuffer(attrs)
    # A study that goes on by itself keeps the verdict of the comparison it was part of.
    found = found or attrs.get(PUBLISHED_KEY, {}).get("found", {})
    note = study_note(
        run,
        storage,
        test_accuracy=_test_accuracy(study, run),
        evidence=evidence_note(study, run.spec),
        **found,
    )
    buffer.save_study_note(keep_users_part(note, buffer.study_note()))
    for name, figure in drawn.items():
        buffer.save_figure(name, figure)
    ids = trial_ids(storage.optuna.engine, study._study_id)
    for number, text in pruning_notes(run).items():
        if not buffer.has_trial_note(ids[number]):
            buffer.save_trial_note(ids[number], text)
    if sum(len(trial.curve) for trial in run.trials) >= LARGE:
        save_curves(study, run, artifacts or artifact_folder(storage))
    # Last: what could not be written is still to be published.
    finished = sum(trial.state in _FINISHED for trial in run.trials)
    buffer.save(PUBLISHED_KEY, {"finished": finished, "found": dict(found)})
    buffer.flush(storage.optuna.engine, study._study_id)


def _test_accuracy(study: optuna.Study, run: StudyRun) -> float | None:
    known: dict[str, Any] = study.user_attrs.get(TEST_KEY, {})
    fits = run.best is not None and known.get("trial") == run.best.number
    return float(known["accuracy"]) if fits else None


def _is_stale(storage: Storage, study: optuna.Study) -> bool:
    # Counted in the database: reading the trials of every study would take seconds.
    states = tuple(TrialState[name.upper()] for name in _FINISHED)
    finished = storage.optuna.get_n_trials(study._study_id, states)
    attrs = storage.optuna.get_study_system_attrs(study._study_id)
    return bool(finished != attrs.get(PUBLISHED_KEY, {}).get("finished", 0))
