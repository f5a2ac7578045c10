"""Arms of which nothing is known: drawn in shuffled passes, or with replacement."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hpo_mab._errors import ArgumentError
from hpo_mab.bandits import BanditSettings


def counts_of(engine: Any, draws: int, examples: int) -> np.ndarray:
    drawn = torch.cat([engine.draw(uniform=False)[0] for _ in range(draws)])
    return np.bincount(drawn.numpy(), minlength=examples)


@pytest.mark.parametrize(
    "knobs",
    [{}, {"policy": "ucb1"}, {"policy": "softmax"}, {"floor": 1.0}],
    ids=["thompson", "ucb1", "softmax", "uniform"],
)
def test_unknown_arms_are_drawn_once_a_pass(
    engine_kind: str, knobs: dict[str, Any], make_engine: Callable[..., Any]
) -> None:
    # 3 bandits of 6, 6 and 5 arms; 30 draws are 5, 5 and 6 passes.
    engine = make_engine(engine_kind, examples=17, bandits=3, **knobs)
    assert sorted(counts_of(engine, 30, 17)) == [5] * 12 + [6] * 5


def test_known_arms_are_passed_by(
    engine_kind: str, make_engine: Callable[..., Any], teach: Callable[..., Any]
) -> None:
    engine = make_engine(engine_kind, examples=18, bandits=3, memory=4)
    # Twice the same: the first batch is judged by its own mean, which no loss is above.
    for arm in (0, 0, 4):
        teach(engine, [arm] * 3, [1.0, 1.0, 1.0])
    counts = counts_of(engine, 200, 18)
    shares = engine.shares.numpy()
    unknown = counts[shares[:, [1, 2, 3, 5]]]
    assert (np.ptp(unknown, axis=1) <= 1).all()
    # Two successes of arm 0: drawn more often than the unknown ones.
    assert (counts[shares[:, 0]] > unknown.max(axis=1)).all()


def test_with_replacement_some_arms_wait_and_some_come_twice(
    engine_kind: str, make_engine: Callable[..., Any]
) -> None:
    engine = make_engine(engine_kind, examples=60, bandits=3, replacement=True)
    counts = counts_of(engine, 20, 60)
    # All once by chance: (20! / 20^20)^3, below 1e-20.
    assert counts.min() == 0
    assert counts.max() > 1


def test_replacement_follows_correction() -> None:
    assert BanditSettings().shuffles
    assert not BanditSettings(correction=0.5).shuffles
    assert not BanditSettings(replacement=True).shuffles
    with pytest.raises(ArgumentError, match=r"correction=0\.5 and replacement=False"):
        BanditSettings(correction=0.5, replacement=False)
    with pytest.raises(ArgumentError, match=r"replacement must be True, False or 'auto', got 'no'"):
        BanditSettings(replacement="no")  # type: ignore[arg-type]
