"""The studies of a comparison: every arm on every seed, run now or stored already.

Each incumbent is trained again under uniform sampling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from hpo_mab._attributes import RETRAINED_KEY, UNIFORM, environment
from hpo_mab._errors import ArgumentError, SpecError, StorageError, UnknownNameError
from hpo_mab.data import DataIdentity
from hpo_mab.search import (
    Launch,
    PrunerSection,
    SamplerSection,
    StudyRunner,
    StudySpec,
    TrialCallback,
    derive_seed,
    load_splits,
    make_objective,
)
from hpo_mab.search._study import check_study, choose_names, stored_trials
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

if TYPE_CHECKING:
    import optuna


def arms_of(spec: StudySpec) -> dict[str, StudySpec]:
    """The definition of each arm by name, the reference included.

    Without ``[compare.arms]`` the arms are the study as it is, the same under uniform sampling and,
    with ``compare.unpruned``, that without pruning.

    Raises:
        SpecError: The reference is not among the arms, or there is nothing to compare.
    """
    uniform = SamplerSection(kind="uniform")
    if not spec.compare.arms:
        if spec.compare.reference != "uniform":
            raise SpecError(
                f"compare.reference '{spec.compare.reference}' is not an arm: without "
                "[compare.arms] the study is compared with uniform sampling."
            )
        own = spec if spec.sampler.kind != "uniform" else _with(spec, SamplerSection())
        found = {own.sampler.kind: own, "uniform": _with(spec, uniform)}
        if spec.compare.unpruned and spec.pruner.kind != "none":
            whole = {"pruner": PrunerSection(kind="none")}
            found["unpruned"] = found["uniform"].model_copy(update=whole)
        return found
    arms = {
        name: spec.model_copy(
            update={"sampler": arm.sampler or spec.sampler, "pruner": arm.pruner or spec.pruner}
        )
        for name, arm in spec.compare.arms.items()
    }
    reference = spec.compare.reference
    if reference not in arms:
        raise SpecError(f"compare.reference '{reference}' is not an arm: {', '.join(arms)}.")
    if len(arms) < 2:
        raise SpecError("compare.arms must name at least two arms.")
    return arms


def _with(spec: StudySpec, sampler: SamplerSection) -> StudySpec:
    return spec.model_copy(update={"sampler": sampler})


#: Called before each study with its name and number of trials; a context that ends with it.
StudyProgressFactory = Callable[[str, int], contextlib.AbstractContextManager[TrialCallback | None]]

#: Called before each training of an incumbent with its study's name, which one it is, and of how
#: many.
RetrainCallback = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRuns:
    """Everything a comparison has run.

    Attributes:
        reference: The arm the others are compared with.
        runs: The studies, arm by arm within each seed.
        retrained: Test accuracies of each study's incumbent, trained again under uniform sampling
            at full budget on fresh seeds, by arm and seed.
        interrupted: Whether Ctrl-C ended it early.
        environments: Versions and hardware that each study began with, by arm and seed.
    """

    reference: str
    runs: tuple[StudyRun, ...]
    retrained: Mapping[tuple[str, int], tuple[float, ...]]
    interrupted: bool
    environments: Mapping[tuple[str, int], Mapping[str, Any]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def environment(self) -> dict[str, Any]:
        """What the first study began with; this machine's where none is known."""
        first = next(iter(self.environments.values()), None)
        return environment() if first is None else dict(first)


def run_comparison(
    spec: StudySpec,
    storage: Storage,
    *,
    names: Mapping[tuple[str, int], str] | None = None,
    launch: Launch | None = None,
    progress: StudyProgressFactory = lambda name, trials: contextlib.nullcontext(),
    on_retrain: RetrainCallback | None = None,
) -> ComparisonRuns:
    """Run what a comparison still lacks; studies that storage holds are continued, not repeated.

    All arms of a seed share the validation split, the Optuna seed, the first configurations and
    the budget. A stored study keeps a target that is higher than the definition's.

    Args:
        spec: The study definition with its ``[compare]`` section.
        storage: Where the studies live.
        names: Names of the studies by arm and seed, see `comparison_names`; None takes the default
            ones.
        launch: Has the trials run elsewhere, see `hpo_mab.workers`; None runs them here.
        progress: Shows the progress of one study; by default nothing does.
        on_retrain: Called before each training of an incumbent.

    Raises:
        StorageError: Storage holds a study of an arm's name that is defined otherwise.
        StudyFailedError: Three trials of a study failed in a row.
    """
    runs: list[StudyRun] = []
    retrained: dict[tuple[str, int], tuple[float, ...]] = {}
    environments: dict[tuple[str, int], Mapping[str, Any]] = {}

    def found(*, interrupted: bool) -> ComparisonRuns:
        return ComparisonRuns(
            reference=spec.compare.reference if spec.compare.arms else UNIFORM,
            runs=tuple(runs),
            retrained=retrained,
            interrupted=interrupted,
            environments=environments,
        )

    chosen = comparison_names(spec, storage) if names is None else names
    for runner in _runners(spec, storage, chosen):
        key = (runner.arm, runner.spec.seed)
        name = chosen[key]
        trials = max(runner.spec.budget.trials, stored_trials(storage, name))
        with progress(name, trials) as on_trial:
            outcome = runner.run(
                name, on_trial=on_trial, score=False, launch=launch, keep_target=True
            )
        runs.append(outcome.run)
        environments[key] = Definition.load(open_study(storage, name)).environment
        if outcome.interrupted:
            return found(interrupted=True)
        try:
            retrained[key] = retrain(
                runner,
                outcome.run,
                seeds=spec.compare.retrain,
                epochs=spec.compare.retrain_epochs,
                on_retrain=on_retrain,
            )
        except KeyboardInterrupt:
            return found(interrupted=True)
    return found(interrupted=False)


def comparison_names(
    spec: StudySpec, storage: Storage, *, name: str | None = None, fresh: bool = False
) -> dict[tuple[str, int], str]:
    """Names of the studies of a comparison by arm and seed, each checked to be free or its own.

    No data are looked at, and nothing is trained.

    Args:
        spec: The study definition with its ``[compare]`` section.
        storage: Where the studies live.
        name: Begins the names, see `choose_names`.
        fresh: Whether all studies are new ones.

    Raises:
        ArgumentError: Evidence that cannot be read.
        StorageError: A name is that of a study that is defined otherwise.
    """
    studies = {(arm, one.seed): one for seeded in _seeded(spec) for arm, one in seeded.items()}
    names = choose_names(storage, studies, name=name, fresh=fresh)
    for key, chosen in names.items():
        check_study(storage, chosen, studies[key])
    return names


def _seeded(spec: StudySpec) -> Iterator[dict[str, StudySpec]]:
    """The arms of each seed."""
    for seed in range(spec.seed, spec.seed + spec.compare.seeds):
        yield arms_of(spec.model_copy(update={"seed": seed}))


def _runners(
    spec: StudySpec, storage: Storage, names: Mapping[tuple[str, int], str]
) -> Iterator[StudyRunner]:
    """A runner for each arm of each seed."""
    for arms in _seeded(spec):
        splits = load_splits(next(iter(arms.values())))
        # All before the first runs: a mistake in the last arm must not cost the first one's hours.
        runners = [
            StudyRunner(arm_spec, storage, objective=make_objective(arm_spec, splits), arm=arm)
            for arm, arm_spec in arms.items()
        ]
        for runner in runners:
            runner.check(names[runner.arm, runner.spec.seed])
        yield from runners


def stored_scores(study: optuna.Study, run: StudyRun) -> tuple[Budget, tuple[float, ...]] | None:
    """What `retrain` has kept of a study: budget and test accuracies.

    None where there is nothing, or where the incumbent is another trial by now.
    """
    known = study.user_attrs.get(RETRAINED_KEY, {})
    if run.best is None or known.get("trial") != run.best.number or not known["accuracies"]:
        return None
    return Budget(**known["budget"]), tuple(known["accuracies"])


def retrain(
    runner: StudyRunner,
    run: StudyRun,
    *,
    seeds: int,
    epochs: float | None = None,
    on_retrain: RetrainCallback | None = None,
) -> tuple[float, ...]:
    """Test accuracies of a study's incumbent, trained again under uniform sampling.

    Scores are kept with the study, one by one, so that none is computed twice.

    Args:
        runner: The study's runner.
        run: The study.
        seeds: Number of fresh seeds; arms that share a study seed share them.
        epochs: Passes over the training set; None takes a trial's budget.
        on_retrain: Called before each training.
    """
    if run.best is None or seeds == 0:
        return ()
    study = open_study(runner.storage, run.name)
    known = study.user_attrs.get(RETRAINED_KEY, {})
    final = runner.objective.workload.budget if epochs is None else Budget(epochs=epochs)
    key = {"trial": run.best.number, "budget": dataclasses.asdict(final)}
    scores = known["accuracies"] if {**known, **key} == known else []
    for index in range(len(scores), seeds):
        if on_retrain is not None:
            on_retrain(run.name, index + 1, seeds)
        fresh = derive_seed(run.seed, "retrain", index)
        accuracy = runner.train_again(run.best, seed=fresh, sampler=UNIFORM, final=final)
        scores = [*scores, accuracy]
        study.set_user_attr(RETRAINED_KEY, {**key, "accuracies": scores})
    return tuple(scores[:seeds])


_ARM = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


class ForeignStudyWarning(UserWarning):
    """Studies that match a pattern and cannot be compared."""


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
        # The first that leaves a database; a path may hold a # as well.
        cut = next((at for at in databases if _may_be_database(rest[:at])), databases[-1])
        return cls(pattern=rest[cut + 1 :], url=rest[:cut] or None, arm=arm)


def is_record(text: str, *, storages: Sequence[str] = ()) -> bool:
    """Whether a text names a record file, rather than a study whose name ends as one's.

    Args:
        text: As `stored_comparison` takes it, or the path of a record.
        storages: Databases to look for a study in; default the usual one.
    """
    if not text.endswith(".json") or Path(text).is_file():
        return text.endswith(".json")
    try:
        with _opened(storages or [DEFAULT_URL]) as opened:
            found = Selection.parse(text, _names(opened.values()))
        with _opened([found.url] if found.url else storages or [DEFAULT_URL]) as opened:
            return found.pattern not in _names(opened.values())
    except StorageError:
        return True


def _names(storages: Iterable[Storage]) -> list[str]:
    return [name for storage in storages for name in names_in(storage)]


def _may_be_database(url: str) -> bool:
    return "://" in url or Path(url).is_file()


@contextlib.contextmanager
def _opened(urls: Iterable[str]) -> Iterator[dict[str, Storage]]:
    opened: dict[str, Storage] = {}
    try:
        for url in urls:
            if url not in opened:
                opened[url] = Storage(url, create=False)
        yield opened
    finally:
        for storage in opened.values():
            storage.close()


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
    found = _Found()
    with _opened(_usual(studies, storages)) as usual:
        names = _names(usual.values())
        for selection in [Selection.parse(text, names) for text in studies]:
            with _opened([] if selection.url is None else [selection.url]) as own:
                for storage, name in _matches(selection, list((own or usual).values())):
                    found.add(storage, name, selection.arm)
    return found.comparison(reference)


def _usual(studies: Sequence[str], storages: Sequence[str]) -> Sequence[str]:
    """The databases for studies that name none; none where all name one."""
    everywhere = all(Selection.parse(text).url is not None for text in studies)
    # A name that looks as if it named a database may be one in the usual place.
    is_there = Path(sa.make_url(DEFAULT_URL).database or "").is_file()
    return storages or ([DEFAULT_URL] if is_there or not everywhere else [])


@dataclasses.dataclass
class _Found:
    """What has been found so far, by arm and seed."""

    runs: dict[tuple[str, int], StudyRun] = dataclasses.field(default_factory=dict)
    databases: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    scores: dict[tuple[str, int], tuple[Budget, tuple[float, ...]]] = dataclasses.field(
        default_factory=dict
    )
    environments: dict[tuple[str, int], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    data: dict[tuple[str, int], DataIdentity | None] = dataclasses.field(default_factory=dict)

    def add(self, storage: Storage, name: str, arm: str | None) -> None:
        """Read a study, unless it has been read as the same arm."""
        run = read_run(storage, name)
        if arm is not None:
            run = dataclasses.replace(run, arm=arm)
        key, place = (run.arm, run.seed), f"{storage.shown_url}#{name}"
        if key in self.runs and self.databases[key] != place:
            raise ArgumentError(
                f"'{self.databases[key]}' and '{place}' are both arm '{run.arm}', seed {run.seed}, "
                "and a comparison takes one study of an arm and seed. Name only one of them, or "
                "give one another arm's name: NAME=STUDY."
            )
        study = open_study(storage, name)
        definition = Definition.of(study)
        self.runs[key], self.databases[key] = run, place
        self.data[key] = definition.data
        self.environments[key] = definition.environment
        scores = stored_scores(study, run)
        if scores is not None:
            self.scores[key] = scores

    def _refuse_other_files(self) -> None:
        # Of another seed, the parts of the same data are others.
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
        """All of it."""
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
        budgets = {budget for (arm, _), (budget, _) in self.scores.items() if arm == chosen}
        return ComparisonRuns(
            reference=chosen,
            runs=tuple(self.runs.values()),
            # Accuracies after other budgets cannot be compared with the reference's.
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
    # A study's name may hold a bracket.
    found = [place for place in databases if place[1] == selection.pattern] or _ours(
        [place for place in databases if fnmatch.fnmatchcase(place[1], selection.pattern)]
    )
    if not found:
        _refuse(selection.pattern, known, storages)
    yield from found


def _ours(databases: Sequence[tuple[Storage, str]]) -> list[tuple[Storage, str]]:
    """Those that this product made; all of them if it made none."""
    made = [
        (storage, name)
        for storage, name in databases
        if Definition.is_in(open_study(storage, name).user_attrs)
    ]
    others = [name for storage, name in databases if (storage, name) not in made]
    if made and others:
        text = f"{', '.join(others)}: not made by hpo-mab, and left out."
        warnings.warn(text, ForeignStudyWarning, stacklevel=2)
    return made or list(databases)


def _refuse(pattern: str, known: Sequence[str], storages: Sequence[Storage]) -> None:
    where = ", ".join(storage.shown_url for storage in storages)
    if not known:
        raise ArgumentError(f"There is no study in {where}; 'hpo-mab run' makes one.")
    if any(sign in pattern for sign in "*?["):
        raise ArgumentError(
            f"No study in {where} matches '{pattern}'; 'hpo-mab studies' lists them."
        )
    raise UnknownNameError("study", pattern, known)
