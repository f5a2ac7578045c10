"""Features of examples."""

from __future__ import annotations

import math

import torch

from hpo_mab.samplers._features import FeatureTable

LABELS = torch.tensor([0, 1, 0, 1])


def _log(value: float, scale: float) -> float:
    return math.log1p(value) / scale


def test_features_by_hand() -> None:
    table = FeatureTable(LABELS)
    keep = torch.tensor([True, True])
    first = torch.tensor([0, 1])
    table.drawn(first)
    table.learn(first, torch.tensor([0.5, -0.5]), keep=keep)
    again = torch.tensor([0, 3])
    table.drawn(again)
    table.learn(again, torch.tensor([1.5, math.nan]), keep=torch.tensor([True, False]))
    table.drawn(torch.tensor([2]))
    # [bias, unseen, level, visits, age, class level]; class 0: (0.5 + 1.5) / 3, class 1: -0.5 / 2.
    expected = [
        [1, 0, 1.5, _log(2, 4), _log(1, 8), 2 / 3],
        [1, 0, -0.5, _log(1, 4), _log(2, 8), -1 / 4],
        [1, 1, 0.0, 0.0, _log(0, 8), 2 / 3],
        [1, 1, 0.0, 0.0, _log(1, 8), -1 / 4],
    ]
    torch.testing.assert_close(table.read(torch.arange(4)), torch.tensor(expected))


def test_reading_changes_nothing() -> None:
    table = FeatureTable(LABELS)
    table.drawn(torch.tensor([1]))
    first = table.read(torch.arange(4))
    assert torch.equal(first, table.read(torch.arange(4)))
