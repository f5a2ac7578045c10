"""Bayesian ridge regression, online, with forgetting."""

from __future__ import annotations

import torch
from torch import Tensor


class OnlineRidge:
    """Linear regression with a Gaussian prior and exponentially forgotten data.

    After each batch ``X``, ``y``:

        A <- decay A + (1 - decay) ridge I + X'X,    b <- decay b + X'y,

    so that the prior is not forgotten. The posterior of the coefficients is normal with mean
    ``A^-1 b`` and covariance ``scale^2 A^-1``.

    Args:
        size: Number of features, d.
        ridge: Precision of the prior, above 0.
        decay: Share of the past kept at each batch, in (0, 1].
        device: Where to work.
    """

    def __init__(self, size: int, *, ridge: float, decay: float, device: torch.device) -> None:
        self._prior = ridge * torch.eye(size, device=device)
        self._decay = decay
        self._precision = self._prior.clone()
        self._moment = torch.zeros(size, device=device)

    def learn(self, features: Tensor, values: Tensor, *, keep: Tensor) -> None:
        """Take in a batch: features float32 [B, d], values [B]; only where ``keep``, [B]."""
        features = features * keep[:, None]  # Features are finite, values may not be.
        values = values.masked_fill(~keep, 0.0)
        decay = torch.where(keep.any(), self._decay, 1.0)
        self._precision = (
            decay * self._precision + (1 - decay) * self._prior + features.T @ features
        )
        self._moment = decay * self._moment + features.T @ values

    def mean(self) -> Tensor:
        """Posterior mean of the coefficients, float32 [d]."""
        return torch.cholesky_solve(self._moment[:, None], self._factor()).squeeze(1)

    def sample(self, count: int, *, scale: float, generator: torch.Generator) -> Tensor:
        """Independent draws of the coefficients from the posterior, float32 [count, d]."""
        factor = self._factor()
        mean = torch.cholesky_solve(self._moment[:, None], factor)
        noise = torch.randn(len(mean), count, generator=generator, device=mean.device)
        spread: Tensor = torch.linalg.solve_triangular(factor.T, noise, upper=True)
        return (mean + scale * spread).T

    def state(self) -> dict[str, Tensor]:
        """The sufficient statistics."""
        return {"precision": self._precision.clone(), "moment": self._moment.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        self._precision = state["precision"].to(self._prior.device).clone()
        self._moment = state["moment"].to(self._prior.device).clone()

    def _factor(self) -> Tensor:
        # Not `cholesky`, which checks on the host; the precision is positive definite by its prior.
        factor: Tensor = torch.linalg.cholesky_ex(self._precision, check_errors=False).L
        return factor
