"""The stratified split of the training set into bandits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpo_mab.bandits._arrays import Ints


def stratified_shares(labels: Ints, bandits: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Split examples at random into shares of the same class mix; every example is an arm.

    A stable sort by class of a random order, dealt one at a time to the bandits in turn, bounds
    both the sizes of the shares and each class's counts in them to differ by at most 1.

    Args:
        labels: Class of each example, [N].
        bandits: Number of shares, ``B``, in [1, N].
        rng: Source of the shuffles.

    Returns:
        Examples of each bandit, [B, ceil(N / B)]; shorter shares end in one -1.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    arms = -(-len(labels) // bandits)
    dealt = np.full(arms * bandits, -1, dtype=np.int32)
    dealt[: len(order)] = order
    # Which bandits get the last, odd examples must not depend on their class's number.
    return np.ascontiguousarray(dealt.reshape(arms, bandits).T[rng.permutation(bandits)])
