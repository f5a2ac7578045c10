"""The networks of a stack: their weights are the rows of one matrix."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _BatchNorm

from hpo_mab._errors import ArgumentError
from hpo_mab.training._batches import DeviceSweep
from hpo_mab.training._device import (
    call_with,
    check_highest,
    check_logits,
    examples_at_once,
)
from hpo_mab.training._optimizers import require_trainable

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
        model = stackable(copy.deepcopy(model)).to(device)
        self.model = model
        self._half = half
        self._parameters = [name for name, _ in model.named_parameters()]
        #: Images that memory allows an evaluation at once; None before the first one.
        self._at_once: int | None = None
        trained, rest = _parts(model)
        require_trainable(model)
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
            name: self.buffers[name].clone()
            for name, buffer in model.named_buffers()
            if buffer.is_floating_point()
        }
        first = {id(tensor): name for name, tensor in [*trained.items(), *rest.items()]}
        #: Row of each name of a ``state_dict``, where a shared parameter has several names.
        self._names = {
            name: first[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()
        }
        #: Networks of slots whose training has ended, if other slots have been trained since.
        self._kept: dict[int, dict[str, Tensor]] = {}

    def begin(self, slot: int, model: nn.Module) -> None:
        """Copy the weights and buffers of a network into a row."""
        trained, rest = _parts(model)
        held = {name: buffer.shape[1:] for name, buffer in self.buffers.items()}
        if (_shapes_of(trained), _shapes_of(rest)) != (self._shapes, held):
            raise ArgumentError(
                "model must have the parameters and buffers of the stack's networks, and the same "
                "parameters frozen."
            )
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
        """Keep networks whose training has ended; steps of the other slots change their rows."""
        for slot in slots:
            # None: no training has begun there.
            if self._kept.get(slot) == {}:
                self._kept[slot] = {
                    name: part[slot].clone() for name, part in self.tensors().items()
                }

    def rows(
        self, slots: list[int], *, averaged: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and buffers of some networks, [n, ...] each; copies."""
        tensors = self.tensors()
        for slot in slots:
            for name, kept in self._kept.get(slot, {}).items():
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

    def scores(
        self, slots: Sequence[int], examples: DeviceSweep, *, averaged: bool
    ) -> dict[int, tuple[float, float]]:
        """Accuracy and mean loss of some networks, evaluated together; waits for the device."""
        if not slots:
            return {}
        weights, buffers = self.rows(list(slots), averaged=averaged)
        total = torch.zeros(len(slots), 2, device=self.weights.device)
        count = 0
        self.model.eval()
        with torch.no_grad():
            if self._at_once is None:
                one, _ = next(examples.batches(1))
                self._at_once = min(_EVALUATED_AT_ONCE, examples_at_once(self.model, one))
            for inputs, targets in examples.batches(max(1, self._at_once // len(slots))):
                logits = self.forward(weights, buffers, inputs, in_dim=None)
                check_highest(examples.highest_label, outputs=logits.shape[2])
                losses = stacked_cross_entropy(logits, targets.expand(len(slots), -1), None)
                correct = (logits.argmax(dim=2) == targets).sum(dim=1)
                total += torch.stack((correct.float(), losses.sum(dim=1)), dim=1)
                count += len(targets)
        return {
            slot: (correct / count, loss / count)
            for slot, (correct, loss) in zip(slots, total.tolist(), strict=True)
        }

    def state(self, slot: int, *, averaged: bool) -> dict[str, Tensor]:
        """The ``state_dict`` of one network; copies."""
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


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


class StackedBatchNorm(nn.Module):
    """Batch normalisation that works under ``vmap`` and with a cast to bfloat16.

    Under ``vmap`` the native operation raises if inputs and running statistics differ in type. Here
    it computes the batch's statistics only, and the running ones are updated separately.

    Args:
        norm: The layer to replace; its parameters and buffers become this one's.
        momentum: Weight of a batch's statistics in the running ones.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, momentum: float) -> None:
        super().__init__()
        self._parameters = norm._parameters
        self._buffers = norm._buffers
        self._eps = norm.eps
        self._momentum = momentum

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise [n, C, ...] by the batch's statistics, or in evaluation by the running ones."""
        if not self.training:
            return self._by_running_statistics(inputs)
        outputs, mean, inverse = torch.native_batch_norm(
            inputs, self.weight, self.bias, None, None, True, 0.0, self._eps
        )
        with torch.no_grad():
            # The operation returns 1 / sqrt(biased variance + eps), but running statistics take the
            # unbiased variance. In double precision, because subtracting eps cancels digits.
            count = inputs.numel() // inputs.shape[1]
            variance = (inverse.double().pow(-2) - self._eps) * (count / max(1, count - 1))
            for running, now in ((self.running_mean, mean), (self.running_var, variance)):
                running.mul_(1 - self._momentum).add_(self._momentum * now.to(running.dtype))
            self.num_batches_tracked.add_(1)
        normalized: Tensor = outputs
        return normalized

    def _by_running_statistics(self, inputs: Tensor) -> Tensor:
        scale = (self.running_var + self._eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        return inputs * scale.to(inputs.dtype).view(shape) + shift.to(inputs.dtype).view(shape)


def stackable(model: nn.Module) -> nn.Module:
    """The network with each batch normalisation replaced; changed in place."""
    replaced = {
        norm: StackedBatchNorm(norm, norm.momentum)
        for norm in model.modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats and norm.momentum is not None
    }
    for parent in list(model.modules()):
        # Not `named_children`: a layer under two names is replaced under both.
        for name, child in parent._modules.items():
            if child in replaced:
                setattr(parent, name, replaced[child])
    return model


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
    return (1 - smoothing) * loss - smoothing * log.mean(dim=2)
