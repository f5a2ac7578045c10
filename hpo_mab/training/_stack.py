"""Many trainings as one network with a leading dimension: every step is one captured function."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hpo_mab._errors import ArgumentError, plain_arguments, require
from hpo_mab.samplers import BatchSampler, MABSampler
from hpo_mab.training._average import DRAWS, NetworkWatch
from hpo_mab.training._batches import DeviceBatches, DeviceSweep
from hpo_mab.training._captured import Captured, python_random_states
from hpo_mab.training._device import check_index_range, check_precision, synchronize, to_evaluation
from hpo_mab.training._draw_rows import PLANNED_PARTS, DrawRows, window_of
from hpo_mab.training._optimizers import RowOptimizer
from hpo_mab.training._rows import (
    NetworkRows,
    NumberRows,
    SlotTraining,
    matched,
    stacked_cross_entropy,
)
from hpo_mab.training._schedule import CurveArguments, Evaluation, LearningCurve, TrainingDiverged
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
        examples: Adds up each example's visits by each network; None adds nothing up.
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
        examples: ExampleTally | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_precision(precision)
        require(slots >= 1, "slots", "at least 1", slots)
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
        self.slots = slots
        self.batch_size = batch_size
        self._batches = batches
        self.examples = examples
        self._validation = validation
        self._early = validation if early is None else early
        #: Evaluation seconds of each slot's training: its equal share of each joint evaluation.
        self.evaluation_seconds = [0.0] * slots
        #: Step seconds of free slots, divided equally among the running trainings, by slot.
        self.idle_seconds = [0.0] * slots
        self._capture = capture
        self._clock = clock
        self._device = device = batches.data.device
        self._highest_label = int(batches.data.labels.max())
        self._networks = NetworkRows(model, slots, device, half=precision == "bfloat16")
        self._optimizer = RowOptimizer(optimizer, self._networks.weights)
        self._numbers = NumberRows(slots, device)
        self._draws = DrawRows(slots, batch_size, device, seed=seed)
        #: Trainings by slot. Those that ended at the last `advance` are among them, so that their
        #: states can still be saved.
        self._running: dict[int, SlotTraining] = {}
        self._watch = NetworkWatch(self._networks.model)
        #: Losses [K, B], logits [K, B, C] and targets [K, B] of the last step.
        self._outputs: tuple[Tensor, Tensor, Tensor]
        self._step = self._new_step()

    @property
    def busy(self) -> tuple[int, ...]:
        """Slots with a training, in order."""
        return tuple(sorted(k for k, each in self._running.items() if not each.curve.complete))

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
        self._running.pop(slot, None)
        peak = self._optimizer.begin(slot, **(optimizer or {}))
        before = self._draws.engine
        self._draws.begin(slot, sampler)
        if self._draws.engine is not before:
            # The graph captured so far has no bandits, so a new one must be captured.
            self._step = self._new_step()
        # Until here the slot keeps the earlier network. From here only a state can be refused.
        self._networks.begin(slot, model)
        self._numbers.begin(slot, planned)
        if self.examples is not None:
            self.examples.begin(slot)
        each = SlotTraining(planned, peak=peak)
        if state is not None:
            window = window_of(sampler) if isinstance(sampler, MABSampler) else 0
            self._resume(slot, each, state, window=window)
        self.evaluation_seconds[slot] = 0.0
        self.idle_seconds[slot] = 0.0
        self._running[slot] = each

    def evaluations(self, slot: int) -> int:
        """How many evaluations a slot's training has in the end."""
        return len(self._training_in(slot).curve.stops)

    def takes(self, sampler: BatchSampler) -> bool:
        """Whether the stack can serve a sampler: by its bandits, candidates or planned batches.

        All bandits share policy, reward, replacement, way of forgetting and, with a correction, the
        prior. They draw from equally many examples, and remember at most as many pulls as a bandit
        has arms; more only if those of the first sampler do. All samplers choose among equally many
        candidates, and none needs a `Training`.
        """
        return self._draws.takes(sampler)

    def stop(self, slot: int) -> None:
        """Stop the training in a slot, which is then free."""
        self._training_in(slot)
        self._running.pop(slot)

    def _training_in(self, slot: int) -> SlotTraining:
        if slot not in self._running:
            known = tuple(sorted(self._running))
            raise ArgumentError(f"slot must be one with a training, {known}, got {slot}.")
        return self._running[slot]

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
        each = self._running.get(slot)
        points = [] if each is None else each.curve.points
        if each is None or not points or each.done != points[-1].steps:
            raise ArgumentError(f"slot must be one that was evaluated just now, got {slot}.")
        sampler = self._draws.samplers.get(slot)
        held = self._tensors(bandits=sampler is None)
        state = {
            "points": [dataclasses.asdict(point) for point in points],
            "tensors": {name: tensor[slot] for name, tensor in held.items()},
            "sampler": None if sampler is None else sampler.state_dict(),
        }
        copied: dict[str, Any] = tree_map_only(
            Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state
        )
        return copied

    def advance(self) -> list[tuple[int, Evaluation | TrainingDiverged]]:
        """Train until the next evaluation of one training or more, and evaluate these.

        After an error while training, Ctrl-C included, all slots are free. Start there with new
        samplers: a draw of the old ones may have no losses.

        Returns:
            Slots with their evaluations. After its last evaluation a training leaves its slot. So
            does a training that diverged, which has the error instead of an evaluation.
        """
        self._running = {slot: self._running[slot] for slot in self.busy}
        if not self._running:
            return []
        steps = min(each.curve.next_stop - each.done for each in self._running.values())
        self._networks.keep(self.free)
        self._draws.forget(self.free)
        start = self._clock()
        try:
            self._take(steps)
            synchronize(self._device)
        except BaseException:
            # It is not known which steps were taken, so no training can continue.
            self._running.clear()
            raise
        # A step takes as long with free slots, which must not make a training look slow.
        elapsed = self._clock() - start
        share = elapsed / self.slots
        for slot, each in self._running.items():
            each.done += steps
            each.seconds += share
            self.idle_seconds[slot] += elapsed / len(self._running) - share
        due = [slot for slot, each in self._running.items() if each.done == each.curve.next_stop]
        found = self._evaluate(due)
        for slot, result in found:
            if not isinstance(result, Evaluation):
                self.stop(slot)
        return found

    def _resume(
        self, slot: int, each: SlotTraining, state: Mapping[str, Any], *, window: int
    ) -> None:
        points = each.curve.stored(state["points"])
        sampler = self._draws.samplers.get(slot)
        held = self._tensors(bandits=sampler is None)
        row = {name: tensor[slot] for name, tensor in held.items()}
        pairs = matched(row, state["tensors"], window=window)
        if sampler is not None:
            sampler.load_state_dict(state["sampler"])
        for tensor, saved in pairs:
            tensor.copy_(saved)
        each.curve.points.extend(points)
        each.done, each.seconds = each.curve.done

    def _tensors(self, *, bandits: bool) -> dict[str, Tensor]:
        """The tensors that a training changes, [K, ...] each; with those of its bandits, if any."""
        parts = {
            "network": self._networks.tensors(),
            "optimizer": self._optimizer.tensors(),
            "numbers": self._numbers.tensors(),
        }
        if self.examples is not None:
            parts["examples"] = self.examples.tensors()
        if bandits and self._draws.engine is not None:
            parts |= {"draws": self._draws.tensors(), "bandits": self._draws.engine.rows()}
        return {f"{part}.{name}": t for part, held in parts.items() for name, t in held.items()}

    def _new_step(self) -> Captured:
        engine = None if self._draws.engine is None else self._draws.engine.generator
        return Captured(
            device=self._device,
            generators=(self._batches.generator, engine),
            capture=self._capture,
        )

    def _take(self, steps: int) -> None:
        at_once = self._draws.steps_at_once
        for begin in range(0, steps, at_once):
            count = min(at_once, steps - begin)
            self._draws.rewind()
            for place in range(count):
                if place in PLANNED_PARTS:
                    self._plan(begin, range(place, min(PLANNED_PARTS[place], count)))
                step = begin + place
                if step < 2 and not self._step.captured:
                    self._take_checked(compare=step == 1 or steps == 1)
                else:
                    self._step(self._body)
                if self._step.reason == DRAWS:
                    raise RuntimeError(DRAWS)
                if self.examples is not None:
                    self.examples.count()
                self._draws.learn(*self._outputs)
            self._draws.count_chosen(steps=count)
        if self.examples is not None:
            # Here and not later: the caller of `advance` halves the slots if memory runs out.
            self.examples.add_up()

    def _plan(self, begin: int, places: range) -> None:
        """Plan batches by their places after step ``begin`` of a round."""
        for slot in self._draws.samplers:
            each = self._running[slot]
            first = each.done + begin
            self._draws.plan(slot, {place: each.curve.progress(first + place) for place in places})

    def _take_checked(self, *, compare: bool) -> None:
        """A step that raises if the network changes what its slots would share.

        The network is called once for all slots. Only the first two steps of an `advance` are
        checked, because reading the states takes time. A graph runs no Python.

        Without ``compare`` there is no comparison with the last checked step: an evaluation in
        between may have set other numbers.
        """
        states = python_random_states()
        self._step(self._body)
        if states != python_random_states():
            raise RuntimeError(DRAWS)
        reason = self._watch.change()
        if compare and reason is not None:
            raise RuntimeError(reason)

    def _body(self) -> None:
        """One step of all networks: operations on tensors at fixed addresses only."""
        numbers, networks = self._numbers, self._networks
        indices, importance = self._draws.next()
        if self._draws.candidates:
            indices = self._draws.choose(indices, self._candidate_losses(indices))
        inputs, targets = self._batches.fetch(indices.flatten())
        targets = targets.view(self.slots, self.batch_size)
        networks.model.train(True)
        logits = networks.logits(inputs, highest=self._highest_label)
        losses = stacked_cross_entropy(logits, targets, numbers.label_smoothing)
        # A reference is kept until the step's end. Without it a kernel of the main stream could get
        # the memory before the second stream's bandits read it.
        self._outputs = outputs = losses.detach(), logits.detach(), targets
        if self.examples is not None:
            with self._step.on_second_stream():
                self.examples.keep(indices, outputs[0], outputs[1])
        if self._draws.engine is not None:
            with self._step.on_second_stream():
                self._draws.learn_and_draw(outputs[0])
        # Networks share no weights, so the gradient of the sum of their losses has each network's
        # gradient in its row.
        leaves = list(networks.leaves.values())
        loss = (losses * importance).mean(dim=1).sum()
        # A network may have weights that it does not use.
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        rows = torch.cat([gradient.reshape(self.slots, -1) for gradient in gradients], dim=1)
        self._optimizer.step(rows, numbers.factor())
        numbers.count(outputs[0])
        networks.update_average(numbers.average_share())
        self._step.join()

    @torch.no_grad()
    def _candidate_losses(self, indices: Tensor) -> Tensor:
        """Losses [K, n] of each network's unaugmented examples [K, n], in evaluation mode."""
        to_evaluation(self._networks.model)
        flat = indices.flatten()
        inputs = self._batches.inputs(flat)
        logits = self._networks.logits(inputs, highest=self._highest_label)
        targets = self._batches.data.labels.index_select(0, flat).view_as(indices)
        return stacked_cross_entropy(logits, targets, None)

    def _evaluate(self, due: list[int]) -> list[tuple[int, Evaluation | TrainingDiverged]]:
        sums, statistics = self._numbers.read(), self._draws.statistics(due)
        scores: dict[int, tuple[bool, float, float]] = {}
        # Trained weights last: they replace averaged ones of equal accuracy.
        for averaged, at_end in itertools.product((True, False), (False, True)):
            chosen = [
                slot
                for slot in due
                if (curve := self._running[slot].curve).at_end is at_end
                and averaged in curve.choices
            ]
            start = self._clock()
            examples = self._validation if at_end else self._early
            found = self.scores(chosen, averaged=averaged, examples=examples)
            share = (self._clock() - start) / max(len(chosen), 1)
            for slot, (accuracy, loss) in found.items():
                self.evaluation_seconds[slot] += share
                if slot not in scores or accuracy >= scores[slot][1]:
                    scores[slot] = (averaged, accuracy, loss)
        results = []
        for slot in due:
            each = self._running[slot]
            result: Evaluation | TrainingDiverged
            try:
                result = each.curve.add(
                    *scores[slot],
                    step=each.done,
                    batch_size=self.batch_size,
                    seconds=each.seconds,
                    train_loss=sums[slot] / (each.done - each.curve.done[0]),
                    learning_rate=each.peak * each.curve.schedule.factor(each.done - 1),
                    statistics=statistics[slot],
                )
            except TrainingDiverged as error:
                # Its traceback refers to the networks.
                result = error.with_traceback(None)
            self._numbers.forget(slot)
            results.append((slot, result))
        return results

    def scores(
        self, slots: Sequence[int], *, averaged: bool, examples: DeviceSweep | None = None
    ) -> dict[int, tuple[float, float]]:
        """Accuracy and mean loss of some networks as they are now, evaluated together.

        Args:
            slots: Which networks; a slot keeps its network after its training has ended.
            averaged: Whether to evaluate their averaged weights.
            examples: What to evaluate on; None takes the validation images.

        Raises:
            ArgumentError: No training has begun in one of the slots.
        """
        return self._networks.scores(slots, examples or self._validation, averaged=averaged)
