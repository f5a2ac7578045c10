import numpy as np
import pytest
from scipy import stats

from hpo_mab.bandits._members import MIN_BLOCK, StateMembers


@pytest.mark.parametrize("arms", [3, MIN_BLOCK, MIN_BLOCK + 1, 1000, 5000])
def test_picks_are_uniform_among_the_members_of_a_state(arms: int) -> None:
    rng = np.random.default_rng(arms)
    # Unequal bandits, two states at random, and a third with one arm.
    members = StateMembers(np.array([arms, arms - 1]))
    members.resize(4)
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
    members = StateMembers(np.array([arms, arms - 1, arms]))
    members.resize(5)
    members.fill()
    for _ in range(500):
        bandits = np.flatnonzero(rng.random(3) < 0.7)
        pulled = rng.integers(0, arms - 1, len(bandits))
        old = members.columns_of(bandits, pulled)
        members.move(bandits, pulled, old, rng.integers(0, 5, len(bandits)).astype(np.int16))
    held = [np.bincount(row[row >= 0], minlength=5) for row in members.states]
    assert members.counts.tolist() == np.array(held).tolist()
    fresh = StateMembers(members.sizes)
    fresh.resize(5)
    fresh.restore(members.states)
    uniforms, rows = rng.random(3), np.arange(3)
    for column in range(5):
        columns = np.full(3, column)
        assert (
            fresh.pick(rows, columns, uniforms).tolist()
            == members.pick(rows, columns, uniforms).tolist()
        )
