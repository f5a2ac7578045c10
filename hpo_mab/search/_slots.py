"""How many trials of a study a process trains at a time: one stack of networks, or one by one."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import optuna

from hpo_mab._errors import failure_reason, memory_reason
from hpo_mab._plan import Plan
from hpo_mab.search._definition import Slots
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._ranges import count_values, extremes
from hpo_mab.search._space import Assignment, ComponentSpace, Configuration
from hpo_mab.search._stacks import why_alone
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._workload import Workload
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.training import Budget, TrainingDiverged
from hpo_mab.training._device import release_memory
from hpo_mab.training._stack import StackSlot

#: Most shapes of network and batch for which stacks are used.
MOST_SHAPES = 4

#: Most slots that ``"auto"`` takes; more gain little on the largest cards.
MOST_SLOTS = 32
#: At most 1 / FEWEST_ROUNDS of a study's trials run at a time: a search learns from finished ones.
FEWEST_ROUNDS = 4
#: A stack is used if a step takes less than this share of its time alone, per network.
_WORTH_IT = 0.8
#: Steps of each part of a probe, and validation examples of each of its evaluations.
_PROBED_STEPS, _PROBED_EXAMPLES = 10, 64


def slots_of_process(
    study: optuna.Study, objective: TrainingObjective, wanted: Slots, *, workers: int
) -> int:
    """Trials that this process trains at the same time; with ``"auto"`` a probe decides.

    ``workers`` processes share the study, this one included.
    """
    slots = 1 if _why_all_alone(objective) else wanted
    if isinstance(slots, int):
        return slots
    return probe_slots(objective, most=_most_slots(study, workers=workers))


def note_alone(objective: TrainingObjective, *, slots: Slots) -> None:
    """If ``slots`` requests a stack and none is possible, keep the reason for the summary."""
    reason = _why_all_alone(objective)
    on_gpu = objective.workload.device.type == "cuda"
    if reason is not None and (on_gpu if slots == "auto" else slots > 1):
        objective.note(f"trials are trained one at a time: {reason}")


def _why_all_alone(objective: TrainingObjective) -> str | None:
    """Why no trial is trained on a stack with others; None if some can be."""
    if objective.space.shapes * _kinds_of_stacks(objective.space.sampler) > MOST_SHAPES:
        # Most trials would be alone on a stack, which is many times slower than no stack.
        return (
            "ranges of the network's options, of the batch size or of the sampler's kinds of draws "
            "give each trial a stack of its own"
        )
    # One point is enough here. Twins may have another sampler: `StackLoop` checks each trial.
    low, _ = objective.space.corners()
    return why_alone(objective.workload, low)


def _kinds_of_stacks(sampler: ComponentSpace) -> float:
    """How many kinds of stacks the knobs of a sampler need, for trials of one shape."""
    knobs = sampler.values
    if sampler.name == "hard_mining":
        return count_values(knobs.get("presample"))
    # See `BanditSettings.structure`.
    apart = ["policy", "reward", "replacement"]
    corrected = set(map(bool, extremes(knobs.get("correction", 0))))
    if any(corrected):
        apart.append("prior")
    forgets = {
        "discount" if discount is not None else "window" if memory is not None else "nothing"
        for memory in extremes(knobs.get("memory", "auto"))
        for discount in extremes(knobs.get("discount"))
    }
    kinds = len(corrected) * len(forgets)
    return kinds * math.prod(count_values(knobs.get(name)) for name in apart)


def _most_slots(study: optuna.Study, *, workers: int = 1) -> int:
    """Most trials that one of the workers trains at a time, for what is left of a study."""
    target = StudyTarget.load(study)
    most = min(MOST_SLOTS, target.trials // FEWEST_ROUNDS // workers)
    if target.continues(study):
        return most
    # A budget in seconds is 0 here: what it pays for is not known before a trial has ended.
    if each := target.share_of_total(StoredDefinition.load(study).trial_examples, 0.0):
        most = min(most, int(1 / each) // FEWEST_ROUNDS // workers)
    plan = Plan.of(study)
    # Twins that wait, or will be tried again.
    twins = sum(
        twin != "" and all(one.state != "running" for one in plan.places[slot, twin])
        for slot, twin in plan.unsettled()
    )
    # Empty slots do not make a step shorter, so there are at most as many slots as trials left.
    return min(most, target.trials - plan.finished + twins)


def probe_slots(objective: TrainingObjective, *, most: int) -> int:
    """How many trials to train at a time, by a short probe on a CUDA device.

    If that cannot be measured, the objective notes why.

    Returns:
        ``most``, halved until a stack fits into memory; 1 on other devices, and where a stack is
        not faster or cannot be made.
    """
    workload = objective.workload
    configuration, _ = objective.space.corners()
    if workload.device.type != "cuda" or most < 2:
        return 1
    why = "no stack fits into memory"
    try:
        alone = seconds_alone(workload, configuration)
        while most > 1:
            try:
                seconds = seconds_stacked(workload, configuration, slots=most)
            except Exception as error:
                if memory_reason(error) is None:
                    raise
                seconds = None
            release_memory()
            if seconds is not None:
                return most if seconds < _WORTH_IT * alone else 1
            most //= 2
    except Exception as error:
        why = f"measuring whether a stack is faster failed: {failure_reason(error)}"
    objective.note(f"trials are trained one at a time: {why}")
    release_memory()
    return 1


#: Three parts. The first has what happens once, such as the capture of the graph. The second is
#: measured. The third is not trained: it would end with an evaluation on all examples.
_PROBED: Mapping[str, Any] = {"final": Budget(steps=3 * _PROBED_STEPS), "evaluations": 3}


def seconds_alone(workload: Workload, configuration: Configuration) -> float:
    """Seconds of some captured steps of one network."""
    with _with_few_examples(workload).training(configuration, seed=0, **_PROBED) as training:
        first, second = itertools.islice(training, 2)
    return second.seconds - first.seconds


def seconds_stacked(workload: Workload, configuration: Configuration, *, slots: int) -> float:
    """Seconds of as many steps of a stack, divided by its networks."""
    workload = _with_few_examples(workload)
    stack = workload.stack(configuration, slots=slots, seed=0)
    # One network and one sampler for all slots: making large ones takes longer than the steps.
    network = workload.network(configuration, seed=0)
    sampler = workload.sampler(configuration, seed=0, stacked=True)
    for slot in range(slots):
        assignment = Assignment(
            plan_slot=slot, configuration=configuration, seed=slot, may_prune=False
        )
        where = StackSlot(stack, slot)
        workload.start_stacked(where, assignment, sampler=sampler, network=network, **_PROBED)
    seconds = []
    for _ in range(2):
        (_, result), *_ = stack.advance()
        if isinstance(result, TrainingDiverged):
            raise result
        seconds.append(result.seconds)
    return seconds[1] - seconds[0]


def _with_few_examples(workload: Workload) -> Workload:
    """The workload with few validation examples; on all, evaluations would take longest."""
    probed = copy.copy(workload)
    probed.loop = dataclasses.replace(workload.loop, early_validation=_PROBED_EXAMPLES)
    return probed
