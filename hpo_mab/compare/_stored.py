"""A comparison of stored studies, found by name."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from hpo_mab._attributes import SEED_KEY
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab.compare._report import ComparisonRuns
from hpo_mab.compare._runner import stored_scores
from hpo_mab.data import DataIdentity
from hpo_mab.storage import (
    DEFAULT_URL,
    Storage,
    StoredDefinition,
    StudyRun,
    TrialRun,
    open_study,
    read_run,
)
from hpo_mab.storage import study_names as names_in
from hpo_mab.training import Budget

_ARM = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


class ForeignStudyWarning(UserWarning):
    """Studies that match a pattern and cannot be compared."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Studies chosen by name.

    Attributes:
        pattern: A study's name, or a pattern with ``*``, ``?`` and ``[...]``.
        url: The database of the study; None searches all that are given.
        arm: What to call the arm; None takes the one the study was made as.
    """

    pattern: str
    url: str | None = None
    arm: str | None = None

    @classmethod
    def parse(cls, text: str, names: Collection[str] = ()) -> Self:
        """Read ``[ARM=][DATABASE#]STUDY``.

        Args:
            text: What is to be read.
            names: Names of studies, which may hold ``=`` and ``#`` themselves.
        """
        if text in names:
            return cls(pattern=text)
        named = _ARM.fullmatch(text)
        arm, rest = named.groups() if named else (None, text)
        if rest in names or "#" not in rest:
            return cls(pattern=rest, arm=arm)
        databases = [match.start() for match in re.finditer("#", rest)]
        # The first # after which the text before it names a database; a path may contain #, too.
        cut = next((at for at in databases if _may_be_database(rest[:at])), databases[-1])
        return cls(pattern=rest[cut + 1 :], url=rest[:cut] or None, arm=arm)


def is_record(text: str, *, storages: Sequence[str] = ()) -> bool:
    """Whether a text names a record file, not a study whose name also ends in ``.json``.

    Args:
        text: As `stored_comparison` takes it, or the path of a record.
        storages: Databases to look for a study in; default the usual one.
    """
    # A file that exists decides; else a study may have such a name.
    if not text.endswith(".json") or Path(text).is_file():
        return text.endswith(".json")
    try:
        with _opened(storages or [DEFAULT_URL], needed=False) as opened:
            found = Selection.parse(text, _study_names(opened.values()))
        with _opened([found.url] if found.url else storages or [DEFAULT_URL]) as opened:
            return found.pattern not in _study_names(opened.values())
    except StorageError:
        return True


def _study_names(storages: Iterable[Storage]) -> list[str]:
    return [name for storage in storages for name in names_in(storage)]


def _may_be_database(url: str) -> bool:
    return "://" in url or Path(url).is_file()


@contextlib.contextmanager
def _opened(urls: Iterable[str], *, needed: bool = True) -> Iterator[dict[str, Storage]]:
    """Databases by URL, open within; where they are not ``needed``, without those that fail."""
    opened: dict[str, Storage] = {}
    try:
        for url in dict.fromkeys(urls):
            try:
                opened[url] = Storage(url, create=False)
                if not needed:
                    names_in(opened[url])  # Connects: a server may not answer.
            except StorageError:
                if needed:
                    raise
                if url in opened:
                    opened.pop(url).close()
        yield opened
    finally:
        for storage in opened.values():
            storage.close()


def stored_comparison(
    studies: Sequence[str], *, storages: Sequence[str] = (), reference: str | None = None
) -> ComparisonRuns:
    """A comparison of stored studies; nothing is trained.

    Scores of re-trained incumbents are taken over where the reference's of the same seed were
    re-trained for as long.

    Args:
        studies: Names or patterns, each ``[ARM=][DATABASE#]STUDY``, e.g. ``"digits-*"``,
            ``"one.db#digits-mab-seed0"`` or ``"old=one.db#digits-mab-*"``.
        storages: Databases for the studies that name none; default the usual one.
        reference: Arm the others are compared with; None takes uniform if it is there, else the
            first.

    Raises:
        ArgumentError: A pattern without a match, two studies of one arm and seed, studies of
            different data, or none with evaluations.
        StorageError: A database that is not there or cannot be read.
        UnknownNameError: A name that no database holds, or an unknown reference.
    """
    for name, given in (("studies", studies), ("storages", storages)):
        if isinstance(given, str):
            raise ArgumentError(f"{name} must be a list of names, got '{given}'.")
    if not studies:
        raise ArgumentError("studies must name at least one study, got none.")
    found = _FoundStudies()
    for storage, name, arm in _selected(studies, storages):
        found.add(storage, name, arm)
    return found.comparison(reference)


def _selected(
    studies: Sequence[str], storages: Sequence[str]
) -> Iterator[tuple[Storage, str, str | None]]:
    """Database, name and arm of the studies that are named; open until the next one."""
    everywhere = all(Selection.parse(text).url is not None for text in studies)
    # A text with # may be the name of a study in the default database.
    is_there = Path(sa.make_url(DEFAULT_URL).database or "").is_file()
    databases = storages or ([DEFAULT_URL] if is_there or not everywhere else [])
    with _opened(databases, needed=not everywhere) as usual:
        names = _study_names(usual.values())
        for selection in [Selection.parse(text, names) for text in studies]:
            with _opened([] if selection.url is None else [selection.url]) as own:
                for storage, name in _matches(selection, list((own or usual).values())):
                    yield storage, name, selection.arm


@dataclasses.dataclass
class _FoundStudies:
    """The studies found so far, by arm and seed."""

    runs: dict[tuple[str, int], StudyRun] = dataclasses.field(default_factory=dict)
    databases: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    scores: dict[tuple[str, int], tuple[Budget, tuple[float, ...]]] = dataclasses.field(
        default_factory=dict
    )
    environments: dict[tuple[str, int], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    data: dict[tuple[str, int], DataIdentity | None] = dataclasses.field(default_factory=dict)

    def add(self, storage: Storage, name: str, arm: str | None) -> None:
        """Read a study; refuse another one of the same arm and seed."""
        run = read_run(storage, name)
        if arm is not None:
            run = dataclasses.replace(run, arm=arm)
        key, place = (run.arm, run.seed), f"{storage.shown_url}#{name}"
        if key in self.runs and self.databases[key] != place:
            raise ArgumentError(
                f"'{self.databases[key]}' and '{place}' are both arm '{run.arm}', seed {run.seed}, "
                "and a comparison takes one study of an arm and seed. Name only one of them, or "
                "give one another arm's name: NAME=STUDY. Studies of own loops may have a seed: "
                f"study.set_user_attr('{SEED_KEY}', 1)."
            )
        study = open_study(storage, name)
        definition = StoredDefinition.of(study)
        self.runs[key], self.databases[key] = run, place
        self.data[key] = definition.data
        self.environments[key] = definition.environment
        scores = stored_scores(study, run)
        if scores is not None:
            self.scores[key] = scores

    def _refuse_other_files(self) -> None:
        # Each seed has its own split, so only studies of one seed are compared.
        first: dict[int, tuple[str, DataIdentity]] = {}
        for key, run in self.runs.items():
            data = self.data[key]
            if data is None:
                continue
            name, known = first.setdefault(run.seed, (run.name, data))
            if not data.is_same(known):
                raise ArgumentError(
                    "Studies of one comparison must have the same data: those of "
                    f"'{name}' and '{run.name}' differ in labels, files or pixels. Name studies "
                    "that agree in it."
                )

    def _trials(self) -> Iterator[TrialRun]:
        return (trial for run in self.runs.values() for trial in run.trials)

    def comparison(self, reference: str | None) -> ComparisonRuns:
        """The comparison of the studies found."""
        arms = list(dict.fromkeys(arm for arm, _ in self.runs))
        if not any(trial.curve or trial.value is not None for trial in self._trials()):
            names = ", ".join(f"'{run.name}'" for run in self.runs.values())
            raise ArgumentError(
                f"No trial of {names} has an evaluation yet. 'hpo-mab run' continues a study."
            )
        chosen = reference or ("uniform" if "uniform" in arms else arms[0])
        if chosen not in arms:
            raise UnknownNameError("arm", chosen, arms)
        _refuse_other_data(list(self.runs.values()))
        self._refuse_other_files()
        # By seed: accuracies after other budgets cannot be compared with the reference's.
        budgets = {seed: score[0] for (arm, seed), score in self.scores.items() if arm == chosen}
        return ComparisonRuns(
            reference=chosen,
            runs=tuple(self.runs.values()),
            retrained={
                key: scores
                for key, (budget, scores) in self.scores.items()
                if budgets.get(key[1]) == budget
            },
            interrupted=False,
            environments=self.environments,
        )


def _refuse_other_data(runs: Sequence[StudyRun]) -> None:
    """Accuracies on different examples cannot be compared."""
    first = runs[0]
    for run in runs[1:]:
        for key in ("name", "validation"):
            one, other = (_data_of(each, key) for each in (first, run))
            if one != other:
                raise ArgumentError(
                    f"Studies of one comparison must have the same data.{key}: it is {one!r} in "
                    f"'{first.name}' and {other!r} in '{run.name}'. Name studies that agree in it."
                )


def _data_of(run: StudyRun, key: str) -> Any:
    data = run.settings.data
    return (data.kind or None) if key == "name" else data.options.get(key)


def _matches(selection: Selection, storages: Sequence[Storage]) -> Iterator[tuple[Storage, str]]:
    databases = [(storage, name) for storage in storages for name in names_in(storage)]
    known = [name for _, name in databases]
    # An exact name first: it may contain a bracket.
    found = [place for place in databases if place[1] == selection.pattern] or _made_here(
        [place for place in databases if fnmatch.fnmatchcase(place[1], selection.pattern)]
    )
    if not found:
        _refuse_unmatched(selection.pattern, known, storages)
    yield from found


def _made_here(databases: Sequence[tuple[Storage, str]]) -> list[tuple[Storage, str]]:
    """The studies that this product made; all of them if it made none."""
    made = [
        (storage, name)
        for storage, name in databases
        if StoredDefinition.is_in(open_study(storage, name).user_attrs)
    ]
    others = [name for storage, name in databases if (storage, name) not in made]
    # A pattern takes studies of other programs only if it matches none of hpo-mab's.
    if made and others:
        text = f"{', '.join(others)}: not made by hpo-mab, and left out."
        warnings.warn(text, ForeignStudyWarning, stacklevel=2)
    return made or list(databases)


def _refuse_unmatched(pattern: str, known: Sequence[str], storages: Sequence[Storage]) -> None:
    where = ", ".join(storage.shown_url for storage in storages)
    if not known:
        raise ArgumentError(f"There is no study in {where}; 'hpo-mab run' makes one.")
    if any(sign in pattern for sign in "*?["):
        raise ArgumentError(
            f"No study in {where} matches '{pattern}'; 'hpo-mab studies' lists them."
        )
    raise UnknownNameError("study", pattern, known)
