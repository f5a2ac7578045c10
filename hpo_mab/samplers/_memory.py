"""Per-example memories, written without waiting for the device and repeatably on each.

A memory has one entry more than there are examples: what must leave no trace is written there.
Plain indexed assignment would leave it to chance on CUDA which of two values wins where a batch
holds an example twice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def make_memory(length: int, value: float, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A memory of ``length`` examples, all ``value``: [length + 1]."""
    return torch.full((length + 1,), value, dtype=dtype, device=device)


def remember(memory: Tensor, positions: Tensor, values: Tensor, *, keep: Tensor) -> None:
    """Replace entries. Of an example that is there more than once, the largest value stays.

    Args:
        memory: From `make_memory`, changed in place.
        positions: Examples, int64 [B].
        values: Their values [B]; ignored where ``keep`` is false.
        keep: Bool [B].
    """
    dropped = ~keep
    slots = positions.masked_fill(dropped, len(memory) - 1)
    values = values.masked_fill(dropped, 0).to(memory.dtype)
    memory.scatter_reduce_(0, slots, values, reduce="amax", include_self=False)


def accumulate(memory: Tensor, positions: Tensor, values: Tensor, *, keep: Tensor) -> None:
    """Add to entries, once for each time an example is there.

    Args:
        memory: From `make_memory`, changed in place.
        positions: Examples, int64 [B].
        values: What to add [B]; ignored where ``keep`` is false.
        keep: Bool [B].
    """
    values = values.masked_fill(~keep, 0).to(memory.dtype)
    memory.index_put_((positions,), values, accumulate=True)


def concentration(counts: Tensor) -> float:
    """Share of all draws that fell on the most-drawn tenth of the examples; 0.1 is uniform.

    Args:
        counts: Draws of each example, int64 [n].

    Returns:
        The share, in [0.1, 1] where ten divides n; NaN before the first draw.
    """
    tenth = -(-len(counts) // 10)
    most = torch.topk(counts, tenth).values.sum()
    return float(most / counts.sum())
