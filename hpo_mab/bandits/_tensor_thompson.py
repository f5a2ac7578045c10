"""Exact propensities of Thompson sampling for whole counts in tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpo_mab.bandits._tails import LogitGrid

#: States of more pulls are taken for the nearest of so many: the table grows with the square.
MAX_PULLS = 48


class ThompsonTable:
    """Distribution functions of every state of at most `MAX_PULLS` pulls, over a grid.

    ``p_g = integral of (f_g / F_g)(x) prod_h F_h(x)^(n_h) dx``, as two matrix products.

    Args:
        prior: Beta parameters of an arm without pulls.
        arms: Arms of the largest bandit.
        device: Where the table lives.
    """

    def __init__(self, prior: tuple[float, float], arms: int, device: torch.device) -> None:
        grid = LogitGrid(prior, arms)
        columns = [
            grid.columns(prior[0] + successes, prior[1] + pulls - successes)
            for pulls in range(MAX_PULLS + 1)
            for successes in range(pulls + 1)
        ]
        # Double precision: counts times logarithms must not be rounded to TF32.
        log_cdf, hazard = (np.stack(part).astype(np.float64) for part in zip(*columns, strict=True))
        self._log_cdf = torch.from_numpy(log_cdf).to(device)
        self._hazard = torch.from_numpy(hazard).to(device)

    def propensities(self, successes: Tensor, failures: Tensor, held: Tensor) -> Tensor:
        """Probability of each arm, float64 [B, A].

        Args:
            successes: Whole numbers, [B, A].
            failures: Whole numbers, [B, A].
            held: Where there is an arm and no padding, bool [B, A].
        """
        states = self._states(successes, failures)
        counts = self._log_cdf.new_zeros(len(states), len(self._log_cdf))
        counts.scatter_add_(1, states, held.double())
        best = (counts @ self._log_cdf).exp()
        table = best @ self._hazard.T
        table = table / (counts * table).sum(dim=1, keepdim=True)
        return table.gather(1, states) * held

    def _states(self, successes: Tensor, failures: Tensor) -> Tensor:
        pulls = successes + failures
        scale = (MAX_PULLS / pulls.clamp(min=1)).clamp(max=1)
        capped = pulls.clamp(max=MAX_PULLS).long()
        return capped * (capped + 1) // 2 + (successes * scale).round().long()
