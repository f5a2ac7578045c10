"""Comparisons of studies that exist already, in any number of databases."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.compare._runner import ComparisonRuns, stored_scores
from hpo_mab.storage import (
    DEFAULT_URL,
    Definition,
    Storage,
    StudyRun,
    TrialRun,
    open_study,
    read_run,
)
from hpo_mab.storage import study_names as names_in
from hpo_mab.training import Budget

_ARM = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Studies chosen by name.

    Attributes:
        pattern: A study's name, or a pattern with ``*``, ``?`` and ``[...]``.
        url: The database to look in; None is every one at hand.
        arm: What to call the arm; None takes the one the study was made as.
    """

    pattern: str
    url: str | None = None
    arm: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[ARM=][DATABASE#]STUDY``."""
        named = _ARM.fullmatch(text)
        arm, rest = named.groups() if named else (None, text)
        url, _, pattern = rest.rpartition("#")
        return cls(pattern=pattern, url=url or None, arm=arm)


def stored_comparison(
    studies: Sequence[str], *, storages: Sequence[str] = (), reference: str | None = None
) -> ComparisonRuns:
    """A comparison of stored studies, as if it had been run; nothing is run.

    Scores of re-trained incumbents are taken over where the reference's were re-trained for as
    long.

    Args:
        studies: Names or patterns, each ``[ARM=][DATABASE#]STUDY``, e.g. ``"digits-*"``,
            ``"one.db#digits-mab-seed0"`` or ``"old=one.db#digits-mab-*"``.
        storages: Databases for the studies that name none; default the usual one.
        reference: Arm the others are compared with; None takes uniform if it is there, else the
            first.

    Raises:
        ArgumentError: A pattern that matches nothing, two studies of one arm and seed, studies of
            different data, or none with an evaluation.
        StorageError: A database that is not there or cannot be read.
        UnknownNameError: A name that no database holds, or an unknown reference.
    """
    chosen = [Selection.parse(text) for text in studies]
    asked = [selection.url for selection in chosen if selection.url is not None]
    open_to_all = list(storages) or ([DEFAULT_URL] if len(asked) < len(chosen) else [])
    opened = {url: Storage(url, create=False) for url in dict.fromkeys([*open_to_all, *asked])}
    try:
        found = _Found()
        for selection in chosen:
            urls = open_to_all if selection.url is None else [selection.url]
            for storage, name in _matches(selection, [opened[url] for url in urls]):
                found.add(storage, name, selection.arm)
    finally:
        for storage in opened.values():
            storage.close()
    return found.comparison(reference)


@dataclasses.dataclass
class _Found:
    """What has been found so far, by arm and seed."""

    runs: dict[tuple[str, int], StudyRun] = dataclasses.field(default_factory=dict)
    places: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    scores: dict[tuple[str, int], tuple[Budget, tuple[float, ...]]] = dataclasses.field(
        default_factory=dict
    )
    environments: dict[tuple[str, int], Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def add(self, storage: Storage, name: str, arm: str | None) -> None:
        """Read a study, unless it has been read as the same arm."""
        run = read_run(storage, name)
        if arm is not None:
            run = dataclasses.replace(run, arm=arm)
        key, place = (run.arm, run.seed), f"{storage.shown_url}#{name}"
        if key in self.runs and self.places[key] != place:
            raise ArgumentError(
                f"'{self.places[key]}' and '{place}' are both arm '{run.arm}', seed {run.seed}, "
                "and a comparison takes one study of an arm and seed. Name only one of them, or "
                "give one another arm's name: NAME=STUDY."
            )
        study = open_study(storage, name)
        self.runs[key], self.places[key] = run, place
        self.environments[key] = Definition.load(study).environment
        scores = stored_scores(study, run)
        if scores is not None:
            self.scores[key] = scores

    def _trials(self) -> Iterator[TrialRun]:
        return (trial for run in self.runs.values() for trial in run.trials)

    def comparison(self, reference: str | None) -> ComparisonRuns:
        """All of it."""
        arms = list(dict.fromkeys(arm for arm, _ in self.runs))
        if not any(trial.curve or trial.value is not None for trial in self._trials()):
            names = ", ".join(f"'{run.name}'" for run in self.runs.values())
            raise ArgumentError(
                f"No trial of {names} has come to an evaluation yet. 'hpo-mab run' goes on with a "
                "study."
            )
        chosen = reference or ("uniform" if "uniform" in arms else arms[0])
        if chosen not in arms:
            raise UnknownNameError("arm", chosen, arms)
        _refuse_other_data(list(self.runs.values()))
        budgets = {budget for (arm, _), (budget, _) in self.scores.items() if arm == chosen}
        return ComparisonRuns(
            reference=chosen,
            runs=tuple(self.runs.values()),
            # Accuracies after other budgets than the reference's say nothing beside them.
            retrained={
                key: scores for key, (budget, scores) in self.scores.items() if budget in budgets
            },
            interrupted=False,
            environments=self.environments,
        )


def _refuse_other_data(runs: Sequence[StudyRun]) -> None:
    """Accuracies on different examples cannot be compared."""
    first = runs[0]
    for run in runs[1:]:
        for key in ("name", "validation"):
            one, other = (each.spec.get("data", {}).get(key) for each in (first, run))
            if one != other:
                raise ArgumentError(
                    f"Studies of one comparison must have the same data.{key}: it is {one!r} in "
                    f"'{first.name}' and {other!r} in '{run.name}'. Name studies that agree in it."
                )


def _matches(selection: Selection, storages: Sequence[Storage]) -> Iterator[tuple[Storage, str]]:
    places = [(storage, name) for storage in storages for name in names_in(storage)]
    known = [name for _, name in places]
    # A study's name may hold a bracket.
    found = [place for place in places if place[1] == selection.pattern] or [
        place for place in places if fnmatch.fnmatchcase(place[1], selection.pattern)
    ]
    if not found:
        _refuse(selection.pattern, known, storages)
    yield from found


def _refuse(pattern: str, known: Sequence[str], storages: Sequence[Storage]) -> None:
    where = ", ".join(storage.shown_url for storage in storages)
    if not known:
        raise ArgumentError(f"There is no study in {where}; 'hpo-mab run' makes one.")
    if any(sign in pattern for sign in "*?["):
        raise ArgumentError(
            f"No study in {where} matches '{pattern}'; 'hpo-mab studies' lists them."
        )
    raise UnknownNameError("study", pattern, known)
