"""Samplers that predict from cheap features of examples with an online linear model.

A contextual bandit (linear Thompson sampling), and importance sampling by a regressed loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from hpo_mab._errors import check_integer, require
from hpo_mab.bandits._settings import MovingAverage
from hpo_mab.samplers._base import CommonArguments
from hpo_mab.samplers._feedback import Draw
from hpo_mab.samplers._streams import (
    LearningSampler,
    accumulate,
    choose_with_replacement,
    make_table,
    replace,
)

#: Length of a feature vector.
NUM_FEATURES = 6

# Columns of the table.
_LEVEL, _VISITS, _LAST = range(3)


class FeatureTable:
    """Features of each example, from its class, visits and outcomes.

    ``[1, unseen, level, log(1 + visits) / 4, log(1 + age) / 8, class level]``, [6]:

    - a bias and whether the example was never answered;
    - *level*: the example's last outcome, as given to `learn`; 0 while unseen;
    - its *visits*: the number of its outcomes;
    - its *age*: the draws since it was last drawn, or since the start;
    - *class level*: mean outcome of its class so far, each class starting from one outcome of 0.

    Memory is 12 bytes an example without the labels; reading costs O(k) for k examples. Draws are
    counted in float32, exact up to 16 million.

    Args:
        labels: Class of each example, int64 [n], on the device of the table.
    """

    def __init__(self, labels: Tensor) -> None:
        # Labels may be any integers; here classes are numbered from 0.
        distinct, self._labels = torch.unique(labels, return_inverse=True)
        device = labels.device
        self._clock = torch.zeros((), dtype=torch.int64, device=device)
        classes = len(distinct)
        # One row more, for values that must not count, as in `make_table`.
        self._table = torch.zeros(len(labels) + 1, 3, dtype=torch.float32, device=device)
        self._class_sums = make_table(classes, 0.0, dtype=torch.float32, device=device)
        self._class_counts = make_table(classes, 1.0, dtype=torch.float32, device=device)

    def read(self, positions: Tensor) -> Tensor:
        """Features of examples int64 [k], float32 [k, 6]."""
        level, visits, last = self._table[positions].unbind(1)
        levels = self._class_sums / self._class_counts
        return torch.stack(
            [
                torch.ones_like(level),
                (visits == 0).to(level.dtype),
                level,
                visits.log1p() / 4,
                (self._clock - last).log1p() / 8,
                levels[self._labels[positions]],
            ],
            dim=1,
        )

    def drawn(self, positions: Tensor) -> None:
        """Record that a batch, int64 [B], was drawn; a draw is the unit of age."""
        self._clock += 1
        # Not `index_fill_`, which reads the value of a tensor on the host.
        now = self._clock.to(self._table.dtype).expand(len(positions))
        self._table[:, _LAST].index_copy_(0, positions, now)

    def learn(self, positions: Tensor, outcomes: Tensor, *, keep: Tensor) -> None:
        """Record the outcomes of a batch, float [B], where ``keep``, bool [B], is true."""
        ones = torch.ones_like(outcomes)
        replace(self._table[:, _LEVEL], positions, outcomes, keep=keep)
        accumulate(self._table[:, _VISITS], positions, ones, keep=keep)
        classes = self._labels[positions]
        accumulate(self._class_sums, classes, outcomes, keep=keep)
        accumulate(self._class_counts, classes, ones, keep=keep)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state."""
        return {
            "clock": self._clock,
            "table": self._table,
            "class_sums": self._class_sums,
            "class_counts": self._class_counts,
        }


class OnlineRidge:
    """Linear regression with a Gaussian prior and exponentially decaying weights of past data.

    After each batch ``X``, ``y``:

        A <- decay A + (1 - decay) ridge I + X'X,    b <- decay b + X'y,

    so that the weight of the prior does not decay. The posterior of the coefficients is normal with
    mean ``A^-1 b`` and covariance ``scale^2 A^-1``.

    Args:
        size: Number of features, d.
        ridge: Precision of the prior, above 0.
        decay: Share of the past kept at each batch, in (0, 1].
        device: Device of the regression.
    """

    def __init__(self, size: int, *, ridge: float, decay: float, device: torch.device) -> None:
        self._prior = ridge * torch.eye(size, dtype=torch.float32, device=device)
        self._decay = decay
        self._precision = self._prior.clone()
        self._moment = torch.zeros(size, dtype=torch.float32, device=device)

    def learn(self, features: Tensor, values: Tensor, *, keep: Tensor) -> None:
        """Add a batch: features float32 [B, d], values [B]; only where ``keep``, bool [B]."""
        features = features * keep[:, None]  # Features are finite, values may not be.
        values = values.masked_fill(~keep, 0.0)
        # A batch with a loss that is not finite must change nothing.
        decay = torch.where(keep.any(), self._decay, 1.0)
        # `update` may be called within a loop's autocast, in whose precision sums would be lost.
        with torch.autocast(features.device.type, enabled=False):
            squares, products = features.T @ features, features.T @ values
        self._precision = decay * self._precision + (1 - decay) * self._prior + squares
        self._moment = decay * self._moment + products

    def mean(self) -> Tensor:
        """Posterior mean of the coefficients, float32 [d]."""
        return torch.cholesky_solve(self._moment[:, None], self._factor()).squeeze(1)

    def sample(self, count: int, *, scale: float, generator: torch.Generator) -> Tensor:
        """Independent draws of the coefficients from the posterior, float32 [count, d]."""
        factor = self._factor()
        mean = torch.cholesky_solve(self._moment[:, None], factor)
        # With the precision A = L L' and standard normal z, L'^-1 z has the covariance A^-1.
        noise = torch.randn(
            len(mean), count, dtype=mean.dtype, generator=generator, device=mean.device
        )
        spread: Tensor = torch.linalg.solve_triangular(factor.T, noise, upper=True)
        return (mean + scale * spread).T

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that make the state: the sufficient statistics."""
        return {"precision": self._precision, "moment": self._moment}

    def _factor(self) -> Tensor:
        # Not `cholesky`, whose check waits for the device. The check is not needed: the prior makes
        # the precision positive definite.
        factor: Tensor = torch.linalg.cholesky_ex(self._precision, check_errors=False).L
        return factor


#: Precision of the coefficients' prior: features and outcomes are of order 1.
_RIDGE = 1.0


class LinearSampler(LearningSampler):
    """A sampler with features of examples, a regression on them and a moving average of the loss.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        decay: Share of the regression's past kept at each batch, in (0, 1].
        loss_decay: Decay of the moving average of the loss, in [0, 1).
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        decay: float,
        loss_decay: float,
        **common: Unpack[CommonArguments],
    ) -> None:
        require(0 < decay <= 1, "decay", "in (0, 1]", decay)
        require(0 <= loss_decay < 1, "loss_decay", "in [0, 1)", loss_decay)
        super().__init__(labels, **common)
        self._features = FeatureTable(self._targets)
        self._model = OnlineRidge(NUM_FEATURES, ridge=_RIDGE, decay=decay, device=self.device)
        self._average = MovingAverage(
            torch.tensor([loss_decay], dtype=torch.float32, device=self.device)
        )

    def _average_before(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The average before a batch [B], a scalar, and whether the batch counts, bool [B]."""
        average, valid = self._average.before(losses[None])
        return average[0, 0], valid[0].expand_as(losses)

    def _held(self) -> dict[str, Tensor]:
        parts = (self._features, self._model, self._average)
        return {
            **super()._held(),
            **{name: tensor for part in parts for name, tensor in part.tensors().items()},
        }


class ContextualSampler(LinearSampler):
    """Linear Thompson sampling over examples described by cheap features.

    The reward is `MABSampler`'s: 1 if an example's loss is at least the moving average of the
    training loss, else 0. One linear model for all examples predicts it from features that need no
    network. They are whether it was seen, its last reward, its class's reward rate, visits, and
    draws since the last visit. The last reward and the class's rate are stored minus 1/2. The
    posterior of the coefficients is Gaussian: ridge regression whose past is weighted by ``decay``
    a batch. A batch with a loss that is not finite changes nothing.

    Each of the ``B`` slots of a batch draws separate coefficients from the posterior. Among its
    ``candidates`` examples it takes the one with the highest predicted reward; with probability
    ``floor`` it takes a uniform one instead. Candidates are consecutive parts of a shuffle of all
    examples. So no two slots share one, and a batch holds no example twice. The cost of a draw does
    not depend on the number of examples. Where there are fewer than ``candidates * B`` examples,
    slots have fewer candidates. With ``floor > 0`` every example has a positive chance whenever it
    is a candidate, once every ``n / (candidates * B)`` draws. With ``floor = 0`` an example whose
    features are never extreme among candidates may not be drawn again.

    Draw and update together are about 110 tensor operations on at most ``candidates * B`` rows. At
    ``B = 128`` and 50,000 examples on one CPU thread they took about three times as long as
    `MABSampler`'s. With all examples as candidates (``candidates = 390``) they took five times as
    long as with 8. The three were timed alternately in one run.

    Source: Agrawal and Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs", ICML
    2013, algorithm 1 (one posterior draw a choice, scaled by ``scale``); forgetting and candidate
    subsets are additions.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        candidates: Candidates a slot, at least 1; 1 is uniform sampling.
        scale: Width of the posterior draws, at least 0.
        floor: Probability of a uniform pick, in [0, 1].
        decay: Share of the regression's past kept at each batch, in (0, 1].
        loss_decay: Decay of the moving average of the loss, in [0, 1).

    Examples:
        >>> from hpo_mab.samplers import ContextualSampler
        >>> ContextualSampler([0, 1] * 50, batch_size=10, candidates=4).draw().shape
        torch.Size([10])
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        candidates: int = 8,
        scale: float = 0.5,
        floor: float = 0.1,
        decay: float = 0.99,
        loss_decay: float = 0.99,
        **common: Unpack[CommonArguments],
    ) -> None:
        check_integer("candidates", candidates, 1)
        require(scale >= 0, "scale", "at least 0", scale)
        require(0 <= floor <= 1, "floor", "in [0, 1]", floor)
        super().__init__(labels, decay=decay, loss_decay=loss_decay, **common)
        self.candidates = min(candidates, self.num_examples // self.batch_size)
        self.scale = scale
        self.floor = floor
        self._starts = self.candidates * torch.arange(self.batch_size, device=self.device)

    def _draw(self) -> Draw:
        candidates = self._take(self.batch_size * self.candidates)
        features = self._features.read(candidates)
        coefficients = self._model.sample(
            self.batch_size, scale=self.scale, generator=self._generator
        )
        slots = features.view(self.batch_size, self.candidates, NUM_FEATURES)
        # A draw may be within a loop's autocast, in whose precision predictions would be rounded.
        with torch.autocast(features.device.type, enabled=False):
            predicted = torch.bmm(slots, coefficients[:, :, None]).squeeze(2)
        # The first candidate of a slot is a uniform choice, because candidates come from a shuffle.
        uniform = torch.rand(self.batch_size, generator=self._generator, device=self.device)
        chosen = predicted.argmax(dim=1).masked_fill(uniform < self.floor, 0) + self._starts
        positions = candidates[chosen]
        self._features.drawn(positions)
        return Draw(self._count(positions), context=(positions, features[chosen]))

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions, features = draw.context
        average, valid = self._average_before(losses)
        rewarded = valid & (losses >= average)
        outcomes = rewarded.to(torch.float32) - 0.5
        self._model.learn(features, outcomes, keep=valid)
        self._features.learn(positions, outcomes, keep=valid)
        self._reward(rewarded, valid)


class ImponSampler(LinearSampler):
    """Draws in proportion to losses predicted by an online linear regression.

    A linear model predicts an example's relative loss ``loss / m - 1``, where ``m`` is the moving
    average of the training loss. Its features are cheap: seen or not, last relative loss, class's
    mean relative loss, visits, draws since the last visit. The model is recursive ridge regression
    whose past is weighted by ``decay`` a batch. A batch with a loss that is not finite changes
    nothing. A draw takes ``K = presample * B`` candidates uniformly. With predictions ``f_i`` it
    scores them ``s_i = max(0, 1 + f_i)``, and draws ``B`` of them with replacement with
    probabilities

        g_i = (s_i + c) / sum_j (s_j + c),    c = smoothing * mean(s).

    Losses are weighted by ``1 / (K g_i)``, which makes the weighted mean loss unbiased; with
    ``weighted = False`` they are not. The cost of a draw does not depend on the number of examples,
    unlike drawing from all of them. Every example has a positive chance in every draw.

    The scheme is that of importance sampling by predicted loss: Katharopoulos and Fleuret, "Biased
    Importance Sampling for Deep Neural Network Training", 2017, arXiv:1706.00043. Here smoothing
    is additive, and a linear model replaces their recurrent network.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        presample: Candidates for each example of the batch, at least 1.
        smoothing: Uniform part, in means of the scores, above 0.
        decay: Share of the regression's past kept at each batch, in (0, 1].
        loss_decay: Decay of the moving average of the loss, in [0, 1).
        weighted: Whether to weight losses to be unbiased.

    Examples:
        >>> from hpo_mab.samplers import ImponSampler
        >>> ImponSampler([0, 1] * 50, batch_size=10, presample=4).draw().shape
        torch.Size([10])
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        presample: int = 8,
        smoothing: float = 0.5,
        decay: float = 0.99,
        loss_decay: float = 0.99,
        weighted: bool = True,
        **common: Unpack[CommonArguments],
    ) -> None:
        check_integer("presample", presample, 1)
        require(smoothing > 0, "smoothing", "above 0", smoothing)
        super().__init__(labels, decay=decay, loss_decay=loss_decay, **common)
        self.presample = presample
        self.smoothing = smoothing
        self.weighted = weighted

    def _draw(self) -> Draw:
        candidates = self._candidates(self.presample * self.batch_size)
        features = self._features.read(candidates)
        with torch.autocast(features.device.type, enabled=False):
            scores = (1 + features @ self._model.mean()).clamp_min(0)
        mean = scores.mean()
        chosen, probability = choose_with_replacement(
            torch.where(mean > 0, scores + self.smoothing * mean, 1.0),
            self.batch_size,
            generator=self._generator,
        )
        positions = candidates[chosen]
        self._features.drawn(positions)
        weights = 1 / (len(candidates) * probability) if self.weighted else None
        return Draw(self._count(positions), weights, (positions, features[chosen]))

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        positions, features = draw.context
        average, valid = self._average_before(losses)
        relative = torch.where(average > 0, losses / average - 1, 0.0)
        self._model.learn(features, relative, keep=valid)
        self._features.learn(positions, relative, keep=valid)
