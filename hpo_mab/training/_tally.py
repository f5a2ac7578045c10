"""Sums over each example's visits, added up on the device; no step makes the host wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hpo_mab._examples import (
    COLUMNS,
    MOST_MARGIN,
    ExampleCounts,
    keeps_predictions,
    recorded_examples,
)

#: Decay per batch of the moving average that losses are compared with, as in `MABSampler`.
LOSS_DECAY = 0.99
#: Steps whose outputs are kept before they are added up together.
_STEPS_AT_ONCE = 64
#: If there are fewer counts of predicted classes than this, each has 32 bits, otherwise 16.
_FEW_COUNTS = 2**20
#: Most logits kept, as a count of numbers.
_MOST_LOGITS = 2**24


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TallySums:
    """The sums of some trainings, still on the device: adding up does not wait for it.

    Attributes:
        trials: Number of trainings.
        sums: A column for each of `COLUMNS`, float32 [n, 6].
        predictions: How often each class had the highest output, int32 [n, C]; or None.
    """

    trials: int
    sums: Tensor
    predictions: Tensor | None

    def __add__(self, other: Self) -> Self:
        """The sums of both, of the same examples."""
        kept = self.predictions is not None and other.predictions is not None
        return dataclasses.replace(
            self,
            trials=self.trials + other.trials,
            sums=self.sums + other.sums,
            predictions=self.predictions + other.predictions if kept else None,  # type: ignore[operator]
        )

    def on_host(self) -> ExampleCounts:
        """The same sums in numpy; waits for the device."""
        found = self.predictions
        return ExampleCounts(
            trials=self.trials,
            sums=self.sums.cpu().numpy(),
            predictions=None if found is None else found.cpu().numpy().astype(np.uint32),
        )


class ExampleTally:
    """Sums over the visits of each example, of one training or of each training of a stack.

    A step only copies its outputs to a fixed address, which a CUDA graph can contain. Outputs of
    many steps are added up together: otherwise each step would launch a dozen more small kernels.

    Args:
        labels: Class of each training example, int64 [N].
        slots: Trainings, ``K``.
        device: Device of the outputs.
    """

    def __init__(self, labels: Tensor, *, slots: int = 1, device: torch.device) -> None:
        chosen = recorded_examples(len(labels))
        count = len(labels) if chosen is None else len(chosen)
        classes = int(labels.max()) + 1
        self._slots = slots
        self._count = count
        self._classes = classes
        self._labels = labels.to(device)
        #: Row of each example. Examples that are not recorded have row ``count``, which is not
        #: read.
        self._rows: Tensor | None = None
        if chosen is not None:
            self._rows = torch.full((len(labels),), count, dtype=torch.int64, device=device)
            self._rows[torch.from_numpy(chosen).to(device)] = torch.arange(count, device=device)
        self._sums = torch.zeros(slots, count + 1, len(COLUMNS), device=device)
        self._predictions: Tensor | None = None
        if keeps_predictions(count, classes):
            shape = (slots, count + 1, classes)
            # Of a small data set an example may be visited more often than 16 bits count.
            kind = torch.int32 if count * classes < _FEW_COUNTS else torch.int16
            self._predictions = torch.zeros(shape, dtype=kind, device=device)
        #: Weighted sum of batch means and sum of weights of each training, [K, 2].
        self._average = torch.zeros(slots, 2, device=device)
        #: Outputs of the last step, at an address that a CUDA graph writes to: indices, losses
        #: and logits, one after another.
        self._last_outputs: Tensor | None = None
        #: Outputs of the last ``_steps`` steps, a row each, which are not added up yet.
        self._kept: Tensor | None = None
        self._steps = 0

    def keep(self, indices: Tensor, losses: Tensor, logits: Tensor) -> None:
        """Keep the outputs of a step; after it, the host must call `count`.

        Args:
            indices: Examples, int64 [B], or [K, B] of a stack.
            losses: Their losses, detached, float32 of the same shape.
            logits: Model outputs, detached, float32 [B, C] or [K, B, C].
        """
        if self._last_outputs is None:
            self._make_room(losses, logits)
        # One kernel: the bytes of the indices are copied as if they were float32.
        as_floats = indices.contiguous().flatten().view(torch.float32)
        outputs = (as_floats, losses.flatten(), logits.flatten())
        torch.cat(outputs, out=self._last_outputs)

    def count(self) -> None:
        """Count a step whose outputs were kept; adds up when all rows are full."""
        if self._last_outputs is None or self._kept is None:
            return
        self._kept[self._steps].copy_(self._last_outputs)
        self._steps += 1
        if self._steps == len(self._kept):
            self.add_up()

    def add_up(self) -> None:
        """Add up the kept outputs."""
        if self._kept is None or not self._steps:
            return
        indices, losses, logits = self._outputs(self._kept[: self._steps])
        finite = losses.isfinite()
        losses = torch.where(finite, losses, 0.0)
        levels = self._levels(losses, finite)[:, :, None]
        # Written out: for few classes `softmax` is many times slower on a CPU.
        highest = logits.amax(dim=-1, keepdim=True)
        probabilities = (logits - highest).exp()
        probabilities /= probabilities.sum(dim=-1, keepdim=True)
        labels = self._labels[indices][..., None]
        confidence = probabilities.gather(-1, labels)[..., 0]
        others = logits.scatter(-1, labels, -torch.inf).amax(dim=-1)
        # Clamped: otherwise the margins of one training that diverges would outweigh all others.
        margin = (logits.gather(-1, labels)[..., 0] - others).clamp(-MOST_MARGIN, MOST_MARGIN)
        visits = torch.ones_like(losses)
        relative = losses / levels.clamp_min(torch.finfo(torch.float32).tiny)
        values = losses.new_empty(*losses.shape, len(COLUMNS))
        columns = (visits, losses >= levels, relative, margin, confidence, confidence**2)
        for number, column in enumerate(columns):
            values[..., number] = column
        rows = indices if self._rows is None else self._rows[indices]
        # Outputs that are not finite must not count: they go to the row that is not read.
        rows = torch.where(finite & margin.isfinite(), rows, self._count)
        rows = rows + torch.arange(self._slots, device=rows.device)[:, None] * (self._count + 1)
        positions = rows.flatten()
        self._sums.flatten(0, 1).index_add_(0, positions, values.flatten(0, 2))
        if self._predictions is not None:
            # A network may have more outputs than there are classes.
            predicted = logits[..., : self._classes]
            if predicted.shape[-1] < logits.shape[-1]:
                highest = predicted.amax(dim=-1, keepdim=True)
            chosen = (predicted == highest).to(self._predictions.dtype).flatten(0, 2)
            self._predictions.flatten(0, 1).index_add_(0, positions, chosen)
        self._steps = 0

    def begin(self, slot: int) -> None:
        """Set the sums of a slot to 0."""
        for tensor in self.tensors().values():
            tensor[slot] = 0

    def take(self, slot: int = 0) -> TallySums:
        """The sums of a training so far; a copy."""
        self.add_up()
        found = self._predictions
        return TallySums(
            trials=1,
            sums=self._sums[slot, :-1].clone(),
            predictions=None if found is None else found[slot, :-1].to(torch.int32, copy=True),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state of each training, [K, ...]; they are not copied."""
        self.add_up()
        found = {"sums": self._sums, "average": self._average}
        return found if self._predictions is None else {**found, "predictions": self._predictions}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the `tensors` of a tally with the same arguments."""
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])

    def _make_room(self, losses: Tensor, logits: Tensor) -> None:
        """Allocate memory for the outputs of the steps that are added up together."""
        steps = max(1, min(_STEPS_AT_ONCE, _MOST_LOGITS // logits.numel()))
        self._batch_size, self._num_outputs = losses.shape[-1], logits.shape[-1]
        device = losses.device
        # An int64 index takes the memory of two float32.
        width = 3 * losses.numel() + logits.numel()
        # Even, so that the indices of each row can be read as int64.
        self._kept = torch.zeros(steps, width + width % 2, device=device)[:, :width]
        self._last_outputs = torch.zeros(width, device=device)
        # The moving average is a recurrence over steps, one small kernel each. Unrolled, it is one
        # product with this matrix. Row t has the weights of steps s < t in the average before t;
        # the last row gives the average after all steps.
        lags = torch.arange(steps + 1)[:, None] - torch.arange(steps) - 1
        weights = torch.where(lags >= 0, (1 - LOSS_DECAY) * LOSS_DECAY ** lags.clamp_min(0), 0.0)
        self._weights = weights.to(device)
        self._decays = (LOSS_DECAY ** torch.arange(steps + 1)).to(device)

    def _outputs(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices and losses [T, K, B], and logits [T, K, B, C], of kept steps."""
        shape = (len(kept), self._slots, self._batch_size)
        examples = self._slots * self._batch_size
        ends = (2 * examples, 3 * examples)
        indices, losses, logits = torch.tensor_split(kept, ends, dim=1)
        return (
            indices.view(torch.int64).reshape(shape),
            losses.reshape(shape),
            logits.reshape(*shape, self._num_outputs),
        )

    def _levels(self, losses: Tensor, finite: Tensor) -> Tensor:
        """Moving average of the loss before each step, [T, K]; the first batch's own mean."""
        steps = len(losses)
        held = finite.sum(dim=2)
        means = losses.sum(dim=2) / held.clamp_min(1)
        batches = torch.stack((means, (held > 0).float()), dim=2)
        weights, decays = self._weights[: steps + 1, :steps], self._decays[: steps + 1]
        totals = torch.einsum("ts,skv->tkv", weights, batches)
        totals = totals + decays[:, None, None] * self._average
        self._average.copy_(totals[-1])
        sums, shares = totals[:-1].unbind(dim=2)
        return torch.where(shares > 0, sums / shares, means)
