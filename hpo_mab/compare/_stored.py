"""A comparison of stored studies, found by name."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from hpo_mab._attributes import SEED_KEY
from hpo_mab._errors import ArgumentError, HpoMabWarning, UnknownNameError, require
from hpo_mab.compare._record_file import ComparisonRuns
from hpo_mab.compare._runner import stored_scores
from hpo_mab.data import DataIdentity
from hpo_mab.storage import DEFAULT_URL, Storage, StudyRun, open_study, read_run
from hpo_mab.storage import study_names as names_in
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.training import Budget

_ARM = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


def _parsed(text: str) -> tuple[str | None, str, str]:
    """Arm, database and pattern of ``[ARM=][DATABASE#]STUDY``; no database is an empty text."""
    named = _ARM.fullmatch(text)
    arm, rest = named.groups() if named else (None, text)
    # The last one: the path of a database may contain #, too.
    url, _, pattern = rest.rpartition("#")
    return arm, url, pattern


@contextlib.contextmanager
def _opened(storages: Iterable[str | Storage]) -> Iterator[list[Storage]]:
    """Databases, open within; one that is given open stays open."""
    with contextlib.ExitStack() as stack:
        yield [
            each if isinstance(each, Storage) else stack.enter_context(Storage(each, create=False))
            for each in dict.fromkeys(storages)
        ]


def stored_comparison(
    studies: Sequence[str],
    *,
    storages: Sequence[str | Storage] = (),
    reference: str | None = None,
) -> ComparisonRuns:
    """A comparison of stored studies; nothing is trained.

    Test accuracies of re-trained incumbents are used only if the reference's incumbent of the same
    seed was re-trained with the same budget. Of each seed, equally many
    accuracies of every arm are used.

    Args:
        studies: Names or patterns, each ``[ARM=][DATABASE#]STUDY``, e.g. ``"digits-*"``,
            ``"one.db#digits-mab-seed0"`` or ``"old=one.db#digits-mab-*"``.
        storages: Databases for the studies that name none, open or by URL; default the usual one.
        reference: Arm the others are compared with; None takes that of the studies' definition,
            else uniform, else the first.

    Raises:
        ArgumentError: A pattern without a match, two studies of one arm and seed, studies of
            different data, or none with evaluations.
        StorageError: A database that is not there or cannot be read.
        UnknownNameError: A name that no database holds, or an unknown reference.
    """
    for name, value in (("studies", studies), ("storages", storages)):
        # The type alone is shown: a URL may hold a password.
        known = not isinstance(value, str | Path | Storage)
        require(known, name, "a list", type(value).__name__)
    if not studies:
        raise ArgumentError("studies must name at least one study, got none.")
    return _comparison(itertools.starmap(_StoredStudy.read, selected(studies, storages)), reference)


def comparison_of(
    storage: Storage, names: Iterable[str], *, reference: str | None
) -> ComparisonRuns:
    """A comparison of the studies of an open database that have these names."""
    return _comparison((_StoredStudy.read(storage, name, None) for name in names), reference)


def selected(
    studies: Sequence[str], storages: Sequence[str | Storage]
) -> Iterator[tuple[Storage, str, str | None]]:
    """Database, name and arm of each named study, while its database is open."""
    chosen = [_parsed(text) for text in studies]
    usual = (storages or [DEFAULT_URL]) if any(not url for _, url, _ in chosen) else []
    with _opened(usual) as here:
        for arm, url, pattern in chosen:
            with _opened([url] if url else []) as own:
                for storage, name in _matches(pattern, own or here):
                    yield storage, name, arm


class _StoredStudy(NamedTuple):
    """A study of a database.

    Attributes:
        run: The study.
        label: Its database and name.
        data: Identity of its data; None if not known.
        scores: Budget and test accuracies of its re-trainings; None if there are none.
    """

    run: StudyRun
    label: str
    data: DataIdentity | None
    scores: tuple[Budget, tuple[float, ...]] | None

    @classmethod
    def read(cls, storage: Storage, name: str, arm: str | None) -> Self:
        """Read a study; ``arm`` replaces the name of its arm."""
        run, study = read_run(storage, name), open_study(storage, name)
        if arm is not None:
            run = dataclasses.replace(run, arm=arm)
        label = f"{storage.shown_url}#{name}"
        return cls(run, label, StoredDefinition.of(study).data, stored_scores(study, run))


def _refuse_twice(one: _StoredStudy, other: _StoredStudy) -> None:
    """Refuse two studies of one arm and seed."""
    if one.label != other.label:
        raise ArgumentError(
            f"'{one.label}' and '{other.label}' are both arm '{one.run.arm}', seed {one.run.seed}, "
            "and a comparison takes one study for each arm and seed. Name only one of them, or "
            "rename the arm of one: NAME=STUDY. In a study of your own loop, set the seed: "
            f"study.set_user_attr('{SEED_KEY}', 1)."
        )


def _comparison(studies: Iterable[_StoredStudy], reference: str | None) -> ComparisonRuns:
    """The comparison of some studies."""
    by_arm_and_seed: dict[tuple[str, int], _StoredStudy] = {}
    for study in studies:
        key = study.run.arm, study.run.seed
        _refuse_twice(by_arm_and_seed.setdefault(key, study), study)
    chosen = list(by_arm_and_seed.values())
    runs = [study.run for study in chosen]
    arms = list(dict.fromkeys(run.arm for run in runs))
    if not any(trial.curve or trial.value is not None for run in runs for trial in run.trials):
        names = ", ".join(f"'{run.name}'" for run in runs)
        raise ArgumentError(
            f"No trial of {names} has an evaluation yet. 'hpo-mab run' continues a study."
        )
    # What `hpo-mab compare` compares with, if the studies were made by it.
    named = {run.settings.reference for run in runs} & set(arms)
    default = "uniform" if "uniform" in arms else arms[0]
    reference = reference or (named.pop() if len(named) == 1 else default)
    if reference not in arms:
        raise UnknownNameError("reference", reference, arms)
    _refuse_other_data(runs)
    _refuse_other_files(chosen)
    # By seed: accuracies after other budgets cannot be compared with the reference's.
    budgets = {
        study.run.seed: study.scores[0]
        for study in chosen
        if study.scores is not None and study.run.arm == reference
    }
    used = {
        (study.run.arm, study.run.seed): study.scores[1]
        for study in chosen
        if study.scores is not None and budgets.get(study.run.seed) == study.scores[0]
    }
    # Trainings are paired by number: of each seed, all arms count equally many.
    fewest: dict[int, int] = {}
    for (_, seed), scores in used.items():
        fewest[seed] = min(fewest.get(seed, len(scores)), len(scores))
    return ComparisonRuns(
        reference=reference,
        runs=tuple(
            dataclasses.replace(
                run, retrained=used.get((run.arm, run.seed), ())[: fewest.get(run.seed)]
            )
            for run in runs
        ),
    )


def _refuse_other_files(studies: Sequence[_StoredStudy]) -> None:
    # Each seed has its own split, so only studies of one seed are compared.
    first: dict[int, tuple[str, DataIdentity]] = {}
    for run, _, data, _ in studies:
        if data is None:
            continue
        name, first_data = first.setdefault(run.seed, (run.name, data))
        if not data.is_same(first_data):
            raise ArgumentError(
                "Studies of one comparison must have the same data: those of "
                f"'{name}' and '{run.name}' differ in labels, files or pixels. Name studies "
                "that agree in it."
            )


def _refuse_other_data(runs: Sequence[StudyRun]) -> None:
    """Accuracies on different examples cannot be compared."""
    first = runs[0]
    for run in runs[1:]:
        for key in ("name", "validation"):
            one, other = _data_of(first, key), _data_of(run, key)
            if one != other:
                raise ArgumentError(
                    f"Studies of one comparison must have the same data.{key}: it is {one!r} in "
                    f"'{first.name}' and {other!r} in '{run.name}'. Name studies that agree in it."
                )


def _data_of(run: StudyRun, key: str) -> Any:
    data = run.settings.data
    return (data.kind or None) if key == "name" else data.options.get(key)


def _matches(pattern: str, storages: Sequence[Storage]) -> Iterator[tuple[Storage, str]]:
    stored = [(storage, name) for storage in storages for name in names_in(storage)]
    # An exact name first: it may contain a bracket.
    matching = [study for study in stored if study[1] == pattern] or _made_here(
        [study for study in stored if fnmatch.fnmatchcase(study[1], pattern)]
    )
    if not matching:
        _refuse_unmatched(pattern, [name for _, name in stored], storages)
    yield from matching


def _made_here(stored: Sequence[tuple[Storage, str]]) -> list[tuple[Storage, str]]:
    """The studies that this product made; all of them if it made none."""
    made = [
        (storage, name)
        for storage, name in stored
        if StoredDefinition.is_in(open_study(storage, name).user_attrs)
    ]
    others = [name for storage, name in stored if (storage, name) not in made]
    # A pattern takes studies of other programs only if it matches none of hpo-mab's.
    if made and others:
        text = (
            f"{', '.join(others)}: left out, because hpo-mab run has not made them. To compare "
            "studies of your own loop, name them exactly."
        )
        warnings.warn(text, HpoMabWarning, stacklevel=2)
    return made or list(stored)


def _refuse_unmatched(pattern: str, names: Sequence[str], storages: Sequence[Storage]) -> None:
    where = ", ".join(storage.shown_url for storage in storages)
    if not names:
        raise ArgumentError(f"There is no study in {where}.")
    raise UnknownNameError("study", pattern, names)
