"""Many trainings as one network with a leading dimension: every step is one captured function."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits import REWARDS, BanditSettings, DeviceEngine
from hpo_mab.samplers import BatchSampler, MABSampler
from hpo_mab.training._batches import DeviceBatches, DeviceSweep, TrainingDiverged
from hpo_mab.training._device import check_precision, synchronize
from hpo_mab.training._device_step import Captured
from hpo_mab.training._evaluate import check_window, examples_at_once
from hpo_mab.training._optimizers import RowOptimizer
from hpo_mab.training._rows import (
    PLANNED_STEPS,
    DrawRows,
    NetworkRows,
    NumberRows,
    learns,
    stackable,
    stacked_cross_entropy,
)
from hpo_mab.training._schedule import (
    Evaluation,
    Schedule,
    evaluation_steps,
    sampler_figures,
)
from hpo_mab.training._tally import ExampleTally

#: Most images that an evaluation holds on the device at once, over all networks.
_EVALUATED_AT_ONCE = 16_384


@dataclasses.dataclass
class _Slot:
    """A training in a slot of the stack."""

    schedule: Schedule
    stops: tuple[int, ...]
    peak: float
    averages: bool
    keep: str
    #: None where the stack's own bandits draw.
    sampler: BatchSampler | None
    done: int = 0
    reported: int = 0
    seconds: float = 0.0
    read: int = 0
    points: list[Evaluation] = dataclasses.field(default_factory=list)

    @property
    def next_stop(self) -> int:
        return self.stops[self.reported]

    @property
    def is_last(self) -> bool:
        return self.done == self.schedule.steps


class StackedTrainer:
    """Trains ``K`` networks of one shape at the same time, each with its own hyperparameters.

    Weights, buffers, optimiser state, learning rate and every other number of a training have a
    leading dimension ``K``; ``torch.func.vmap`` makes the step of all networks one step. On CUDA it
    is captured in one graph, which is replayed for the trainer's whole life. When a training ends,
    the next one begins in its slot with new weights and new numbers, in the same memory.

    .. code-block:: python

        trainer = StackedTrainer(
            make_network(), slots=16, batches=batches, validation=validation, batch_size=128
        )
        for slot, lr in enumerate(rates):
            sampler = MABSampler(labels, batch_size=128, seed=slot)
            trainer.start(slot, make_network(), sampler=sampler, steps=400, optimizer={"lr": lr})
        while trainer.busy:
            for slot, evaluation in trainer.advance():
                print(slot, evaluation)

    A training has the same schedule, losses, averages, evaluations and distribution of batches as
    by `Training`. With the same batches, both agree to rounding. The draws of `MABSampler` on a
    stack depend on the stack's seed, its number of slots and its steps so far; other samplers draw
    as in `Training`. A training that diverges does not change the others.

    For networks that ``vmap`` does not support (whose control flow depends on data, or that mix the
    examples of different calls) the first `advance` raises the error of ``vmap``.

    Args:
        model: A network of the shape of all; copied, its weights are not used.
        slots: Networks at the same time, ``K``, at least 1.
        batches: Training images on the device.
        validation: Images to evaluate on, on the same device.
        early: Images of the evaluations before the last; None takes ``validation``.
        batch_size: Examples per batch of each network, ``B``.
        optimizer: Name of the optimiser of all, see `create_optimizer`.
        precision: ``"float32"``, or ``"bfloat16"``, in which weights are cast for each step.
        seed: Seed of the bandits' draws.
        capture: Whether to capture steps in a CUDA graph.
        examples: Adds up each example's visits by each network, with as many slots; None adds
            nothing up.
        clock: Returns seconds.

    Raises:
        ArgumentError: An argument outside its bound.
        UnknownNameError: No such optimiser or precision.
    """

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
        if slots < 1:
            raise ArgumentError(f"slots must be at least 1, got {slots}.")
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}.")
        device = batches.data.device
        self.slots = slots
        self.batch_size = batch_size
        self.optimizer = optimizer
        self._batches = batches
        self.examples = examples
        self._validation = validation
        self._early = validation if early is None else early
        #: Seconds of evaluation of each slot's training: its share of those of the stack.
        self.evaluation_seconds = [0.0] * slots
        #: Images that memory allows an evaluation at once; None before the first one.
        self._at_once: int | None = None
        self._half = precision == "bfloat16"
        self._seed = seed
        self._capture = capture
        self._clock = clock
        self._device = device
        self._highest_label = int(batches.data.labels.max())
        self._model = stackable(copy.deepcopy(model)).to(device)
        self._networks = NetworkRows(self._model, slots, device)
        self._optimizer = RowOptimizer(optimizer, self._networks.weights)
        self._numbers = NumberRows(slots, device)
        self._draws = DrawRows(slots, batch_size, device)
        self._engine: DeviceEngine | None = None
        self._structure: tuple[Any, ...] | None = None
        self._capacity = 0
        self._running: dict[int, _Slot] = {}
        #: Losses [K, B], logits [K, B, C] and targets [K, B] of the last step.
        self._outputs: tuple[Tensor, ...] = ()
        self._step = self._new_step()

    @property
    def busy(self) -> tuple[int, ...]:
        """Slots with a training, in order."""
        return tuple(sorted(self._running))

    @property
    def free(self) -> tuple[int, ...]:
        """Slots without a training, in order."""
        return tuple(slot for slot in range(self.slots) if slot not in self._running)

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph by now."""
        return self._step.captured

    @property
    def loop_reason(self) -> str | None:
        """Why steps could not be captured; None as long as nothing failed."""
        return self._step.reason

    def start(
        self,
        slot: int,
        model: nn.Module,
        *,
        sampler: BatchSampler,
        steps: int,
        optimizer: Mapping[str, Any] | None = None,
        evaluations: int = 8,
        warmup: float = 0.1,
        schedule: str = "linear",
        average: float = 0.0,
        keep: str = "trained",
        label_smoothing: float = 0.0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a training in a free slot; arguments as for `Training`.

        Args:
            slot: A slot of `free`.
            model: The network to train, of the trainer's shape; its weights are copied.
            sampler: Chooses the batches. For a `MABSampler` that has not drawn yet, the stack's
                bandits take its shares and knobs; any other sampler draws and learns itself, on
                the device of the batches.
            steps: Budget in optimiser steps.
            optimizer: Knobs of the trainer's optimiser.
            evaluations: Points of the learning curve.
            warmup: Share of the steps to warm the learning rate up over.
            schedule: ``"linear"`` or ``"constant"``.
            average: Window of the moving average of the weights; 0 for none.
            keep: ``"trained"`` or ``"better"``.
            label_smoothing: Share of the target spread over all classes, in [0, 1).
            state: What `state_dict` returned for the same training, which continues from there.

        Raises:
            ArgumentError: The slot is taken, the network has another shape, the sampler another
                batch size or bandits that do not fit the stack's, an argument outside its bound, or
                the state is of another training.
        """
        if slot not in self.free:
            raise ArgumentError(f"slot must be one of the free ones, {self.free}, got {slot}.")
        check_window(average)
        if not 0.0 <= label_smoothing < 1.0:
            raise ArgumentError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        if sampler.batch_size != self.batch_size:
            raise ArgumentError(
                f"sampler must draw batches of {self.batch_size}, got {sampler.batch_size}."
            )
        plan = Schedule(steps=steps, warmup=warmup, kind=schedule)
        options = dict(optimizer or {})
        self._optimizer.begin(slot, **options)
        self._networks.begin(slot, model)
        self._numbers.begin(slot, plan, average=average, label_smoothing=label_smoothing)
        if self.examples is not None:
            self.examples.begin(slot)
        own = self._adopt(slot, sampler)
        each = _Slot(
            schedule=plan,
            stops=evaluation_steps(steps, evaluations),
            peak=float(self._optimizer.knobs["lr"][slot]),
            averages=average > 0,
            keep=keep,
            sampler=None if own else sampler,
        )
        if state is not None:
            self._resume(slot, each, state)
        self.evaluation_seconds[slot] = 0.0
        self._running[slot] = each

    def takes(self, sampler: BatchSampler) -> bool:
        """Whether the stack's bandits can serve a sampler, or it draws by itself."""
        if not _is_inside(sampler) or self._engine is None:
            return True
        fits = stack_structure(sampler.settings) == self._structure
        return fits and _memory(sampler) <= self._capacity

    def stop(self, slot: int) -> None:
        """Stop the training in a slot, which is then free."""
        self._running.pop(slot)

    def state(self, slot: int, *, averaged: bool = False) -> dict[str, Tensor]:
        """Weights and buffers of a slot's network by name, as of now; copies.

        A slot keeps them after its training has ended, until the next one starts there.
        """
        return self._networks.state(slot, averaged=averaged)

    def state_dict(self, slot: int) -> dict[str, Any]:
        """The state of one training, to continue in any slot of any trainer of such networks.

        It is safe for ``weights_only`` loading; its tensors are copies on the CPU. All slots share
        the generators of the bandits and of augmentation, so the state does not contain them.
        Continued bandits have the same counts, but draw other examples than without a stop.

        Args:
            slot: A slot of `busy` whose evaluation `advance` has just returned.

        Raises:
            ArgumentError: The slot has no training, or one between two evaluations.
        """
        each = self._running.get(slot)
        if each is None or not each.points or each.done != each.points[-1].steps:
            raise ArgumentError(f"slot must be one that was evaluated just now, got {slot}.")
        sampler = each.sampler
        return {
            "points": [dataclasses.asdict(point) for point in each.points],
            "tensors": {
                name: tensor[slot].detach().to("cpu", copy=True)
                for name, tensor in self._tensors(bandits=sampler is None).items()
            },
            "sampler": None if sampler is None else sampler.state_dict(),
        }

    def advance(self) -> list[tuple[int, Evaluation | TrainingDiverged]]:
        """Train until the next evaluation of one training or more, and evaluate these.

        Returns:
            Slots with their evaluations. After its last evaluation a training leaves its slot. So
            does a training that diverged, which has the error instead of an evaluation.
        """
        if not self._running:
            return []
        steps = min(each.next_stop - each.done for each in self._running.values())
        start = self._clock()
        self._take(steps)
        synchronize(self._device)
        share = (self._clock() - start) / len(self._running)
        for each in self._running.values():
            each.done += steps
            each.seconds += share
        due = [slot for slot, each in sorted(self._running.items()) if each.done == each.next_stop]
        found = self._evaluate(due)
        for slot, result in found:
            if isinstance(result, Evaluation) and result.index < len(self._running[slot].stops):
                continue
            self.stop(slot)
        return found

    def _resume(self, slot: int, each: _Slot, state: Mapping[str, Any]) -> None:
        points = [Evaluation(**point) for point in state["points"]]
        tensors = self._tensors(bandits=each.sampler is None)
        found = {name: tensor.shape for name, tensor in state["tensors"].items()}
        if not points or [point.steps for point in points] != list(each.stops[: len(points)]):
            raise ArgumentError("the state is of a training that is evaluated at other steps.")
        if len(points) == len(each.stops):
            raise ArgumentError("the state is of a training that has ended.")
        if found != {name: tensor.shape[1:] for name, tensor in tensors.items()}:
            raise ArgumentError("the state is of a training on a stack of other networks.")
        if each.sampler is not None:
            each.sampler.load_state_dict(state["sampler"])
        for name, tensor in tensors.items():
            tensor[slot] = state["tensors"][name].to(tensor.device)
        each.points = points
        each.reported = len(points)
        each.done = each.read = points[-1].steps
        each.seconds = points[-1].seconds

    def _tensors(self, *, bandits: bool) -> dict[str, Tensor]:
        """The tensors that a training changes, [K, ...] each; with those of its bandits, if any."""
        parts = {
            "network": self._networks.tensors(),
            "optimizer": self._optimizer.tensors(),
            "numbers": self._numbers.tensors(),
        }
        if self.examples is not None:
            parts["examples"] = self.examples.tensors()
        if bandits and self._engine is not None:
            parts |= {"draws": self._draws.tensors(), "bandits": self._engine.rows()}
        return {f"{part}.{name}": t for part, held in parts.items() for name, t in held.items()}

    # -------------------------------------------------------------------- steps

    def _new_step(self) -> Captured:
        engine = None if self._engine is None else self._engine.generator
        return Captured(
            device=self._device,
            generators=(self._batches.generator, engine),
            capture=self._capture,
        )

    def _take(self, steps: int) -> None:
        """Take steps; samplers that learn outside of the stack draw and learn at each of them."""
        outside = {
            slot: each.sampler for slot, each in self._running.items() if each.sampler is not None
        }
        learners = {slot: sampler for slot, sampler in outside.items() if learns(sampler)}
        # Samplers that do not learn draw many steps ahead, so that replays of the graph follow each
        # other without host work between them. A learner's next draw needs the losses of this step.
        at_once = 1 if learners else PLANNED_STEPS
        for begin in range(0, steps, at_once):
            count = min(at_once, steps - begin)
            for slot, sampler in outside.items():
                each = self._running[slot]
                first = each.done + begin
                progress = [s / each.schedule.steps for s in range(first, first + count)]
                self._draws.plan(slot, sampler, progress)
            self._draws.rewind()
            for _ in range(count):
                self._step(self._body)
                if self.examples is not None:
                    self.examples.count()
                for slot, sampler in learners.items():
                    losses, logits, targets = (part[slot] for part in self._outputs)
                    sampler.update(losses, logits=logits, targets=targets)
        if self.examples is not None:
            # Here, because another training may begin in a slot before the next call.
            self.examples.add_up()

    def _body(self) -> None:
        """One step of all networks: operations on tensors at fixed addresses only."""
        numbers, networks = self._numbers, self._networks
        indices, importance = self._draws.next()
        inputs, targets = self._batches.fetch(indices.flatten())
        inputs = inputs.view(self.slots, self.batch_size, *inputs.shape[1:])
        targets = targets.view(self.slots, self.batch_size)
        self._model.train()
        logits = self._forward(networks.leaves, networks.buffers, inputs, in_dim=0)
        if self._highest_label >= logits.shape[2]:
            # An index out of range is an assertion on a CUDA device, after which every CUDA call of
            # the process fails.
            raise ArgumentError(
                f"labels must be in [0, {logits.shape[2]}) for a model of {logits.shape[2]} "
                f"outputs, got {self._highest_label}; give the model more outputs."
            )
        losses = stacked_cross_entropy(logits, targets, numbers.label_smoothing)
        outputs = losses.detach(), logits.detach(), targets
        # A reference is kept until the step's end. Otherwise the allocator could give this memory
        # to a kernel of the main stream before the bandits on the second stream have read it.
        self._outputs = outputs
        if self.examples is not None:
            with self._step.at_the_same_time():
                self.examples.keep(indices, outputs[0], outputs[1])
        if self._engine is not None:
            with self._step.at_the_same_time():
                self._engine.learn(self._draws.arms, outputs[0].flatten())
                self._draws.hold(*self._engine.draw(uniform=False))
        # Networks share no weights, so the gradient of the sum of their losses has each network's
        # gradient in its row.
        leaves = list(networks.leaves.values())
        gradients = torch.autograd.grad((losses * importance).mean(dim=1).sum(), leaves)
        rows = torch.cat([gradient.reshape(self.slots, -1) for gradient in gradients], dim=1)
        self._optimizer.step(rows, numbers.factor())
        numbers.count(outputs[0])
        networks.update_average(numbers.average_share())
        self._step.join()

    def _forward(
        self,
        weights: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        in_dim: Any,
    ) -> Tensor:
        """Logits of each network, float32 [K, n, C]."""

        def call(weights: Any, buffers: Any, inputs: Tensor) -> Tensor:
            if self._half:
                # Cast here: autocast does not apply to the batched convolution that vmap calls.
                weights = {name: weight.bfloat16() for name, weight in weights.items()}
            outputs: Tensor = functional_call(self._model, (weights, buffers), (inputs,))
            return outputs

        inputs = inputs.bfloat16() if self._half else inputs
        batched = vmap(call, in_dims=(0, 0, in_dim), randomness="different")
        outputs: Tensor = batched(dict(weights), dict(buffers), inputs)
        return outputs.float()

    def _adopt(self, slot: int, sampler: BatchSampler) -> bool:
        """Begin the stack's bandits for a sampler if they draw for it; returns whether they do."""
        if not _is_inside(sampler):
            if sampler.asks_network or sampler.weighs_by_losses:
                raise ArgumentError(
                    f"{type(sampler).__name__} needs the network within its step, which a stack "
                    "does not give; use Training."
                )
            self._draws.inside[slot] = False
            return False
        shares, settings = sampler.shares.numpy(), sampler.settings
        if self._engine is None:
            self._structure = stack_structure(settings)
            # The ring of pulls has a fixed size: at least one pass over all arms, more only if the
            # first sampler needs more.
            self._capacity = max(shares.shape[1], _memory(sampler))
            self._engine = DeviceEngine(
                np.tile(shares, (self.slots, 1)),
                settings,
                torch.Generator(self._device).manual_seed(self._seed),
                stack=self.slots,
                capacity=self._capacity,
            )
            # The graph captured so far has no bandits, so a new one must be captured.
            self._step = self._new_step()
        if not self.takes(sampler):
            raise ArgumentError(
                "bandits of a stack must share policy, reward, replacement and way of forgetting, "
                f"and remember at most {self._capacity} pulls: {stack_structure(settings)} with a "
                f"memory of {_memory(sampler)} does not fit {self._structure}."
            )
        self._draws.begin(slot, *self._engine.begin(slot, shares, settings, seed=sampler.seed))
        return True

    # -------------------------------------------------------------- evaluations

    def _evaluate(self, due: list[int]) -> list[tuple[int, Evaluation | TrainingDiverged]]:
        sums = self._numbers.read()
        scores: dict[int, tuple[bool, float, float]] = {}
        # Trained weights last: they replace averaged ones of equal accuracy.
        for averaged, last in itertools.product((True, False), (False, True)):
            chosen = [
                slot
                for slot in due
                if self._running[slot].is_last is last
                and averaged in self._choices(self._running[slot])
            ]
            start = self._clock()
            examples = self._validation if last else self._early
            found = self.scores(chosen, averaged=averaged, examples=examples)
            share = (self._clock() - start) / max(len(chosen), 1)
            for slot, (accuracy, loss) in found.items():
                self.evaluation_seconds[slot] += share
                if slot not in scores or accuracy >= scores[slot][1]:
                    scores[slot] = (averaged, accuracy, loss)
        return [(slot, self._result(slot, sums[slot], *scores[slot])) for slot in due]

    @staticmethod
    def _choices(each: _Slot) -> tuple[bool, ...]:
        """Which weights the training's evaluation evaluates: averaged ones, trained ones, both."""
        if each.averages and each.is_last and each.keep == "better":
            return True, False
        return (each.averages and not (each.is_last and each.schedule.decays),)

    def _result(
        self, slot: int, loss_sum: float, averaged: bool, accuracy: float, loss: float
    ) -> Evaluation | TrainingDiverged:
        each = self._running[slot]
        train_loss = loss_sum / (each.done - each.read)
        each.read = each.done
        self._numbers.forget(slot)
        for what, value in (("training", train_loss), ("validation", loss)):
            if not math.isfinite(value):
                return TrainingDiverged(each.done, f"the {what} loss is {value}")
        each.reported += 1
        point = Evaluation(
            index=each.reported,
            steps=each.done,
            examples=each.done * self.batch_size,
            seconds=each.seconds,
            sampler_seconds=0.0,
            accuracy=accuracy,
            loss=loss,
            train_loss=train_loss,
            learning_rate=each.peak * each.schedule.factor(each.done - 1),
            averaged=averaged,
            **sampler_figures(self._statistics(slot, each)),
        )
        each.points.append(point)
        return point

    def _statistics(self, slot: int, each: _Slot) -> dict[str, float]:
        if each.sampler is not None:
            return each.sampler.statistics()
        return {} if self._engine is None else self._engine.figures_of(slot).shares()

    def scores(
        self, slots: Sequence[int], *, averaged: bool, examples: DeviceSweep | None = None
    ) -> dict[int, tuple[float, float]]:
        """Accuracy and mean loss of some networks as they are now, evaluated together.

        Args:
            slots: Which networks; a slot keeps its network after its training has ended.
            averaged: Whether to evaluate their averaged weights.
            examples: What to evaluate on; None takes the validation images.
        """
        if not slots:
            return {}
        weights, buffers = self._networks.rows(list(slots), averaged=averaged)
        total = torch.zeros(len(slots), 2, device=self._device)
        count = 0
        self._model.eval()
        with torch.no_grad():
            if self._at_once is None:
                one, _ = next(self._validation.batches(1))
                self._at_once = min(_EVALUATED_AT_ONCE, examples_at_once(self._model, one))
            size = max(1, self._at_once // len(slots))
            for inputs, targets in (examples or self._validation).batches(size):
                logits = self._forward(weights, buffers, inputs, in_dim=None)
                losses = stacked_cross_entropy(logits, targets.expand(len(slots), -1), None)
                correct = (logits.argmax(dim=2) == targets).sum(dim=1)
                total += torch.stack((correct.float(), losses.sum(dim=1)), dim=1)
                count += len(targets)
        return {
            slot: (correct / count, loss / count)
            for slot, (correct, loss) in zip(slots, total.tolist(), strict=True)
        }


def stack_structure(settings: BanditSettings) -> tuple[Any, ...]:
    """The settings that all bandits of a stack must share: they select the kernels of its step."""
    forgets = "window" if settings.discount is None else "discount"
    return (
        settings.policy,
        settings.shuffles,
        forgets if settings.memory is not None or settings.discount is not None else "nothing",
        settings.prior if settings.correction else None,
        REWARDS.name(settings.reward),
    )


def _is_inside(sampler: BatchSampler) -> TypeGuard[MABSampler]:
    """Whether the stack's bandits draw for the sampler."""
    return (
        isinstance(sampler, MABSampler)
        and sampler.settings.active == 1
        and not sampler.starts_from_record
    )


def _memory(sampler: MABSampler) -> int:
    """Pulls in a bandit's window; 1 without a window."""
    return sampler.settings.window(sampler.num_examples / sampler.batch_size) or 1
