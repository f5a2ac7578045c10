"""Writing notes, figures and curves of studies where the dashboard finds them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy as sa
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from hpo_mab._attributes import BUDGET_KEY, CONFIRMED_KEY, PUBLISHED_KEY, TEST_KEY
from hpo_mab._plan import ENDED_STATES
from hpo_mab.dashboard._evidence import evidence_note
from hpo_mab.dashboard._figures import comparison_figures, study_figures
from hpo_mab.dashboard._files import (
    LARGE,
    Artifacts,
    ListedImages,
    draw_listed,
    examples_note,
    pictures_path,
    save_curves,
)
from hpo_mab.dashboard._notes import confirmed_note, keep_users_part, study_note
from hpo_mab.dashboard._serve import comparison_path
from hpo_mab.data import ImageData
from hpo_mab.search._confirm import stored_repeats
from hpo_mab.storage import Storage, StudyRun, open_study, read_run, study_names
from hpo_mab.storage._curves import chunks
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.storage._optuna import AttributeSink, id_of
from hpo_mab.storage._process import diagnose
from hpo_mab.storage._tables import STUDY_ATTRIBUTES, TRIALS, USER_ATTRIBUTES

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo_mab.compare import ComparisonSummary


def _write(engine: sa.Engine, study_id: int, values: Mapping[str, Any]) -> None:
    """Write system attributes of a study in one transaction; those whose value is None are removed.

    Optuna commits each attribute by itself, which takes milliseconds to tens of milliseconds. A
    study's figures are hundreds of attributes. Together they take about as long as one, and a
    reader never sees half of them.
    """
    table = STUDY_ATTRIBUTES
    with engine.begin() as connection:
        for chunk in chunks(list(values)):
            # Not an upsert, whose form differs between databases.
            connection.execute(
                table.delete().where(table.c.study_id == study_id, table.c.key.in_(chunk))
            )
            rows = [
                {"study_id": study_id, "key": key, "value_json": json.dumps(values[key])}
                for key in chunk
                if values[key] is not None
            ]
            if rows:
                connection.execute(table.insert(), rows)


def publish_study(
    storage: Storage,
    run: StudyRun,
    *,
    images: ImageData | None = None,
) -> str:
    """Write a study's note, figures and, where large, its learning curves.

    Errors are returned, not raised: the study itself is stored already.

    Args:
        storage: The study's database.
        run: The study, read.
        images: The study's training images, for pictures of suspicious labels in its note; None
            keeps those of an earlier call while they are still the most suspicious.

    Returns:
        The problem in one line; empty if all is written.
    """

    def write(name: str) -> None:
        study = open_study(storage, name)
        _publish_one(storage, run, study, study_figures([run]), images=images)

    return _publish_all([run.name], write)


def publish_comparison(
    storage: Storage,
    runs: Sequence[StudyRun],
    summary: ComparisonSummary,
) -> str:
    """Write notes with the verdict, and figures of all arms, into every study of a comparison.

    Errors are returned, not raised: the studies are stored already.

    Args:
        storage: The studies' database.
        runs: The studies, read.
        summary: Their comparison.

    Returns:
        The first problem in one line; empty if all is written.
    """
    from hpo_mab.compare import verdict

    # Called within `write`, whose errors are reported; once, because all studies share it.
    @functools.cache
    def shared() -> tuple[dict[str, str], dict[str, go.Figure]]:
        page = comparison_path([run.name for run in runs], reference=summary.reference)
        result = {"verdict": verdict(summary), "compared": page}
        return result, study_figures(runs) | comparison_figures(summary)

    def write(name: str) -> None:
        result, drawn = shared()
        study = open_study(storage, name)
        _publish_one(storage, by_name[name], study, drawn, result=result)

    by_name = {run.name: run for run in runs}
    return _publish_all(by_name, write)


def refresh(storage: Storage, *, on_news: Callable[[], None] = lambda: None) -> str:
    """Publish every study of ours that has new trials since it was published, or never was.

    In a database that may only be read, nothing.

    Args:
        storage: The database.
        on_news: Called before each study that is published; many trials take long.

    Returns:
        The first problem in one line; empty if all is written.
    """
    if storage.is_archive:
        return ""

    def write(name: str) -> None:
        study = open_study(storage, name)
        if not _is_ours(storage, study):
            return
        has_trials, is_confirmed = _news(storage, study)
        if has_trials or is_confirmed:
            on_news()
            run = read_run(storage, name)
            # A confirmation changes no figure, and figures may be those of a comparison.
            drawn = study_figures([run]) if has_trials else {}
            _publish_one(storage, run, study, drawn)

    return _publish_all(study_names(storage), write)


def _publish_all(names: Iterable[str], write: Callable[[str], None]) -> str:
    """Write the pages of each study; an error in one does not affect the others.

    Returns:
        The first error in one line; empty if there is none.
    """
    problems: list[str] = []
    for name in names:
        try:
            write(name)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, STORAGE_ERRORS):
                # Without the statement and its parameters.
                text = diagnose(error)
            problems.append(" ".join(f"'{name}': {text}".split()))
    more = f" (and {len(problems) - 1} more studies)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else ""


def _publish_one(
    storage: Storage,
    run: StudyRun,
    study: optuna.Study,
    drawn: Mapping[str, go.Figure],
    *,
    images: ImageData | None = None,
    result: Mapping[str, str] | None = None,
) -> None:
    # Read once: a training that is stored after this is published by the next `refresh`.
    study_id, attrs = id_of(study), study.user_attrs
    ended = sum(trial.state in ENDED_STATES for trial in run.trials)
    is_large = sum(len(trial.curve) for trial in run.trials) >= LARGE
    examples, listed = _examples(storage, run, study, images)
    # Of two processes that publish a study, the later one sees what the earlier one has stored.
    with storage.lock(run.name):
        before = _published(storage, study)
        # A study that continues by itself keeps the verdict of the comparison it was part of.
        verdict: dict[str, Any] = before.get("found", {})
        if result:
            verdict = {**result, "ended": ended}
        elif verdict.get("ended") == ended:
            # No trial has ended since the comparison was published: its figures stay.
            drawn = {}
        note = study_note(
            run,
            storage,
            test_accuracy=_test_accuracy(study, run),
            confirmed=confirmed_note(run, stored_repeats(attrs)),
            evidence=evidence_note(study, run.settings),
            examples=examples,
            verdict=verdict.get("verdict", ""),
            compared=verdict.get("compared", ""),
            is_old=verdict.get("ended", ended) != ended,
        )
        written = _page(storage, study, note, drawn)
        published = {
            **listed,
            "found": verdict,
            "confirmed": attrs.get(CONFIRMED_KEY),
            # If the curves cannot be saved, the next `refresh` tries again.
            "finished": None if is_large else ended,
        }
        _write(storage.optuna.engine, study_id, {**written, PUBLISHED_KEY: published})
    if is_large:
        save_curves(study, run, Artifacts(storage))
        with storage.lock(run.name):
            published = _published(storage, study) | {"finished": ended}
            _write(storage.optuna.engine, study_id, {PUBLISHED_KEY: published})


def _examples(
    storage: Storage,
    run: StudyRun,
    study: optuna.Study,
    images: ImageData | None,
) -> tuple[str, dict[str, Any]]:
    """The note on a study's record of examples, and which of them its picture shows."""
    record = storage.examples.load(id_of(study))
    if record is None:
        return "", {}
    before = _published(storage, study)
    drawn = ListedImages(**before["pictured"]) if "pictured" in before else None
    listed = draw_listed(study, record, images, Artifacts(storage), before=drawn)
    note = examples_note(
        record,
        run.name,
        storage,
        are_images=listed is not None or _is_built_in(run.settings.data.kind),
        images=listed,
        path=pictures_path(study),
    )
    return note, {} if listed is None else {"pictured": dataclasses.asdict(listed)}


def _published(storage: Storage, study: optuna.Study) -> dict[str, Any]:
    """What the last publication of the study has stored; empty if there was none."""
    attrs = storage.optuna.get_study_system_attrs(id_of(study))
    published: dict[str, Any] = attrs.get(PUBLISHED_KEY, {})
    return published


def _page(
    storage: Storage,
    study: optuna.Study,
    note: str,
    drawn: Mapping[str, go.Figure],
) -> dict[str, Any]:
    """The system attributes that change with a study's note and figures."""
    attrs = storage.optuna.get_study_system_attrs(id_of(study))
    page = AttributeSink(attrs)
    save_note(page, keep_users_part(note, str(get_note(page))))
    for name, figure in drawn.items():
        if figure.data:
            save_plotly_graph_object(page, figure, graph_object_id=name)
        else:
            # An earlier comparison may have drawn it.
            parts = (key for key in attrs if key.startswith(f"dashboard:plot_data:{name}:"))
            page.written.update(dict.fromkeys(parts))
    return page.written


def _test_accuracy(study: optuna.Study, run: StudyRun) -> float | None:
    scored: dict[str, Any] = study.user_attrs.get(TEST_KEY, {})
    fits = run.best is not None and scored.get("trial") == run.best.number
    return float(scored["accuracy"]) if fits else None


def _is_built_in(data: str) -> bool:
    """Whether a data set is one of ours, all of which are images; a user's has a module."""
    return bool(data) and ":" not in data


def _is_ours(storage: Storage, study: optuna.Study) -> bool:
    """Whether the study has a definition, or trials of a `hpo_mab.TrialReporter`."""
    if StoredDefinition.is_in(study.user_attrs):
        return True
    reported = (
        sa.select(TRIALS.c.trial_id)
        .join(USER_ATTRIBUTES, USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == id_of(study), USER_ATTRIBUTES.c.key == BUDGET_KEY)
        .limit(1)
    )
    with storage.optuna.engine.connect() as connection:
        return connection.scalar(reported) is not None


def _news(storage: Storage, study: optuna.Study) -> tuple[bool, bool]:
    """Whether trials have ended, and whether any were confirmed, since it was published."""
    # Counted without reading the trials, which takes seconds.
    states = [TrialState[name.upper()] for name in ENDED_STATES]
    ended = TRIALS.c.study_id == id_of(study), TRIALS.c.state.in_(states)
    with storage.optuna.engine.connect() as connection:
        finished = connection.scalar(sa.select(sa.func.count()).where(*ended))
    published = _published(storage, study)
    confirmed = published.get("confirmed") != study.user_attrs.get(CONFIRMED_KEY)
    return finished != published.get("finished", 0), confirmed
