"""The one way samplers seed their randomness."""

from __future__ import annotations

import numpy as np
import torch


def make_generator(
    seed: int, *, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on ``device`` whose stream differs by seed and by rank.

    The pair is hashed (NumPy's ``SeedSequence``), so that neighbouring seeds and ranks do not share
    streams, as ``seed + rank`` would make them.
    """
    entropy = (seed % 2**64, rank)
    (state,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state) >> 1)
