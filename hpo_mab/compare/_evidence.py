"""Evidence of stored studies, to be saved for later ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import optuna

from hpo_mab._attributes import AUTO, UNIFORM
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab._stored_settings import StudySettings
from hpo_mab.advantage import Evidence, measure_evidence, pair_curves
from hpo_mab.advantage._evidence import DEFAULT_MARGIN, FEWEST_PAIRS
from hpo_mab.compare._stored import selected
from hpo_mab.compare._summary import stopped_pairs
from hpo_mab.pruners._evidence import pairs_of_trials
from hpo_mab.search._evidence_file import RaceOutcome
from hpo_mab.storage import StudyRun, open_study


def evidence_of(
    runs: Sequence[StudyRun],
    *,
    arm: str = "mab",
    reference: str = "uniform",
    margin: float = DEFAULT_MARGIN,
) -> Evidence:
    """Evidence of stored studies for early pruning, to be saved for later studies of the same task.

    Pairs are the trials of both arms with equal seed and configuration; at least 4 must have ended
    in both.

    Args:
        runs: Studies of both arms; those of other arms are not used.
        arm: Whose trials were trained with the bandit.
        reference: Whose trials were trained under uniform sampling.
        margin: See `hpo_mab.advantage.measure_evidence`.

    Raises:
        ArgumentError: Studies of one arm, fewer than 4 pairs, pairs that a pruner has stopped, or
            studies of several networks.
        UnknownNameError: No study of an arm.
    """
    arms = {run.arm for run in runs}
    if len(arms) == 1:
        raise ArgumentError(
            f"Evidence needs studies of two arms, and these are all of '{arms.pop()}'. Name those "
            "of uniform sampling, or of another reference, too."
        )
    arm_runs, reference_runs = _of_arm(runs, "arm", arm), _of_arm(runs, "reference", reference)
    all_runs = [*arm_runs, *reference_runs]
    seeds = f"{len(arm_runs)} seed{'' if len(arm_runs) == 1 else 's'}"
    source = f"{arm_runs[0].title}, {seeds}, {arm}/{reference}"
    pairs = pair_curves(arm_runs, reference_runs)
    if stopped := stopped_pairs(arm_runs, reference_runs):
        raise ArgumentError(
            f"Evidence needs pairs that no pruner can stop; {stopped} of these were stopped, and "
            "those left are a biased selection. Run the studies without a pruner."
        )
    count = len(pairs.budgets)
    if all(run.settings.evaluations == count for run in all_runs):
        # A pruner counts evaluations. Budgets in examples are rounded to whole steps, so a budget's
        # share may exceed that of its evaluation. A rung would then be decided one evaluation late.
        pairs = dataclasses.replace(pairs, budgets=np.arange(1.0, count + 1))
    return measure_evidence(
        pairs,
        margin=margin,
        source=source,
        data=_common_name(all_runs, "data"),
        model=_common_name(all_runs, "model"),
    )


def _of_arm(runs: Sequence[StudyRun], what: str, arm: str) -> list[StudyRun]:
    found = [run for run in runs if run.arm == arm]
    if not found:
        raise UnknownNameError(what, arm, list(dict.fromkeys(run.arm for run in runs)))
    return found


def _common_name(runs: Sequence[StudyRun], part: str) -> str:
    names: list[str] = sorted({getattr(run.settings, part).kind for run in runs})
    if len(names) > 1:
        one = "data set" if part == "data" else "network"
        # Own loops store no name.
        theirs = " and ".join(name or "an unknown one" for name in names)
        raise ArgumentError(
            f"Evidence is of one {one}; these studies are of {theirs}. Name studies of one of them."
        )
    return names[0]


def race_evidence(
    studies: Sequence[str], *, storages: Sequence[str] = (), margin: float = DEFAULT_MARGIN
) -> tuple[Evidence, ...]:
    """Evidence of each study that has chosen its batch sampler by a race.

    It holds the choice. If that is not uniform sampling, it also holds what the pairs of the race
    show for early pruning.

    Args:
        studies: Names or patterns, as in `stored_comparison`. Studies whose sampler is not
            ``"auto"`` are left out.
        storages: Databases for the studies that name none; default the usual one.
        margin: See `hpo_mab.advantage.measure_evidence`.

    Raises:
        ArgumentError: A study whose sampler is ``"auto"`` has no choice for later studies.
    """
    measured = []
    for storage, name, _ in selected(studies, storages):
        study = open_study(storage, name)
        settings = StudySettings.stored_in(study.user_attrs)
        if settings.sampler.kind == AUTO:
            measured.append(_race_evidence(study, RaceOutcome.of(study), settings, margin))
    return tuple(measured)


def _race_evidence(
    study: optuna.Study, raced: RaceOutcome, settings: StudySettings, margin: float
) -> Evidence:
    chosen = raced.choice.sampler
    trials = study.get_trials(deepcopy=False)
    pairs = pairs_of_trials(trials, full=settings.evaluations or 0, sampler=chosen)
    if chosen == UNIFORM or pairs.ended < FEWEST_PAIRS:
        # Nothing for a pruner: uniform sampling has no advantage, or there are too few pairs.
        evidence = Evidence(pairs=0, margin=margin)
    else:
        evidence = measure_evidence(pairs, margin=margin)
    return dataclasses.replace(
        evidence,
        source=f"study {study.study_name}",
        data=settings.data.kind,
        model=settings.model.kind,
        race=raced.to_json(),
    )
