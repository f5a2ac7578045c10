"""States of arms and uniform passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engines import make_engine
from scipy import stats

from hpo_mab.bandits._thompson import (
    MIN_BLOCK,
    MOST_PULLS,
    PRIOR,
    StateMembers,
    columns_after,
    columns_of,
    states_within,
)


@pytest.mark.parametrize("pulls", [1, 2, MOST_PULLS])
def test_each_state_has_one_column(pulls: int) -> None:
    states = states_within(pulls)
    shared = len(states) - 1
    assert len({tuple(pair) for pair in states.tolist()}) == len(states)
    assert columns_of(states[:shared], shared).tolist() == list(range(shared))
    assert states[PRIOR].tolist() == [0, 0]
    more = [[pulls + 1, 0], [0, pulls + 1], [7, pulls - 1], [60, 9], [100, 27]]
    assert columns_of(np.array(more, dtype=np.int8), shared).tolist() == [shared] * 5


def test_a_pull_more_and_less_leads_back() -> None:
    states = states_within(MOST_PULLS)
    shared = len(states) - 1
    less, more = columns_after(states)
    for reward in (0, 1):
        for column, (successes, failures) in enumerate(states[:shared].tolist()):
            added = int(more[column, reward])
            if successes + failures < MOST_PULLS:
                assert states[added].tolist() == [successes + reward, failures + 1 - reward]
                assert less[added, reward] == column
            else:
                assert added == shared
        assert more[shared, reward] == less[shared, reward] == shared


@pytest.mark.parametrize("arms", [3, MIN_BLOCK, MIN_BLOCK + 1, 1000, 5000])
def test_picks_are_uniform_among_the_members_of_a_state(arms: int) -> None:
    rng = np.random.default_rng(arms)
    # Unequal bandits, two states at random, and a third with one arm.
    members = StateMembers(np.array([arms, arms - 1]), 4)
    states = rng.integers(0, 2, (2, arms))
    states[:, arms // 2] = 3
    states[1, -1] = -1
    members.restore(states)
    for columns in ([0, 1], [1, 0], [3, 3]):
        chosen = np.array(columns)
        if not members.counts[[0, 1], chosen].all():
            continue
        picks = np.stack([members.pick(np.arange(2), chosen, rng.random(2)) for _ in range(4000)])
        for bandit in range(2):
            found = np.bincount(picks[:, bandit], minlength=arms)
            inside = states[bandit] == chosen[bandit]
            assert found[~inside].sum() == 0
            # In at most 20 groups of neighbours, at a level of 0.001 each; seeds are fixed.
            groups = [part.sum() for part in np.array_split(found[inside], 20) if len(part)]
            sizes = [len(part) for part in np.array_split(found[inside], 20) if len(part)]
            expected = 4000 * np.array(sizes) / inside.sum()
            assert len(groups) == 1 or stats.chisquare(groups, expected).pvalue > 1e-3


@pytest.mark.parametrize("arms", [200, 3 * MIN_BLOCK])
def test_moves_keep_counts_and_members_in_step(arms: int) -> None:
    rng = np.random.default_rng(0)
    members = StateMembers(np.array([arms, arms - 1, arms]), 5)
    for _ in range(500):
        pulled = rng.integers(0, arms - 1, 3)
        old = members.columns_of(members.rows, pulled)
        members.move(pulled, old, rng.integers(0, 5, 3).astype(np.int16))
    held = [np.bincount(row[row >= 0], minlength=5) for row in members.states]
    assert members.counts.tolist() == np.array(held).tolist()
    fresh = StateMembers(np.array([arms, arms - 1, arms]), 5)
    fresh.restore(members.states)
    uniforms, rows = rng.random(3), np.arange(3)
    for column in range(5):
        columns = np.full(3, column)
        assert (
            fresh.pick(rows, columns, uniforms).tolist()
            == members.pick(rows, columns, uniforms).tolist()
        )


def passes_of(kind: str, *, draws: int, examples: int, bandits: int, seed: int = 0) -> torch.Tensor:
    engine = make_engine(kind, examples=examples, bandits=bandits, seed=seed)
    return torch.stack([engine.draw(uniform=True)[0] for _ in range(draws)])


@pytest.mark.parametrize("bandits", [1, 4, 20])
def test_uniform_passes_visit_every_arm_once(engine_kind: str, bandits: int) -> None:
    drawn = passes_of(engine_kind, draws=60 // bandits, examples=20, bandits=bandits)
    for start in range(0, 60 // bandits, 20 // bandits):
        visited = drawn[start : start + 20 // bandits].flatten()
        assert sorted(visited.tolist()) == list(range(20))


def test_unequal_bandits_have_separate_passes(engine_kind: str) -> None:
    drawn = passes_of(engine_kind, draws=12, examples=7, bandits=2)
    # 12 draws are 3 passes over 4 arms and 4 passes over 3.
    assert sorted(torch.bincount(drawn.flatten(), minlength=7).tolist()) == [3] * 4 + [4] * 3


def test_passes_differ_in_their_order(engine_kind: str) -> None:
    drawn = passes_of(engine_kind, draws=40, examples=20, bandits=1).flatten().tolist()
    assert drawn[:20] != drawn[20:]
    first = {
        passes_of(engine_kind, draws=1, examples=20, bandits=1, seed=s).item() for s in range(9)
    }
    assert len(first) > 3
