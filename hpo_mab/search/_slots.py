"""How many trials of a study a process trains at a time: one stack of networks, or one by one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import optuna

from hpo_mab._errors import deferred_interrupts
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._space import Configuration
from hpo_mab.search._stack_loop import StackingFailed, StackLoop, why_alone
from hpo_mab.search._trial_loop import Slots, TrialCallback, TrialLoop
from hpo_mab.search._workload import Workload
from hpo_mab.storage import Storage
from hpo_mab.training import Budget, TrainingDiverged
from hpo_mab.training._device import release_memory

#: Shapes of network and batch up to which trials share stacks.
MOST_SHAPES = 4

#: Most slots that ``"auto"`` takes; more gain little on the largest cards.
MOST_SLOTS = 32
#: A search learns from finished trials, so at most one in this many of a study runs at a time.
ROUNDS = 4
#: A stack is used if a step takes less than this share of its time alone, per network.
_WORTH_IT = 0.8
#: Steps of a probe's part, and examples that it is evaluated on.
_PROBED_STEPS, _PROBED_EXAMPLES = 10, 64


def run_trials(
    study: optuna.Study,
    storage: Storage,
    objective: TrainingObjective,
    *,
    slots: Slots = "auto",
    examples: bool = False,
    on_trial: TrialCallback | None = None,
    trials: int = 1,
) -> bool:
    """Run trials of a study until it is done, as many at a time as is worth it.

    Args:
        study: The study, with the sampler and pruner of its definition.
        storage: Its database.
        objective: Trains its trials.
        slots: Trials at the same time; ``"auto"`` measures whether a stack is faster.
        examples: Whether trials add to the study's record of examples.
        on_trial: Called with study and trial after each trial.
        trials: Total number of trials, existing ones included; ``"auto"`` takes at most a quarter.

    Returns:
        Whether Ctrl-C ended it early.
    """
    if objective.space.shapes > MOST_SHAPES:
        # Most trials would be alone on a stack, which is many times slower than no stack.
        if slots not in ("auto", 1):
            objective.note(
                "trials are trained one at a time: ranges of the network's options give each trial "
                "another shape"
            )
        slots = 1
    count = slots if isinstance(slots, int) else choose_slots(objective, trials=trials)
    # Both loops, so that Ctrl-C between them is not lost.
    with deferred_interrupts() as was_pressed:
        interrupted: bool | None = None
        if count > 1:
            stacked = StackLoop(
                study, storage, objective, slots=count, examples=examples, on_trial=on_trial
            )
            # The loop has kept the reason for the summary.
            with contextlib.suppress(StackingFailed):
                interrupted = stacked.run()
        if interrupted is None:
            loop = TrialLoop(study, storage, objective, examples=examples, on_trial=on_trial)
            interrupted = loop.run()
    return interrupted or was_pressed()


def choose_slots(objective: TrainingObjective, *, trials: int) -> int:
    """How many trials at a time train the fastest, found by a short probe on a CUDA device.

    Returns:
        1 on other devices, and where a stack is not faster or cannot be made.
    """
    workload = objective.workload
    most = min(MOST_SLOTS, trials // ROUNDS)
    configuration, _ = objective.space.corners()
    if workload.device.type != "cuda" or most < 2 or why_alone(workload, configuration):
        return 1
    try:
        return most if is_stack_faster(workload, configuration, slots=most) else 1
    except Exception:  # The trials will show the error.
        return 1
    finally:
        release_memory()


def is_stack_faster(workload: Workload, configuration: Configuration, *, slots: int) -> bool:
    """Whether a stack trains networks faster than one at a time, by a short probe."""
    probed = copy.copy(workload)
    # A stack of large networks would evaluate on all examples for longer than it trains here.
    probed.loop = dataclasses.replace(workload.loop, early_validation=_PROBED_EXAMPLES)
    alone = _seconds_alone(probed, configuration)
    return _seconds_stacked(probed, configuration, slots=slots) < _WORTH_IT * alone


#: Three parts. The first has what happens once, such as the capture of the graph. The second is
#: measured. The third is not trained: it would end with an evaluation on all examples.
_PROBED: Mapping[str, Any] = {"final": Budget(steps=3 * _PROBED_STEPS), "evaluations": 3}


def _seconds_alone(workload: Workload, configuration: Configuration) -> float:
    """Seconds of some captured steps of one network."""
    with workload.training(configuration, seed=0, **_PROBED) as training:
        first, second = itertools.islice(training, 2)
    return second.seconds - first.seconds


def _seconds_stacked(workload: Workload, configuration: Configuration, *, slots: int) -> float:
    """Seconds of as many steps of a stack, divided by its networks."""
    stack = workload.stack(configuration, slots=slots, seed=0)
    # One for all slots: making a large one takes longer than its steps.
    network = workload.network(configuration, seed=0)
    for slot in range(slots):
        sampler = workload.sampler(configuration, seed=slot, stacked=True)
        workload.start_stacked(
            stack, slot, configuration, sampler=sampler, seed=slot, network=network, **_PROBED
        )
    seconds = []
    for _ in range(2):
        (_, result), *_ = stack.advance()
        if isinstance(result, TrainingDiverged):
            raise result
        seconds.append(result.seconds)
    return seconds[1] - seconds[0]
