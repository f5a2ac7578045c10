from collections.abc import Callable
from typing import Any

import pytest
import torch


def passes_of(
    make_engine: Callable[..., Any],
    kind: str,
    *,
    draws: int,
    examples: int,
    bandits: int,
    seed: int = 0,
) -> torch.Tensor:
    engine = make_engine(kind, examples=examples, bandits=bandits, seed=seed)
    return torch.stack([engine.draw(uniform=True)[0] for _ in range(draws)])


@pytest.mark.parametrize("bandits", [1, 4, 20])
def test_uniform_passes_visit_every_arm_once(
    engine_kind: str, bandits: int, make_engine: Callable[..., Any]
) -> None:
    drawn = passes_of(make_engine, engine_kind, draws=60 // bandits, examples=20, bandits=bandits)
    for start in range(0, 60 // bandits, 20 // bandits):
        visited = drawn[start : start + 20 // bandits].flatten()
        assert sorted(visited.tolist()) == list(range(20))


def test_unequal_bandits_pass_on_their_own(
    engine_kind: str, make_engine: Callable[..., Any]
) -> None:
    drawn = passes_of(make_engine, engine_kind, draws=12, examples=7, bandits=2)
    # 12 draws are 3 passes over 4 arms and 4 passes over 3.
    assert sorted(torch.bincount(drawn.flatten(), minlength=7).tolist()) == [3] * 4 + [4] * 3


def test_passes_differ_in_their_order(engine_kind: str, make_engine: Callable[..., Any]) -> None:
    drawn = passes_of(make_engine, engine_kind, draws=40, examples=20, bandits=1).flatten().tolist()
    assert drawn[:20] != drawn[20:]
    first = {
        passes_of(make_engine, engine_kind, draws=1, examples=20, bandits=1, seed=s).item()
        for s in range(9)
    }
    assert len(first) > 3
