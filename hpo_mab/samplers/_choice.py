"""Weighted random choice that is exact, repeatable on every device, and never waits for it.

`torch.multinomial` checks its input on the host, and a floating-point `torch.cumsum` on CUDA may
round differently from run to run; both are avoided here.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Weights are drawn in whole units of 2**-24 of the largest weight, and at least one unit.
_UNITS = 2**24


def choose_with_replacement(
    weights: Tensor, count: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw positions independently, in proportion to ``weights``. Cost O(n + count log n).

    Weights are rounded to whole units of ``2**-24`` of the largest and to one unit at least, so
    every position has a positive chance. The probabilities returned are those of the rounded
    weights, so that importance weights made of them are exact.

    Args:
        weights: Non-negative and finite, float [n]; all equal if all are zero.
        count: Number of positions to draw.
        generator: Source of randomness, on the device of ``weights``.

    Returns:
        Positions int64 [count] and the probability of each in one draw, float32 [count].
    """
    largest = weights.max().clamp_min(torch.finfo(weights.dtype).tiny)
    units = (weights / largest * _UNITS).to(torch.int64).clamp_min_(1)
    edges = units.cumsum(0)
    total = edges[-1]
    # Below 2**50 for 50 million examples, so the remainder is uniform to one part in 2**13 there
    # and in 2**23 for 50 thousand.
    ticket = torch.randint(2**63 - 1, (count,), generator=generator, device=weights.device) % total
    positions = torch.searchsorted(edges, ticket, right=True)
    return positions, units[positions].to(torch.float32) / total.to(torch.float32)


def choose_without_replacement(
    weights: Tensor, count: int, *, generator: torch.Generator
) -> Tensor:
    """Draw distinct positions one after another, each in proportion to the weights left.

    The same law as ``numpy.random.choice(n, count, replace=False, p=...)``, by an exponential race
    (Efraimidis and Spirakis 2006): the ``count`` smallest of ``E_i / w_i`` with ``E_i ~ Exp(1)``.

    Args:
        weights: Non-negative and finite, float [n]. Zero weights come last.
        count: Number of positions to draw, at most n.
        generator: Source of randomness, on the device of ``weights``.

    Returns:
        Positions int64 [count], in the order drawn.
    """
    times = torch.empty_like(weights, dtype=torch.float32).exponential_(generator=generator)
    return torch.topk(times / weights, count, largest=False, sorted=True).indices
