import collections

import numpy as np
import pytest

from hpo_mab.bandits._window import PullWindow

BANDITS = 4


@pytest.mark.parametrize("memory", [1, 5, None])
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_a_bandit_forgets_the_pull_that_leaves_its_window(
    memory: int | None, missing: float
) -> None:
    rng = np.random.default_rng(0)
    window = PullWindow(BANDITS, memory, arms=300)
    kept = [collections.deque[tuple[int, int]]() for _ in range(BANDITS)]
    for step in range(60):
        # In step at first.
        bandits = np.flatnonzero(rng.random(BANDITS) >= (missing if step > 20 else 0))
        arms = rng.integers(0, 300, len(bandits))
        rewards = rng.integers(0, 2, len(bandits)).astype(np.int8)
        expected = []
        for bandit, arm, reward in zip(bandits, arms, rewards, strict=True):
            kept[bandit].append((int(arm), int(reward)))
            if memory is not None and len(kept[bandit]) > memory:
                expected.append((int(bandit), *kept[bandit].popleft()))
        forgotten = window.push(bandits, arms, rewards)
        assert list(zip(*(found.tolist() for found in forgotten), strict=True)) == expected
        assert window.totals.tolist() == [len(pulls) for pulls in kept]


@pytest.mark.parametrize("out_of_step", [False, True])
def test_a_restored_window_goes_on(out_of_step: bool) -> None:
    window, restored = (PullWindow(BANDITS, 3, arms=300) for _ in range(2))
    everyone = np.arange(BANDITS)

    def push(window: PullWindow, bandits: np.ndarray, step: int) -> list[list[int]]:
        rewards = np.zeros(len(bandits), dtype=np.int8)
        return [found.tolist() for found in window.push(bandits, 10 * step + bandits, rewards)]

    for step in range(5):
        push(window, everyone[1:] if out_of_step and step == 2 else everyone, step)
    restored.load_state({name: array.copy() for name, array in window.state().items()})
    for step in range(5, 9):
        assert push(restored, everyone, step) == push(window, everyone, step)
