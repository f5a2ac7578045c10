"""The studies of a comparison: every arm on every seed, run now or stored already.

Each incumbent is trained again under uniform sampling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from hpo_mab._attributes import RETRAINED_KEY, UNIFORM
from hpo_mab._errors import ArgumentError, HpoMabWarning, SpecError, failure_reason
from hpo_mab._plan import derive_seed
from hpo_mab.compare._record_file import ComparisonRuns
from hpo_mab.data import ImageSplits
from hpo_mab.search import StudyRunner, StudySpec
from hpo_mab.search._definition import ArmSection, PrunerSection, SamplerSection
from hpo_mab.search._observer import OnTrial
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._runner import Launch
from hpo_mab.search._study import check_reference, check_study, choose_names
from hpo_mab.storage import Storage, StudyRun, open_study
from hpo_mab.storage._runs import deletion_is_an_error
from hpo_mab.training import Budget, select_device

if TYPE_CHECKING:
    import optuna


def arms_of(spec: StudySpec) -> dict[str, StudySpec]:
    """The definition of each arm by name, the reference included.

    Without ``[compare.arms]`` the arms are the study as it is and the study under uniform sampling.
    ``compare.unpruned`` adds the latter without pruning.
    """
    uniform = SamplerSection(kind="uniform")
    if not spec.compare.arms:
        if spec.compare.reference != "uniform":
            raise SpecError(
                "compare.reference must be 'uniform' without [compare.arms], "
                f"got '{spec.compare.reference}'."
            )
        # A study under uniform sampling is compared with the default sampler.
        bandit = ArmSection(sampler=SamplerSection())
        study = spec if spec.sampler.kind != "uniform" else spec.as_arm(bandit)
        arms = {study.sampler.kind: study, "uniform": spec.as_arm(ArmSection(sampler=uniform))}
        if spec.compare.unpruned and spec.pruner.kind != "none":
            whole = ArmSection(sampler=uniform, pruner=PrunerSection(kind="none"))
            arms["unpruned"] = spec.as_arm(whole)
        return arms
    arms = {name: spec.as_arm(arm) for name, arm in spec.compare.arms.items()}
    reference = spec.compare.reference
    if reference not in arms:
        raise SpecError(f"compare.reference '{reference}' is not an arm: {', '.join(arms)}.")
    if len(arms) < 2:
        raise SpecError("compare.arms must name at least two arms.")
    return arms


#: Called before each study with its name and the trials of its definition. The context ends with
#: the study.
StudyProgressFactory = Callable[[str, int], contextlib.AbstractContextManager[OnTrial | None]]

#: Called before each training of an incumbent: with the study's name, the training's number from 1,
#: and the number of trainings.
RetrainCallback = Callable[[str, int, int], None]


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
        launch: Shares the trials with other processes, see `hpo_mab.workers`; None does not.
        progress: Shows the progress of one study; by default nothing does.
        on_retrain: Called before each training of an incumbent.

    Raises:
        StorageError: Storage holds a study of an arm's name that is defined otherwise.
        StudyFailedError: Three trials of a study failed in a row.
    """
    runs: list[StudyRun] = []
    interrupted = False
    chosen = comparison_names(spec, storage) if names is None else names
    try:
        for runner in _runners(spec, storage, chosen):
            name = chosen[runner.arm, runner.spec.seed]
            with progress(name, runner.spec.budget.trials) as on_trial:
                outcome = runner.run(
                    name, on_trial=on_trial, score=False, launch=launch, keep_target=True
                )
            runs.append(outcome.run)
            if interrupted := outcome.interrupted:
                break
            scores = retrain(runner, outcome.run, on_retrain=on_retrain)
            runs[-1] = dataclasses.replace(runs[-1], retrained=scores)
            del runner  # See `_runners`.
    except KeyboardInterrupt:
        interrupted = True
    return ComparisonRuns(
        reference=spec.compare.reference, runs=tuple(runs), interrupted=interrupted
    )


def comparison_names(
    spec: StudySpec, storage: Storage, *, name: str | None = None
) -> dict[tuple[str, int], str]:
    """Names of the studies of a comparison by arm and seed; none may be another study's.

    ``name`` begins the names, see `choose_names`. Reads no data and trains nothing.

    Raises:
        ArgumentError: Evidence that cannot be read; a pruner's reference with several seeds, or one
            that cannot be paired with its study.
        StorageError: A name is that of a study that is defined otherwise.
        UnknownNameError: The reference of an arm's pruner is neither stored nor planned before it.
    """
    studies = {
        (arm, study.seed): study for arms in _arms_by_seed(spec) for arm, study in arms.items()
    }
    if spec.compare.seeds > 1 and any("reference" in s.given_evidence for s in studies.values()):
        raise ArgumentError(
            "compare.seeds must be 1 with pruner.reference, a study of one seed, "
            f"got {spec.compare.seeds}."
        )
    names = choose_names(storage, studies, name=name)
    before: dict[str, StudySpec] = {}
    for key, chosen in names.items():
        check_study(storage, chosen, studies[key])
        check_reference(storage, studies[key], planned=before)
        before[chosen] = studies[key]
    return names


def _arms_by_seed(spec: StudySpec) -> Iterator[dict[str, StudySpec]]:
    """The arms of each seed."""
    for seed in range(spec.seed, spec.seed + spec.compare.seeds):
        yield arms_of(spec.model_copy(update={"seed": seed}))


def _runners(
    spec: StudySpec, storage: Storage, names: Mapping[tuple[str, int], str]
) -> Iterator[StudyRunner]:
    """A runner for each arm of each seed.

    They are popped, and deleted by the caller: data of one seed are freed before those of the next
    are loaded.
    """
    for arms in _arms_by_seed(spec):
        runners = _runners_of_seed(arms, storage, names)
        while runners:
            yield runners.pop(0)


def _runners_of_seed(
    arms: Mapping[str, StudySpec], storage: Storage, names: Mapping[tuple[str, int], str]
) -> list[StudyRunner]:
    """Runners of the arms of a seed, checked before the first one runs."""
    first = next(iter(arms.values()))
    splits = load_splits(first)
    if isinstance(splits, ImageSplits):
        # Once: on a GPU each arm would make a copy of its own.
        splits = splits.to(select_device(first.training.device))
    runners = [
        StudyRunner(arm_spec, storage, objective=make_objective(arm_spec, splits), arm=arm)
        for arm, arm_spec in arms.items()
    ]
    for runner in runners:
        runner.check(names[runner.arm, runner.spec.seed])
    return runners


def stored_scores(study: optuna.Study, run: StudyRun) -> tuple[Budget, tuple[float, ...]] | None:
    """What `retrain` has kept of a study: budget and test accuracies.

    None where there is nothing, or where the incumbent is another trial by now.
    """
    stored = study.user_attrs.get(RETRAINED_KEY, {})
    if run.best is None or stored.get("trial") != run.best.number or not stored["accuracies"]:
        return None
    return Budget(**stored["budget"]), tuple(stored["accuracies"])


def retrain(
    runner: StudyRunner, run: StudyRun, *, on_retrain: RetrainCallback | None = None
) -> tuple[float, ...]:
    """Test accuracies of a study's incumbent, trained again under uniform sampling.

    Scores are kept with the study, one by one, so that none is computed twice. Arms that share a
    study seed share the seeds of these trainings, too.

    Args:
        runner: The study's runner; ``[compare]`` of its definition has how often and how long.
        run: The study.
        on_retrain: Called before each training.

    Returns:
        The accuracies; none, with a warning, if the incumbent cannot be scored.
    """
    compare = runner.spec.compare
    if run.best is None or not run.best.was_run or compare.retrain == 0:
        return ()
    epochs = compare.retrain_epochs
    final = runner.objective.workload.budget if epochs is None else Budget(epochs=epochs)
    key = {"trial": run.best.number, "budget": dataclasses.asdict(final)}
    with deletion_is_an_error(runner.storage, run.name):
        study = open_study(runner.storage, run.name)
        stored = study.user_attrs.get(RETRAINED_KEY, {})
        # Scores of another incumbent, or of another budget, do not count.
        scores = stored["accuracies"] if {**stored, **key} == stored else []
        for index in range(len(scores), compare.retrain):
            if on_retrain is not None:
                on_retrain(run.name, index + 1, compare.retrain)
            fresh = derive_seed(run.seed, "retrain", index)
            try:
                accuracy = runner.train_again(run.best, seed=fresh, sampler=UNIFORM, final=final)
            except Exception as error:  # A user's test set or network may raise anything.
                reason = failure_reason(error)
                text = f"The best trial of '{run.name}' has no test accuracy: {reason}."
                warnings.warn(text, HpoMabWarning, stacklevel=3)
                return ()
            scores = [*scores, accuracy]
            study.set_user_attr(RETRAINED_KEY, {**key, "accuracies": scores})
    return tuple(scores[: compare.retrain])
