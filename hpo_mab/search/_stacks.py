"""The stacks that train many trials of a study at the same time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from hpo_mab._errors import memory_reason
from hpo_mab.samplers._registry import NAMES
from hpo_mab.search._checkpoint import warn_of_misfit
from hpo_mab.search._space import Assignment, Configuration
from hpo_mab.search._workload import Workload
from hpo_mab.training import Evaluation, StackedTrainer, TrainingDiverged
from hpo_mab.training._optimizers import OPTIMIZERS
from hpo_mab.training._stack import StackSlot
from hpo_mab.training._stack_batches import cannot_be_stacked


def why_alone(workload: Workload, configuration: Configuration) -> str | None:
    """Why trials of a configuration cannot be trained on a stack; None if they can."""
    if workload.images is None:
        return "a DataLoader brings the batches"
    if not workload.loop.graph:
        return "training.graph is off"
    for what, part, ours in (
        ("sampler", configuration.sampler, NAMES),
        ("optimizer", configuration.optimizer, OPTIMIZERS),
    ):
        if part.name not in ours:
            return f"the {what} '{part.name}' is not one of hpo_mab's"
    sampler: Any = configuration.sampler.make
    if cannot_be_stacked(sampler):
        return f"the sampler '{configuration.sampler.name}' needs the network within its step"
    return None


class Stacks:
    """The stacks of one worker: one for each shape of network that its trials have.

    Args:
        workload: What is trained.
        slots: Trainings at the same time, over all stacks.
        seed: Seed of the stacks' bandits and augmentation.
        examples: Whether to add up what trials see of each example.
    """

    def __init__(self, workload: Workload, *, slots: int, seed: int, examples: bool) -> None:
        self.slots = slots
        self._workload = workload
        self._seed = seed
        self._examples = examples
        self._stacks: list[tuple[Hashable, StackedTrainer]] = []

    def start(
        self, assignment: Assignment, state: Mapping[str, Any] | None
    ) -> tuple[StackSlot, list[Evaluation]]:
        """Begin a trial's training, or continue it from ``state`` if that fits.

        Returns:
            Its slot, and the evaluations that the state has.
        """
        configuration = assignment.configuration
        key = _stack_key(configuration)
        sampler = self._workload.sampler(configuration, seed=assignment.seed, stacked=True)
        for stack_key, stack in self._stacks:
            if stack_key == key and stack.free and stack.takes(sampler):
                break
        else:
            # Stacks of other shapes without a running trial are removed, to free their memory.
            self._stacks = [each for each in self._stacks if each[1].busy]
            stack = self._workload.stack(
                configuration, slots=self.slots, seed=self._seed, examples=self._examples
            )
            self._stacks.append((key, stack))
        where = StackSlot(stack, stack.free[0])
        if state is not None:
            try:
                self._workload.start_stacked(where, assignment, sampler=sampler, state=state)
                return where, [Evaluation(**point) for point in state["points"]]
            except Exception as error:
                # Parts raise different errors for a state that does not fit.
                if memory_reason(error) is not None:
                    # Fewer slots may hold it, and the checkpoint must stay.
                    raise
                warn_of_misfit(error)
            # A new one: the state that does not fit may have changed the first.
            sampler = self._workload.sampler(configuration, seed=assignment.seed, stacked=True)
        self._workload.start_stacked(where, assignment, sampler=sampler)
        return where, []

    def advance(self) -> Iterator[tuple[StackSlot, Evaluation | TrainingDiverged]]:
        """Train every stack to its next evaluations."""
        for _, stack in list(self._stacks):
            for slot, result in stack.advance():
                yield StackSlot(stack, slot), result

    def clear(self) -> None:
        """Stop all trainings and free their memory."""
        self._stacks.clear()

    @property
    def loop_reasons(self) -> Iterator[str]:
        """Why steps are not captured, for each stack where that is so."""
        return (stack.loop_reason for _, stack in self._stacks if stack.loop_reason is not None)


def _stack_key(configuration: Configuration) -> Hashable:
    """What trials on one stack have in common, besides the kind of their bandits."""
    model: dict[str, Any] = dict(configuration.model)
    return (
        # As text: an option may be a list, which cannot be hashed.
        tuple(sorted((key, repr(value)) for key, value in model.items())),
        configuration.batch_size,
        configuration.optimizer.name,
    )
