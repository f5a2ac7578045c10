"""The tensors of a stack of trainings, one row a training: weights, numbers, batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import BatchSampler
from hpo_mab.training._schedule import Schedule

#: Steps whose batches are drawn at once for samplers that do not learn.
PLANNED_STEPS = 64


class NetworkRows:
    """Weights of all networks as rows of one matrix, their buffers, and the averages of both.

    A network is one row. So an optimiser step, an update of the average and the start of a training
    each take a few kernels, for any number of layers.
    """

    def __init__(self, model: nn.Module, slots: int, device: torch.device) -> None:
        named = dict(model.named_parameters())
        self._sizes = [parameter.numel() for parameter in named.values()]
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        self.weights = torch.zeros(slots, sum(self._sizes), device=device)
        self._averaged = torch.zeros_like(self.weights)
        #: Parameters by name, [K, ...] each: views of `weights`, the leaves of the autograd graph.
        self.leaves = {
            name: view.detach().requires_grad_() for name, view in self._views(self.weights).items()
        }
        self.buffers = {
            name: buffer.expand(slots, *buffer.shape).clone()
            for name, buffer in model.named_buffers()
        }
        self._averaged_buffers = {
            name: buffer.clone()
            for name, buffer in self.buffers.items()
            if buffer.is_floating_point()
        }

    def begin(self, slot: int, model: nn.Module) -> None:
        """Copy the weights and buffers of a network into a row."""
        named = dict(model.named_parameters())
        shapes = {name: parameter.shape for name, parameter in named.items()}
        if shapes != self._shapes:
            raise ArgumentError("model must have the parameters of the stack's networks.")
        row = torch.cat([parameter.detach().flatten() for parameter in named.values()])
        self.weights[slot] = row.to(self.weights.device, torch.float32)
        self._averaged[slot] = self.weights[slot]
        for name, buffer in model.named_buffers():
            self.buffers[name][slot] = buffer.to(self.weights.device)
            if name in self._averaged_buffers:
                self._averaged_buffers[name][slot] = self.buffers[name][slot]

    def update_average(self, share: Tensor) -> None:
        """``average += (weights - average) * share``, ``share`` float32 [K, 1]."""
        self._averaged.lerp_(self.weights, share)
        for name, average in self._averaged_buffers.items():
            shape = (len(share),) + (1,) * (average.ndim - 1)
            average.lerp_(self.buffers[name], share.view(shape).to(average.dtype))

    def rows(
        self, slots: list[int], *, averaged: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and buffers of some networks, [n, ...] each; copies."""
        where = torch.tensor(slots, device=self.weights.device)
        weights = (self._averaged if averaged else self.weights).index_select(0, where)
        buffers = {**self.buffers, **(self._averaged_buffers if averaged else {})}
        return self._views(weights), {
            name: buffer.index_select(0, where) for name, buffer in buffers.items()
        }

    def state(self, slot: int, *, averaged: bool) -> dict[str, Tensor]:
        """Parameters and buffers of one network by name; copies."""
        weights, buffers = self.rows([slot], averaged=averaged)
        return {name: tensor[0] for name, tensor in {**weights, **buffers}.items()}

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
    for name, child in model.named_children():
        if (
            isinstance(child, _BatchNorm)
            and child.track_running_stats
            and child.momentum is not None
        ):
            setattr(model, name, StackedBatchNorm(child, child.momentum))
        else:
            stackable(child)
    return model


class NumberRows:
    """The numbers that the step of each training depends on: schedule, average, smoothing."""

    def __init__(self, slots: int, device: torch.device) -> None:
        column = torch.zeros(slots, 1, device=device)
        self._done, self._total, self._warm = column.clone(), column + 1, column.clone()
        self._decays, self._window = column.clone(), column.clone()
        self.label_smoothing = column.clone()
        self._losses = column[:, 0].clone()

    def begin(self, slot: int, plan: Schedule, *, average: float, label_smoothing: float) -> None:
        """Set the numbers of a training that begins in a slot."""
        self._done[slot] = 0
        self._total[slot] = plan.steps
        self._warm[slot] = plan.warmup_steps
        self._decays[slot] = float(plan.decays)
        self._window[slot] = average
        self.label_smoothing[slot] = label_smoothing
        self._losses[slot] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that steps change; the first dimension is the row."""
        return {"done": self._done, "losses": self._losses}

    def factor(self) -> Tensor:
        """Share of the peak learning rate, see `Schedule.factor`, float32 [K, 1]."""
        rise = (self._done + 1) / self._warm.clamp(min=1)
        fall = (self._total - self._done) / (self._total - self._warm)
        held = torch.where(self._decays > 0, fall.clamp(min=0), 1.0)
        return torch.where(self._done < self._warm, rise, held)

    def count(self, losses: Tensor) -> None:
        """Count a step with the losses [K, B] of its batches."""
        self._done += 1
        self._losses += losses.mean(dim=1)

    def average_share(self) -> Tensor:
        """Weight of the newest weights in their average, float32 [K, 1]."""
        return 1 / (self._window * self._done).clamp(min=1)

    def read(self) -> list[float]:
        """Summed mean losses of each slot since `forget`; waits for the device."""
        return [float(loss) for loss in self._losses.tolist()]

    def forget(self, slot: int) -> None:
        """Set the sum of a slot to 0."""
        self._losses[slot] = 0


class DrawRows:
    """Batches of the next step: from the stack's bandits, or planned by a slot's sampler."""

    def __init__(self, slots: int, batch_size: int, device: torch.device) -> None:
        shape = (slots, PLANNED_STEPS, batch_size)
        self._planned = torch.zeros(shape, dtype=torch.int64, device=device)
        self._planned_weights = torch.ones(shape, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(slots, batch_size, dtype=torch.int64, device=device)
        self._drawn_weights = torch.ones(slots, batch_size, device=device)
        #: Arms that the bandits drew, [K * B], which wait for their losses.
        self.arms = torch.zeros(slots * batch_size, dtype=torch.int64, device=device)
        #: Whether the stack's bandits draw for the slot, bool [K, 1].
        self.inside = torch.zeros(slots, 1, dtype=torch.bool, device=device)

    def plan(self, slot: int, sampler: BatchSampler, progress: Sequence[float]) -> None:
        """Draw the next batches of a slot's sampler, with the share of the budget before each."""
        for place, share in enumerate(progress):
            sampler.set_progress(share)
            draw = sampler.next_draw()
            self._planned[slot, place] = draw.indices
            if draw.weights is not None:
                self._planned_weights[slot, place] = draw.weights
            if not learns(sampler):
                sampler.discard()

    def rewind(self) -> None:
        """Go to the first of the planned batches."""
        self._position.zero_()

    def begin(self, slot: int, indices: Tensor, weights: Tensor, arms: Tensor) -> None:
        """Store the first batch of a network's bandits."""
        size = self._drawn.shape[1]
        self._drawn[slot] = indices
        self._drawn_weights[slot] = weights
        self.arms[slot * size : (slot + 1) * size] = arms
        self.inside[slot] = True

    def tensors(self) -> dict[str, Tensor]:
        """The bandits' batch of the next step; the first dimension is the row."""
        return {
            "drawn": self._drawn,
            "drawn_weights": self._drawn_weights,
            "arms": self.arms.view_as(self._drawn),
        }

    def next(self) -> tuple[Tensor, Tensor]:
        """Indices int64 [K, B] and importance weights float32 [K, B] of this step."""
        planned = self._planned.index_select(1, self._position)[:, 0]
        weights = self._planned_weights.index_select(1, self._position)[:, 0]
        self._position += 1
        # New tensors: the backward pass needs the weights after the next draw has been made.
        return (
            torch.where(self.inside, self._drawn, planned),
            torch.where(self.inside, self._drawn_weights, weights),
        )

    def hold(self, indices: Tensor, weights: Tensor | None, arms: Tensor) -> None:
        """Store the bandits' batch of the next step."""
        self._drawn.copy_(indices.view_as(self._drawn))
        if weights is not None:
            self._drawn_weights.copy_(weights.view_as(self._drawn_weights))
        self.arms.copy_(arms)


def learns(sampler: BatchSampler) -> bool:
    """Whether a sampler's draws depend on losses, so that each must be answered before the next."""
    return type(sampler)._learn is not BatchSampler._learn


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
