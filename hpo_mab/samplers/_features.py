"""Cheap features of examples: what feedback has told, without looking at the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpo_mab.samplers._memory import accumulate, make_memory, remember

#: Length of a feature vector.
NUM_FEATURES = 6

# Columns of the table.
_LEVEL, _VISITS, _LAST = range(3)


class FeatureTable:
    """Features of each example, from its class and what happened to it.

    ``[1, unseen, level, log(1 + visits) / 4, log(1 + age) / 8, class level]``, [6]:

    - a bias and whether the example was never answered;
    - *level*: the example's last outcome, as given to `learn`; 0 while unseen;
    - its *visits*, the number of its finite outcomes, and its *age*, the draws since it was last
      drawn (or since the start);
    - *class level*: mean outcome of its class so far, each class starting from one outcome of 0.

    Memory is 12 bytes an example besides the labels; reading costs O(k) for k examples. Draws are
    counted in float32, exact up to 16 million.

    Args:
        labels: Class of each example, int64 [n], on the device to work on.
    """

    def __init__(self, labels: Tensor) -> None:
        # Classes may be called anything: they are numbered from 0 here.
        distinct, self._labels = torch.unique(labels, return_inverse=True)
        self._clock = 0
        device = labels.device
        classes = len(distinct)
        # A row more, where what must leave no trace is written.
        self._table = torch.zeros(len(labels) + 1, 3, device=device)
        self._class_sums = make_memory(classes, 0.0, dtype=torch.float32, device=device)
        self._class_counts = make_memory(classes, 1.0, dtype=torch.float32, device=device)
        self._scale = torch.tensor([1 / 4, 1 / 8], device=device)

    def read(self, positions: Tensor) -> Tensor:
        """Features of examples int64 [k], float32 [k, 6]."""
        rows = self._table.index_select(0, positions)
        unseen = rows[:, _VISITS : _VISITS + 1] == 0
        rows[:, _LAST].neg_().add_(self._clock)
        rows[:, _VISITS:].log1p_().mul_(self._scale)
        levels = self._class_sums / self._class_counts
        classes = self._labels.index_select(0, positions)
        return torch.cat(
            [
                torch.ones_like(rows[:, :1]),
                unseen.to(rows.dtype),
                rows,
                levels.index_select(0, classes)[:, None],
            ],
            dim=1,
        )

    def drawn(self, positions: Tensor) -> None:
        """Note that a batch, int64 [B], was drawn; a draw is the unit of age."""
        self._clock += 1
        self._table[:, _LAST].index_fill_(0, positions, self._clock)

    def learn(self, positions: Tensor, outcomes: Tensor, *, keep: Tensor) -> None:
        """Note the outcomes of a batch, float [B], where ``keep``, bool [B], is true."""
        ones = torch.ones_like(outcomes)
        remember(self._table[:, _LEVEL], positions, outcomes, keep=keep)
        accumulate(self._table[:, _VISITS], positions, ones, keep=keep)
        classes = self._labels[positions]
        accumulate(self._class_sums, classes, outcomes, keep=keep)
        accumulate(self._class_counts, classes, ones, keep=keep)

    def state(self) -> dict[str, Any]:
        """Tensors and the clock."""
        return {"clock": self._clock, **{name: tensor.clone() for name, tensor in self._all()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._clock = int(state["clock"])
        for name, tensor in self._all():
            tensor.copy_(state[name])

    def _all(self) -> list[tuple[str, Tensor]]:
        return [(n, getattr(self, n)) for n in ("_table", "_class_sums", "_class_counts")]
