"""Many trainings as one network with a leading dimension: every step is one captured function."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hpo_mab._errors import ArgumentError, plain_arguments, require
from hpo_mab.samplers import BatchSampler, MABSampler
from hpo_mab.training._batches import DeviceBatches, DeviceSweep
from hpo_mab.training._device import check_index_range, check_precision, synchronize
from hpo_mab.training._optimizers import RowOptimizer
from hpo_mab.training._rows import NetworkRows, ScheduleRows, SlotTraining, tensors_to_restore
from hpo_mab.training._schedule import CurveArguments, Evaluation, LearningCurve, TrainingDiverged
from hpo_mab.training._stack_batches import StackBatches, window_of
from hpo_mab.training._stack_step import StackStep
from hpo_mab.training._tally import ExampleTally


class StackedTrainer:
    """Trains ``K`` networks of one shape at the same time, each with its own hyperparameters.

    Weights, buffers, optimiser state, learning rate and every other number of a training have a
    leading dimension ``K``; ``torch.func.vmap`` makes the step of all networks one step. On CUDA
    one graph captures this step; the trainer replays it for all trainings. When a training ends,
    the next one in its slot has new weights and numbers in the same memory.

    A training has the same schedule, losses, averages, evaluations and distribution of batches as
    by `Training`. With the same batches, both agree to rounding, except that weights which the
    network does not use decay only here. The draws of `MABSampler` depend on the stack's seed,
    number of slots and steps so far, and on a CPU on the losses of the other slots. Other samplers
    draw as in `Training`. A training that diverges does not end the others.

    ``vmap`` does not support networks whose control flow depends on data, or that use tensors of an
    earlier call. For these the first `advance` raises the error of ``vmap``. `advance` also raises
    if the network changes a number that it keeps in Python: slots would share it.

    Args:
        model: A network of the common shape; it is copied. All slots use its code and options, such
            as dropout, but not its weights.
        slots: Networks at the same time, ``K``, at least 1.
        batches: Training images on the device.
        validation: Images to evaluate on, on the same device.
        early: Images of the evaluations within a budget; None takes ``validation``.
        batch_size: Examples per batch of each network, ``B``.
        optimizer: Name of the optimiser of all, see `create_optimizer`.
        precision: ``"float32"``, or ``"bfloat16"``, to which weights are cast for each step.
        seed: Seed of the bandits' draws.
        capture: Whether to capture steps in a CUDA graph.
        tally: Adds up each example's visits by each network; None adds nothing up.
        clock: Returns seconds.

    Raises:
        ArgumentError: An argument outside its bound.
        UnknownNameError: No such optimiser or precision.

    Examples:
        >>> from torch import nn
        >>> from hpo_mab.data import Normalization, load_splits
        >>> from hpo_mab.samplers import create
        >>> from hpo_mab.training import DeviceBatches, DeviceSweep, StackedTrainer
        >>> splits = load_splits("digits")
        >>> scale = Normalization(splits.mean, splits.std)
        >>> batches = DeviceBatches(splits.train, normalization=scale)
        >>> validation = DeviceSweep(splits.validation, normalization=scale)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> trainer = StackedTrainer(
        ...     network, slots=2, batches=batches, validation=validation, batch_size=64
        ... )
        >>> for slot, lr in enumerate((0.01, 0.1)):
        ...     sampler = create("mab", splits.train.labels, batch_size=64, seed=slot)
        ...     options = {"steps": 20, "evaluations": 2, "optimizer": {"lr": lr}}
        ...     trainer.start(slot, network, sampler=sampler, **options)
        >>> while trainer.busy:
        ...     for slot, evaluation in trainer.advance():
        ...         print(slot, evaluation.steps)
        0 10
        1 10
        0 20
        1 20
    """

    @plain_arguments
    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int,
        batches: DeviceBatches,
        validation: DeviceSweep,
        early: DeviceSweep | None = None,
        batch_size: int,
        optimizer: str = "sgd",
        precision: str = "float32",
        seed: int = 0,
        capture: bool = True,
        tally: ExampleTally | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_precision(precision)
        require(slots >= 1, "slots", "at least 1", slots)
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
        self.slots = slots
        self.batch_size = batch_size
        self._batches = batches
        self.tally = tally
        self._validation = validation
        self._early = validation if early is None else early
        #: Evaluation seconds of each slot's training: its equal share of each joint evaluation.
        self.evaluation_seconds = [0.0] * slots
        #: Step seconds of free slots, divided equally among the running trainings, by slot.
        self.idle_seconds = [0.0] * slots
        self._clock = clock
        self._device = device = batches.data.device
        self._networks = NetworkRows(model, slots, device, half=precision == "bfloat16")
        self._optimizer = RowOptimizer(optimizer, self._networks.weights)
        self._schedules = ScheduleRows(slots, device)
        self._draws = StackBatches(slots, batch_size, device, seed=seed)
        self._step = StackStep(
            networks=self._networks,
            optimizer=self._optimizer,
            schedules=self._schedules,
            draws=self._draws,
            batches=batches,
            tally=tally,
            capture=capture,
        )
        #: Trainings by slot. Those that ended at the last `advance` are among them, so that their
        #: states can still be saved.
        self._trainings: dict[int, SlotTraining] = {}

    @property
    def busy(self) -> tuple[int, ...]:
        """Slots with a training, in order."""
        return tuple(sorted(k for k, each in self._trainings.items() if not each.curve.complete))

    @property
    def free(self) -> tuple[int, ...]:
        """Slots without a training, in order."""
        return tuple(sorted(set(range(self.slots)).difference(self.busy)))

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph by now."""
        return self._step.captured

    @property
    def loop_reason(self) -> str | None:
        """Why steps could not be captured; None as long as nothing failed."""
        return self._step.reason

    def takes(self, sampler: BatchSampler) -> bool:
        """Whether the stack can serve a sampler: by its bandits, candidates or planned batches.

        All bandits share policy, reward, replacement, way of forgetting and, with a correction, the
        prior. They draw from equally many examples, and remember at most as many pulls as a bandit
        has arms; more only if those of the first sampler do. All samplers choose among equally many
        candidates, and none needs a `Training`.
        """
        return self._draws.takes(sampler)

    @plain_arguments
    def start(
        self,
        slot: int,
        model: nn.Module,
        *,
        sampler: BatchSampler,
        steps: int,
        optimizer: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        **curve: Unpack[CurveArguments],
    ) -> None:
        """Begin a training in a free slot.

        Args:
            slot: A slot of `free`.
            model: The network to train, of the trainer's shape. Only its weights and buffers are
                copied.
            sampler: Chooses the batches; each slot needs its own, because slots that share one
                would each get a part of its batches. For a `MABSampler` with ``active = 1`` the
                stack's bandits draw, with its shares and knobs but without what it has learnt. For
                a `HardMiningSampler` the stack chooses among its candidates; all trainings of the
                stack must then have equally many. Any other sampler draws and learns itself, on the
                device of the batches. One that needs the network, or weighs by losses, is refused:
                it needs a `Training`.
            steps: Budget in optimiser steps.
            optimizer: Knobs of the trainer's optimiser.
            state: What `state_dict` returned for the same training, which continues from there.
            **curve: ``evaluations``, ``warmup``, ``schedule``, ``average``, ``keep``,
                ``label_smoothing`` and ``budgets``, see `Training`.

        Raises:
            ArgumentError: The slot is taken, or an argument is outside its bound. The network has
                other layers, or the state is of another training. The sampler has another batch
                size, or bandits or candidates that do not fit the stack's.
        """
        if slot not in self.free:
            raise ArgumentError(f"slot must be one of the free ones, {self.free}, got {slot}.")
        if sampler.batch_size != self.batch_size:
            raise ArgumentError(
                f"sampler must draw batches of {self.batch_size}, got {sampler.batch_size}."
            )
        check_index_range(sampler, len(self._batches.data))
        self._networks.check(model)
        planned = LearningCurve(steps=steps, **curve)
        self._trainings.pop(slot, None)
        training = SlotTraining(planned, peak=self._optimizer.begin(slot, **(optimizer or {})))
        if self._draws.begin(slot, sampler):
            self._step.renew()
        # Until here the slot keeps the earlier network. From here only a state can be refused.
        self._networks.begin(slot, model)
        self._schedules.begin(slot, planned)
        if self.tally is not None:
            self.tally.begin(slot)
        if state is not None:
            window = window_of(sampler) if isinstance(sampler, MABSampler) else 0
            self._resume(slot, training, state, window=window)
        self.evaluation_seconds[slot] = 0.0
        self.idle_seconds[slot] = 0.0
        self._trainings[slot] = training

    def _resume(
        self, slot: int, training: SlotTraining, state: Mapping[str, Any], *, window: int
    ) -> None:
        points = training.curve.checked_points(state["points"])
        sampler = self._draws.samplers.get(slot)
        # Raises if the state does not fit, so nothing is changed before.
        pairs = tensors_to_restore(self._row(slot), state["tensors"], window=window)
        if sampler is not None:
            sampler.load_state_dict(state["sampler"])
        for tensor, saved in pairs:
            tensor.copy_(saved)
        training.curve.points.extend(points)
        training.done, training.seconds = training.curve.last_step, training.curve.last_seconds

    def evaluations(self, slot: int) -> int:
        """How many evaluations a slot's training has in the end."""
        return len(self._training_in(slot).curve.stops)

    def advance(self) -> list[tuple[int, Evaluation | TrainingDiverged]]:
        """Train until the next evaluation of one training or more, and evaluate these.

        After an error while training, Ctrl-C included, all slots are free. Start there with new
        samplers: a draw of the old ones may have no losses.

        Returns:
            Slots with their evaluations. After its last evaluation a training leaves its slot. So
            does a training that diverged, which has the error instead of an evaluation.
        """
        self._trainings = {slot: self._trainings[slot] for slot in self.busy}
        if not self._trainings:
            return []
        steps = min(each.curve.next_stop - each.done for each in self._trainings.values())
        self._networks.keep(self.free)
        self._draws.forget(self.free)
        start = self._clock()
        try:
            self._step.take(steps, self._trainings)
            synchronize(self._device)
        except BaseException:
            # It is not known which steps were taken, so no training can continue.
            self._trainings.clear()
            raise
        # A step takes as long with free slots, which must not make a training look slow.
        elapsed = self._clock() - start
        share = elapsed / self.slots
        for slot, training in self._trainings.items():
            training.done += steps
            training.seconds += share
            self.idle_seconds[slot] += elapsed / len(self._trainings) - share
        due = [slot for slot, each in self._trainings.items() if each.done == each.curve.next_stop]
        results = self._evaluate(due)
        for slot, result in results:
            if not isinstance(result, Evaluation):
                self.stop(slot)
        return results

    def _evaluate(self, due: list[int]) -> list[tuple[int, Evaluation | TrainingDiverged]]:
        """Add an evaluation to each slot's curve."""
        losses, statistics = self._schedules.losses(), self._draws.statistics(due)
        best = self._best_scores(due)
        results: list[tuple[int, Evaluation | TrainingDiverged]] = []
        for slot in due:
            training = self._trainings[slot]
            done, curve = training.done, training.curve
            try:
                point = curve.add(
                    *best[slot],
                    step=done,
                    batch_size=self.batch_size,
                    seconds=training.seconds,
                    train_loss=losses[slot] / (done - curve.last_step),
                    learning_rate=training.peak * curve.schedule.factor(done - 1),
                    statistics=statistics[slot],
                )
                results.append((slot, point))
            except TrainingDiverged as error:
                # Its traceback refers to the networks.
                results.append((slot, error.with_traceback(None)))
            self._schedules.reset_losses(slot)
        return results

    def _best_scores(self, due: list[int]) -> dict[int, tuple[bool, float, float]]:
        """Of each slot's most accurate weights: whether averaged, accuracy, loss."""
        best: dict[int, tuple[bool, float, float]] = {}
        # Trained weights last: they replace averaged ones of equal accuracy.
        for averaged, at_end in itertools.product((True, False), (False, True)):
            chosen = [
                slot
                for slot in due
                if (curve := self._trainings[slot].curve).next_is_last_of_budget is at_end
                and averaged in curve.weights_to_evaluate
            ]
            start = self._clock()
            sweep = self._validation if at_end else self._early
            scored = self.scores(chosen, averaged=averaged, sweep=sweep)
            share = (self._clock() - start) / max(len(chosen), 1)
            for slot, (accuracy, loss) in scored.items():
                self.evaluation_seconds[slot] += share
                if slot not in best or accuracy >= best[slot][1]:
                    best[slot] = (averaged, accuracy, loss)
        return best

    def stop(self, slot: int) -> None:
        """Stop the training in a slot, which is then free."""
        self._training_in(slot)
        self._trainings.pop(slot)

    def scores(
        self, slots: Sequence[int], *, averaged: bool, sweep: DeviceSweep | None = None
    ) -> dict[int, tuple[float, float]]:
        """Accuracy and mean loss of some networks as they are now, evaluated together.

        Args:
            slots: Which networks; a slot keeps its network after its training has ended.
            averaged: Whether to evaluate their averaged weights.
            sweep: What to evaluate on; None takes the validation images.

        Raises:
            ArgumentError: No training has begun in one of the slots.
        """
        return self._networks.scores(slots, sweep or self._validation, averaged=averaged)

    def state(self, slot: int, *, averaged: bool = False) -> dict[str, Tensor]:
        """The tensors of the ``state_dict`` of a slot's network, as of now; copies.

        With ``averaged`` it has the averaged weights. `Evaluation.averaged` says which weights an
        evaluation used.

        A slot keeps them after its training has ended, until the next one starts there.

        Raises:
            ArgumentError: No training has begun in the slot.
        """
        return self._networks.state(slot, averaged=averaged)

    def state_dict(self, slot: int) -> dict[str, Any]:
        """The state of one training, to continue in any slot of any trainer of such networks.

        It is safe for ``weights_only`` loading; its tensors are copies on the CPU. All slots share
        the generators of the bandits and of augmentation, so the state does not contain them.
        Continued bandits have the same counts, but draw other examples than without a stop.

        Args:
            slot: A slot whose evaluation `advance` has just returned; its training may have ended.

        Raises:
            ArgumentError: The slot has no training, or one between two evaluations.
        """
        training = self._trainings.get(slot)
        points = [] if training is None else training.curve.points
        if training is None or not points or training.done != points[-1].steps:
            raise ArgumentError(f"slot must be one that was evaluated just now, got {slot}.")
        sampler = self._draws.samplers.get(slot)
        state = {
            "points": [dataclasses.asdict(point) for point in points],
            "tensors": self._row(slot),
            "sampler": None if sampler is None else sampler.state_dict(),
        }
        copied: dict[str, Any] = tree_map_only(
            Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state
        )
        return copied

    def _row(self, slot: int) -> dict[str, Tensor]:
        """The tensors that a slot's training changes, with those of its bandits, if any; views."""
        parts = {
            "network": self._networks.tensors(),
            "optimizer": self._optimizer.tensors(),
            "numbers": self._schedules.tensors(),
        }
        if self.tally is not None:
            parts["examples"] = self.tally.tensors()
        engine = self._draws.engine
        if engine is not None and slot not in self._draws.samplers:
            parts |= {"draws": self._draws.tensors(), "bandits": engine.rows()}
        return {
            f"{part}.{name}": tensor[slot]
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }

    def _training_in(self, slot: int) -> SlotTraining:
        if slot not in self._trainings:
            begun = tuple(sorted(self._trainings))
            raise ArgumentError(f"slot must be one with a training, {begun}, got {slot}.")
        return self._trainings[slot]


class StackSlot(NamedTuple):
    """A slot of a stack, in which one training at a time runs."""

    stack: StackedTrainer
    slot: int

    @property
    def evaluations(self) -> int:
        """How many evaluations the training has in the end."""
        return self.stack.evaluations(self.slot)

    def state_dict(self) -> dict[str, Any]:
        """The state of the training, right after an evaluation."""
        return self.stack.state_dict(self.slot)

    def stop(self) -> None:
        """Stop the training, if one runs."""
        if self.slot in self.stack.busy:
            self.stack.stop(self.slot)
