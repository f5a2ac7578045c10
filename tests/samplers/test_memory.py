"""Per-example memories."""

from __future__ import annotations

import math

import torch

from hpo_mab.samplers._memory import accumulate, concentration, make_memory, remember

POSITIONS = torch.tensor([2, 0, 2, 3])
KEEP = torch.tensor([True, True, True, False])


def _memory(value: float) -> torch.Tensor:
    return make_memory(4, value, dtype=torch.float32, device=torch.device("cpu"))


def test_remember_keeps_the_largest_of_a_batch_and_forgets_the_past() -> None:
    memory = _memory(9.0)
    remember(memory, POSITIONS, torch.tensor([5.0, 1.0, 4.0, math.nan]), keep=KEEP)
    assert memory[:4].tolist() == [1.0, 9.0, 5.0, 9.0]


def test_accumulate_adds_each_time() -> None:
    memory = _memory(1.0)
    accumulate(memory, POSITIONS, torch.tensor([5.0, 1.0, 4.0, math.inf]), keep=KEEP)
    assert memory[:4].tolist() == [2.0, 1.0, 10.0, 1.0]


def test_concentration_of_even_and_uneven_draws() -> None:
    assert abs(concentration(torch.full((50,), 3)) - 0.1) < 1e-6
    counts = torch.ones(20, dtype=torch.int64)
    counts[7] = 41
    assert abs(concentration(counts) - 42 / 60) < 1e-6
