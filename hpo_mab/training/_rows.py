"""The tensors of a stack: row k has the network and the schedule of the training in slot k."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from hpo_mab._errors import ArgumentError, require
from hpo_mab.models import stackable
from hpo_mab.samplers._feedback import check_logits, check_range
from hpo_mab.training._average import average_share, averaged_buffers, call_with
from hpo_mab.training._batches import EVALUATED, DeviceSweep
from hpo_mab.training._device import autocast, to_evaluation
from hpo_mab.training._evaluate import examples_at_once
from hpo_mab.training._optimizers import require_trainable
from hpo_mab.training._schedule import LearningCurve

#: Most images that an evaluation holds on the device at once, over all networks.
_EVALUATED_AT_ONCE = 16_384


class NetworkRows:
    """Weights of all networks as rows of one matrix, their buffers, and the averages of both.

    A network is one row. So an optimiser step, an average's update or a training's start takes a
    few kernels, for any number of layers.

    Args:
        model: A network of the shape of all; copied.
        slots: Networks, ``K``.
        device: Device of the tensors.
        half: Whether to calculate in bfloat16, with weights cast at each step.
    """

    def __init__(self, model: nn.Module, slots: int, device: torch.device, *, half: bool) -> None:
        require_trainable(model)
        self._layers = _layers_of(model)
        model = stackable(copy.deepcopy(model)).to(device)
        self.model = model
        self._half = half
        self._parameters = [name for name, _ in model.named_parameters()]
        #: Images that memory allows an evaluation at once; None before the first one.
        self._at_once: int | None = None
        trained, rest = _parts(model)
        if not all(map(torch.is_floating_point, trained.values())):
            raise ArgumentError("model must have real weights on a stack, got complex ones.")
        self._sizes = [parameter.numel() for parameter in trained.values()]
        self._shapes = _shapes_of(trained)
        self.weights = torch.zeros(slots, sum(self._sizes), device=device)
        self._averaged = torch.zeros_like(self.weights)
        #: Parameters by name, [K, ...] each: views of `weights`, the leaves of the autograd graph.
        self.leaves = {
            name: view.detach().requires_grad_() for name, view in self._views(self.weights).items()
        }
        #: Buffers and frozen parameters by name, [K, ...] each.
        self.buffers = {
            name: buffer.expand(slots, *buffer.shape).clone() for name, buffer in rest.items()
        }
        self._averaged_buffers = {
            name: self.buffers[name].clone() for name in averaged_buffers(model)
        }
        first = {id(tensor): name for name, tensor in [*trained.items(), *rest.items()]}
        #: First name of each tensor of a ``state_dict``, in which a shared parameter has several
        #: names. The extra state of a module is not a tensor of the rows and is left out.
        self._names = {
            name: first[id(part)]
            for name, part in model.state_dict(keep_vars=True).items()
            if id(part) in first
        }
        #: By slot, a copy of the network whose training has ended there; an empty dict before that.
        #: A slot in which no training has begun has no entry.
        self._kept: dict[int, dict[str, Tensor]] = {}

    def check(self, model: nn.Module) -> None:
        """Raise `ArgumentError` for a network of other layers than the rows'."""
        trained, rest = _parts(model)
        held = {name: buffer.shape[1:] for name, buffer in self.buffers.items()}
        same = (_shapes_of(trained), _shapes_of(rest)) == (self._shapes, held)
        # All rows are trained with the dropout of one network.
        layers = _layers_of(model)
        if not same or layers != self._layers:
            lines = zip_longest(self._layers.splitlines(), layers.splitlines(), fillvalue="nothing")
            differ = (
                f"; the stack has {own.strip()!r}, the model {other.strip()!r}"
                for own, other in lines
                if own != other
            )
            raise ArgumentError(
                "model must have the layers, parameters and buffers of the stack's networks, and "
                f"the same parameters frozen{next(differ, '')}."
            )

    def begin(self, slot: int, model: nn.Module) -> None:
        """Copy the weights and buffers of a network into a row; see `check`."""
        trained, rest = _parts(model)
        row = torch.cat([trained[name].detach().flatten() for name in self._shapes])
        self.weights[slot] = row.to(self.weights.device, torch.float32)
        self._averaged[slot] = self.weights[slot]
        self._kept[slot] = {}
        for name, buffer in rest.items():
            self.buffers[name][slot] = buffer.detach().to(self.weights.device)
            if name in self._averaged_buffers:
                self._averaged_buffers[name][slot] = self.buffers[name][slot]

    def update_average(self, share: Tensor) -> None:
        """``average += (weights - average) * share``, ``share`` float32 [K, 1]."""
        self._averaged.lerp_(self.weights, share)
        for name, average in self._averaged_buffers.items():
            shape = (len(share),) + (1,) * (average.ndim - 1)
            average.lerp_(self.buffers[name], share.view(shape).to(average.dtype))

    def keep(self, slots: Iterable[int]) -> None:
        """Copy networks whose training has ended: later steps change the rows of free slots."""
        for slot in slots:
            # Copied once. Without an entry, no training has begun in the slot.
            if self._kept.get(slot) == {}:
                self._kept[slot] = {
                    name: part[slot].clone() for name, part in self.tensors().items()
                }

    def rows(
        self, slots: list[int], *, averaged: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and buffers of some networks, [n, ...] each; copies.

        Networks that were kept are first copied back into their rows.
        """
        begun = sorted(self._kept)
        for slot in slots:
            require(slot in self._kept, "slot", f"one in which a training began, {begun}", slot)
        tensors = self.tensors()
        for slot in slots:
            for name, kept in self._kept[slot].items():
                tensors[name][slot] = kept
        where = torch.tensor(slots, device=self.weights.device)
        weights = (self._averaged if averaged else self.weights).index_select(0, where)
        buffers = {**self.buffers, **(self._averaged_buffers if averaged else {})}
        return self._views(weights), {
            name: buffer.index_select(0, where) for name, buffer in buffers.items()
        }

    def forward(
        self,
        weights: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        *,
        in_dim: int | None,
    ) -> Tensor:
        """Logits of each network, float32 [K, n, C].

        Args:
            weights: Parameters by name, [K, ...] each.
            buffers: Buffers by name, [K, ...] each.
            inputs: Of each network, [K, n, ...], or of all, [n, ...].
            in_dim: 0 for inputs of each network, None for inputs of all.
        """

        def call(weights: Any, buffers: Any, inputs: Tensor) -> Tensor:
            tensors = {**weights, **buffers}
            if self._half:
                # Cast here: autocast does not apply to the batched convolution that vmap calls.
                tensors |= {name: tensors[name].bfloat16() for name in self._parameters}
            return check_logits(call_with(self.model, tensors, inputs))

        inputs = inputs.bfloat16() if self._half else inputs
        batched = vmap(call, in_dims=(0, 0, in_dim), randomness="different")
        outputs: Tensor = batched(dict(weights), dict(buffers), inputs)
        return outputs.float()

    def logits(self, inputs: Tensor, *, highest: int) -> Tensor:
        """Logits [K, n, C] of inputs [K * n, ...]: the n of network 0, then those of network 1."""
        inputs = inputs.view(len(self.weights), -1, *inputs.shape[1:])
        logits = self.forward(self.leaves, self.buffers, inputs, in_dim=0)
        check_range(0, highest, outputs=logits.shape[2])
        return logits

    def scores(
        self, slots: Sequence[int], sweep: DeviceSweep, *, averaged: bool
    ) -> dict[int, tuple[float, float]]:
        """Accuracy and mean loss of some networks, evaluated together; waits for the device."""
        if not slots:
            return {}
        weights, buffers = self.rows(list(slots), averaged=averaged)
        total = torch.zeros(len(slots), 2, device=self.weights.device)
        count = 0
        with torch.no_grad():
            if self._at_once is None:
                self.model.eval()
                few, _ = next(sweep.batches(2))
                with autocast(few.device, "bfloat16" if self._half else "float32"):
                    self._at_once = min(_EVALUATED_AT_ONCE, examples_at_once(self.model, few))
            to_evaluation(self.model)
            for inputs, targets in sweep.batches(max(1, self._at_once // len(slots))):
                logits = self.forward(weights, buffers, inputs, in_dim=None)
                high = sweep.highest_label
                check_range(0, high, outputs=logits.shape[2], what=EVALUATED)
                losses = stacked_cross_entropy(logits, targets.expand(len(slots), -1), None)
                correct = (logits.argmax(dim=2) == targets).sum(dim=1)
                total += torch.stack((correct.float(), losses.sum(dim=1)), dim=1)
                count += len(targets)
        return {
            slot: (correct / count, loss / count)
            for slot, (correct, loss) in zip(slots, total.tolist(), strict=True)
        }

    def state(self, slot: int, *, averaged: bool) -> dict[str, Tensor]:
        """The tensors of the ``state_dict`` of one network; copies."""
        weights, buffers = self.rows([slot], averaged=averaged)
        tensors = {**weights, **buffers}
        return {name: tensors[row][0] for name, row in self._names.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state; the first dimension is the row."""
        return {
            "weights": self.weights,
            "averaged": self._averaged,
            **{f"buffer.{name}": buffer for name, buffer in self.buffers.items()},
            **{f"averaged.{name}": each for name, each in self._averaged_buffers.items()},
        }

    def _views(self, rows: Tensor) -> dict[str, Tensor]:
        parts = torch.split(rows, self._sizes, dim=1)
        return {
            name: part.view(len(rows), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }


def _parts(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained parameters of a network by name, and its buffers and frozen parameters."""
    trained: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = dict(model.named_buffers())
    for name, parameter in model.named_parameters():
        (trained if parameter.requires_grad else rest)[name] = parameter
    return trained, rest


def _layers_of(model: nn.Module) -> str:
    # Lists of parameters name their device and data type, in which networks may differ.
    return re.sub(r" containing: \[[^]]*\]", "", repr(model))


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


class ScheduleRows:
    """The numbers that the step of each training depends on: schedule, average, smoothing.

    It also adds up the losses of the steps since the last evaluation.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        column = torch.zeros(slots, 1, device=device)
        self._done, self._average_window = column.clone(), column.clone()
        #: See `Schedule.lines`.
        self._lines = [column + 1 for _ in range(4)]
        self.label_smoothing = column.clone()
        self._losses = column[:, 0].clone()

    def begin(self, slot: int, curve: LearningCurve) -> None:
        """Set the numbers of a training that begins in a slot."""
        self._done[slot] = 0
        for column, number in zip(self._lines, curve.schedule.lines, strict=True):
            column[slot] = number
        self._average_window[slot] = curve.average
        self.label_smoothing[slot] = curve.label_smoothing
        self._losses[slot] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that steps change; the first dimension is the row."""
        return {"done": self._done, "losses": self._losses}

    def factor(self) -> Tensor:
        """Share of the peak learning rate, see `Schedule.factor`, float32 [K, 1]."""
        warm, end, slope, length = self._lines
        fall = (end - slope * self._done) / length
        return torch.minimum((self._done + 1) / warm, fall).clamp(min=0)

    def count(self, losses: Tensor) -> None:
        """Count a step with the losses [K, B] of its batches."""
        self._done += 1
        self._losses += losses.mean(dim=1)

    def average_share(self) -> Tensor:
        """Weight of the newest weights in their average, float32 [K, 1]."""
        return average_share(self._average_window, self._done)

    def losses(self) -> list[float]:
        """Sum of the mean losses of each slot's batches; waits for the device."""
        sums: list[float] = self._losses.tolist()
        return sums

    def reset_losses(self, slot: int) -> None:
        """Set the sum of a slot to 0."""
        self._losses[slot] = 0


@dataclasses.dataclass
class SlotTraining:
    """A training in a slot of a stack.

    Attributes:
        curve: Its learning curve.
        peak: Peak of its learning rate.
        done: Steps done.
        seconds: Training seconds spent: of each step, the share of one slot.
    """

    curve: LearningCurve
    peak: float
    done: int = 0
    seconds: float = 0.0


#: Rings of the bandits' last pulls. Their length may differ between stacks, but a bandit uses only
#: the first positions, as many as it remembers. So only these are compared and copied.
_RINGS = {"bandits.window_arms", "bandits.window_rewards"}


def tensors_to_restore(
    row: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, window: int
) -> list[tuple[Tensor, Tensor]]:
    """Tensors of a row of a stack, each with its value in a saved state.

    ``window`` is how many pulls a bandit of the row remembers.
    """
    own, other = dict(row), dict(saved)
    # ``training.examples`` may change when a study is continued; the sums then begin at zero.
    for name in [name for name in own.keys() ^ other.keys() if name.startswith("examples.")]:
        own.pop(name, None)
        other.pop(name, None)
    for name in _RINGS & own.keys() & other.keys():
        own[name], other[name] = own[name][:, :window], other[name][:, :window]
    if _shapes_of(own) != _shapes_of(other):
        raise ArgumentError(
            "the state is of a training with another network, optimiser or sampler."
        )
    return [(tensor, other[name]) for name, tensor in own.items()]


def stacked_cross_entropy(logits: Tensor, targets: Tensor, smoothing: Tensor | None) -> Tensor:
    """Cross-entropy of each example, float32 [K, n].

    Args:
        logits: Float32 [K, n, C].
        targets: Labels, int64 [K, n].
        smoothing: Share of the target spread over all classes, [K, 1]; None for none.
    """
    log = logits.log_softmax(dim=2)
    loss = -log.gather(2, targets[:, :, None])[:, :, 0]
    if smoothing is None:
        return loss
    # Without smoothing a logit of -inf, of a class that is masked, must not make 0 * inf.
    return (1 - smoothing) * loss - torch.where(smoothing > 0, smoothing * log.mean(dim=2), 0.0)
