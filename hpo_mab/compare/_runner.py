"""Running a comparison: every arm on every seed, and each incumbent trained again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hpo_mab._attributes import RETRAINED_KEY, UNIFORM
from hpo_mab._environment import environment
from hpo_mab.compare._arms import arms_of
from hpo_mab.search import (
    StudyRunner,
    StudySpec,
    TrialCallback,
    derive_seed,
    load_splits,
    make_objective,
)
from hpo_mab.search._study import check_pruner
from hpo_mab.storage import Definition, Storage, StudyRun, open_study
from hpo_mab.training import Budget

if TYPE_CHECKING:
    import optuna

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
    progress: StudyProgressFactory = lambda name, trials: contextlib.nullcontext(),
    on_retrain: RetrainCallback | None = None,
) -> ComparisonRuns:
    """Run what a comparison still lacks; studies that storage holds are continued, not repeated.

    All arms of a seed share the validation split, the Optuna seed, the first configurations and
    the budget.

    Args:
        spec: The study definition with its ``[compare]`` section.
        storage: Where the studies live.
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

    for runner in _runners(spec, storage):
        name, key = runner.name(), (runner.arm, runner.spec.seed)
        with progress(name, runner.spec.budget.trials) as on_trial:
            outcome = runner.run(name, on_trial=on_trial, score=False)
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


def _runners(spec: StudySpec, storage: Storage) -> Iterator[StudyRunner]:
    """A runner for each arm of each seed."""
    for seed in range(spec.seed, spec.seed + spec.compare.seeds):
        seeded = spec.model_copy(update={"seed": seed})
        arms, splits = arms_of(seeded), load_splits(seeded)
        # All before the first runs: a mistake in the last arm must not cost the first one's hours.
        runners = [
            StudyRunner(arm_spec, storage, objective=make_objective(arm_spec, splits), arm=arm)
            for arm, arm_spec in arms.items()
        ]
        for runner in runners:
            check_pruner(storage, runner.name(), runner.spec)
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
