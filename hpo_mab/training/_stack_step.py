"""A step of all trainings of a stack, captured as a CUDA graph where that is possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from hpo_mab.training._average import NetworkWatch
from hpo_mab.training._batches import DeviceBatches
from hpo_mab.training._captured import Captured
from hpo_mab.training._device import to_evaluation
from hpo_mab.training._optimizers import RowOptimizer
from hpo_mab.training._rows import NetworkRows, ScheduleRows, SlotTraining, stacked_cross_entropy
from hpo_mab.training._stack_batches import StackBatches, planned_parts
from hpo_mab.training._tally import ExampleTally


@dataclasses.dataclass(kw_only=True, eq=False)
class StackStep:
    """A step of all networks: batches, forward, backward, optimise, reward. The host never waits.

    It reads and writes the rows of a stack, and has no state of a training itself. ``draws``
    chooses the examples of each batch, and ``batches`` has their images. On CUDA, with ``capture``,
    the step is captured in a graph and replayed, see `Captured`. Bandits learn and draw the *next*
    step's batches on a second stream, during the backward pass.
    """

    networks: NetworkRows
    optimizer: RowOptimizer
    schedules: ScheduleRows
    draws: StackBatches
    batches: DeviceBatches
    tally: ExampleTally | None
    capture: bool

    def __post_init__(self) -> None:
        self._highest_label = int(self.batches.data.labels.max())
        self._watch = NetworkWatch(self.networks.model)
        #: Why networks like these cannot be stacked, once a step has shown it.
        self._refused: str | None = None
        #: Losses [K, B], logits [K, B, C] and targets [K, B] of the last step.
        self._outputs: tuple[Tensor, Tensor, Tensor]
        self.renew()

    def renew(self) -> None:
        """Drop the graph: one captured before the first bandits began has none."""
        engine = self.draws.engine
        self._captured_step = Captured(
            device=self.batches.data.device,
            generators=(self.batches.generator, None if engine is None else engine.generator),
            capture=self.capture,
        )

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph by now."""
        return self._captured_step.captured

    @property
    def reason(self) -> str | None:
        """Why steps could not be captured; None as long as nothing failed."""
        return self._captured_step.reason

    def take(self, steps: int, trainings: Mapping[int, SlotTraining]) -> None:
        """Take some steps of the trainings, by slot.

        Raises:
            RuntimeError: The network changes what its slots would share.
        """
        if self._refused is not None:
            raise RuntimeError(self._refused)
        at_once = self.draws.steps_at_once
        for first in range(0, steps, at_once):
            count = min(at_once, steps - first)
            self.draws.rewind()
            for part in planned_parts(count):
                for slot in self.draws.samplers:
                    curve, done = trainings[slot].curve, trainings[slot].done + first
                    self.draws.plan(slot, {step: curve.progress(done + step) for step in part})
                for step in part:
                    self._take_step(first + step, of=steps)
            self.draws.count_chosen(steps=count)
        if self.tally is not None:
            # Here and not later: the caller of `advance` halves the slots if memory runs out.
            self.tally.add_up()

    def _take_step(self, step: int, *, of: int) -> None:
        """Take a step, counted from 0, ``of`` some.

        The first two, and those before a capture, are checked: the network is called once for all
        slots, which would share what it keeps in Python. Not all are, because reading the states
        takes time. A graph runs no Python.
        """
        warming_up = self._captured_step.is_warming_up
        if warming_up or (step < 2 and not self.captured):
            self._refused = self._watch.call(
                lambda: self._captured_step(self._body),
                torch_draws=warming_up,
                # The first one is not compared with the last checked step: an evaluation in between
                # may have set other numbers. With one step there is no other to compare it with.
                compare=step > 0 or of == 1,
            )
            if self._refused is not None:
                raise RuntimeError(self._refused)
        else:
            self._captured_step(self._body)
        if self.tally is not None:
            self.tally.count()
        self.draws.update_samplers(*self._outputs)

    def _body(self) -> None:
        """The step itself: operations on tensors at fixed addresses only."""
        networks, schedules = self.networks, self.schedules
        indices, importance = self.draws.next(self._candidate_losses)
        inputs, targets = self.batches.fetch(indices.flatten())
        targets = targets.view_as(indices)
        networks.model.train(True)
        logits = networks.logits(inputs, highest=self._highest_label)
        losses = stacked_cross_entropy(logits, targets, schedules.label_smoothing)
        # A reference is kept until the step's end. Without it a kernel of the main stream could get
        # the memory before the second stream's bandits read it.
        self._outputs = outputs = losses.detach(), logits.detach(), targets
        if self.tally is not None:
            with self._captured_step.on_second_stream():
                self.tally.keep(indices, outputs[0], outputs[1])
        if self.draws.engine is not None:
            with self._captured_step.on_second_stream():
                self.draws.update_bandits(outputs[0])
        # Networks share no weights, so the gradient of the sum of their losses has each network's
        # gradient in its row.
        leaves = list(networks.leaves.values())
        loss = (losses * importance).mean(dim=1).sum()
        # A network may have weights that it does not use.
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        rows = torch.cat([gradient.reshape(len(losses), -1) for gradient in gradients], dim=1)
        self.optimizer.step(rows, schedules.factor())
        schedules.count(outputs[0])
        networks.update_average(schedules.average_share())
        self._captured_step.join()

    @torch.no_grad()
    def _candidate_losses(self, indices: Tensor) -> Tensor:
        """Losses [K, n] of each network's unaugmented examples [K, n], in evaluation mode."""
        to_evaluation(self.networks.model)
        flat = indices.flatten()
        inputs = self.batches.inputs(flat)
        logits = self.networks.logits(inputs, highest=self._highest_label)
        targets = self.batches.data.labels.index_select(0, flat).view_as(indices)
        return stacked_cross_entropy(logits, targets, None)
