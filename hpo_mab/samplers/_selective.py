"""Samplers that leave out examples: those of low loss, or the hardest.

InfoBatch and hard mining leave out low losses. The curriculum leaves out what was hard in earlier
trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpo_mab._errors import ArgumentError, check_integer, require
from hpo_mab.samplers._base import CommonArguments
from hpo_mab.samplers._feedback import Draw
from hpo_mab.samplers._streams import LearningSampler, UniformSampler, replace


class InfoBatchSampler(LearningSampler):
    """InfoBatch's unbiased dynamic pruning (Qin et al. 2024).

    The score of an example is its last loss. Before each pass, every example whose score is below
    the mean score is skipped with probability ``ratio``; of those that stay, losses are weighted by
    ``1 / (1 - ratio)``. All others are drawn once, with weight 1. So the expected sum of a pass's
    weighted gradients is the gradient of the whole data set. (With ``m`` of ``n`` examples in a
    pass, a *batch*'s mean is ``n / m`` times as large in expectation, and the pass has ``m / n`` of
    the steps.) When the share set by `set_progress` reaches ``delta``, a full pass begins at once.
    Nothing is skipped after that.

    Every example has a positive chance in every pass.

    Deviations: examples are skipped independently, as in the paper's text; its code skips exactly
    ``int(ratio * count)`` of them. Examples never seen are never skipped and do not count in the
    mean; its code gives them a score of 3. A batch that a pass cannot fill is completed from the
    next. Planning a pass waits for the device once.

    Source: Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
    ICLR 2024, sections 3.2 and 3.3, and github.com/NUS-HPC-AI-Lab/InfoBatch.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        ratio: Probability of skipping a well-learned example, in [0, 1).
        delta: Share of the budget after which nothing is skipped, in [0, 1].

    Examples:
        >>> from hpo_mab.samplers import InfoBatchSampler
        >>> InfoBatchSampler([0, 1] * 50, batch_size=10, ratio=0.3).draw().shape
        torch.Size([10])
    """

    _tensors = ("_scores",)

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        ratio: float = 0.5,
        delta: float = 0.875,
        **common: Unpack[CommonArguments],
    ) -> None:
        require(0 <= ratio < 1, "ratio", "in [0, 1)", ratio)
        require(0 <= delta <= 1, "delta", "in [0, 1]", delta)
        super().__init__(labels, **common)
        self.ratio = ratio
        self.delta = delta
        self._turn = delta
        self._scores = self._new_table(torch.inf)  # Infinite: never seen.

    def _plan(self) -> Tensor:
        """Positions of a pass in random order; ``+ n`` marks those that get a larger weight."""
        order = super()._plan()
        if self._progress >= self.delta:
            return order
        scores = self._scores[:-1]
        seen = torch.isfinite(scores)
        mean = torch.where(seen, scores, 0.0).sum() / seen.sum().clamp_min(1)
        low = scores < mean
        tickets = torch.rand(self.num_examples, generator=self._generator, device=self.device)
        stays = ~low | (tickets >= self.ratio)
        marked = order + self.num_examples * low[order]
        return marked[stays[order]]

    def _draw(self) -> Draw:
        taken = self._take(self.batch_size)
        positions = taken % self.num_examples
        weights = torch.where(taken >= self.num_examples, 1 / (1 - self.ratio), 1.0)
        return Draw(self._count(positions), weights, positions)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        replace(self._scores, draw.context, losses, keep=torch.isfinite(losses))


class HardMiningSampler(LearningSampler):
    """The examples of highest loss among more candidates than a batch needs.

    A draw takes ``presample * B`` candidates from shuffled passes and keeps the ``B`` of highest
    cross-entropy. This is online hard example mining (Shrivastava et al. 2016), with the loss rule
    of online batch selection (Loshchilov & Hutter 2016). Weights are 1: it is biased towards high
    losses on purpose, and wrong labels have high losses. An example is a candidate once a pass and
    may never be drawn.

    Candidates' losses need the model. Set `scorer` to a function from indices, int64 [K], to logits
    [K, C]; the built-in training loop does. A step then costs one more forward pass, of the
    candidates. Without a scorer, a candidate's loss is that of its last visit; candidates never
    seen come first.

    Where ``presample * B`` exceeds the examples, all of them are candidates.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example
    Mining", CVPR 2016; Loshchilov and Hutter, "Online Batch Selection for Faster Training of Neural
    Networks", 2016, arXiv:1511.06343.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        presample: Candidates for each example of the batch, at least 1.

    Attributes:
        scorer: Function from indices to logits, or None.

    Examples:
        >>> from hpo_mab.samplers import HardMiningSampler
        >>> HardMiningSampler([0, 1] * 50, batch_size=10, presample=3).draw().shape
        torch.Size([10])
    """

    asks_network = True
    _tensors = ("_losses",)

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        presample: int = 2,
        **common: Unpack[CommonArguments],
    ) -> None:
        check_integer("presample", presample, 1)
        super().__init__(labels, **common)
        self.scorer: Callable[[Tensor], Tensor] | None = None
        self.presample = presample
        self._losses = self._new_table(torch.inf)  # Infinite: never seen.

    @property
    def num_candidates(self) -> int:
        """Candidates of a draw."""
        return min(self.presample * self.batch_size, self.num_examples)

    def candidates(self) -> Tensor:
        """Candidates of a batch, int64 [num_candidates], among which a `StackedTrainer` chooses.

        No draw waits for losses afterwards; the trainer gives its choice to `count`.
        """
        return self._examples[self._take(self.num_candidates)]

    def count(self, indices: Tensor) -> None:
        """Count examples that were chosen among `candidates`, int64 of any shape."""
        positions = torch.searchsorted(self._examples, indices.flatten().to(self.device))
        self._draws.index_add_(0, positions, torch.ones_like(positions))

    def _draw(self) -> Draw:
        candidates = self._take(self.num_candidates)
        if self.scorer is None:
            losses = self._losses[candidates]
        else:
            logits = self._logits_of(candidates, self.scorer)
            losses = F.cross_entropy(logits, self._targets[candidates], reduction="none")
        # A candidate whose loss is not finite comes first: the loop must see that it diverges.
        losses = losses.nan_to_num(nan=torch.inf)
        positions = candidates[torch.topk(losses, self.batch_size).indices]
        return Draw(self._count(positions), context=positions)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        replace(self._losses, draw.context, losses, keep=torch.isfinite(losses))


def checked_difficulty(difficulty: Tensor | Sequence[float], count: int) -> Tensor:
    """A difficulty for each example, float64 [N] on the CPU; NaN becomes the mean.

    Args:
        difficulty: A higher number is harder, [N]; NaN where not known.
        count: Number of examples, ``N``.
    """
    if isinstance(difficulty, np.ndarray):
        difficulty = np.ascontiguousarray(difficulty)  # torch refuses a reversed array.
    values = torch.as_tensor(difficulty, dtype=torch.float64, device="cpu")
    if values.shape != (count,):
        raise ArgumentError(
            f"difficulty must be one number an example, [{count}], got {list(values.shape)}."
        )
    if bool(values.isinf().any()):
        raise ArgumentError("difficulty must be finite, or NaN where it is not known.")
    return values.nan_to_num(nan=float(values.nanmean().nan_to_num(0.0)))


def easiest(difficulty: Tensor, labels: Tensor, *, share: float) -> Tensor:
    """The easiest examples of each class, at least one of each.

    Args:
        difficulty: Float [N].
        labels: Class of each example, int64 [N].
        share: Share of each class, in [0, 1].

    Returns:
        Their positions, int64, ascending.
    """
    # By class, and by difficulty within each class. An example's rank within its class is then its
    # position minus that of the first of its class.
    order = torch.argsort(difficulty, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    _, of_class, counts = torch.unique(labels[order], return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    ranks = torch.arange(len(order), device=order.device) - starts[of_class]
    wanted = (share * counts.double()).round().clamp_min(1)
    return order[ranks < wanted[of_class]].sort().values


class CurriculumSampler(UniformSampler):
    """Shuffled passes over the easiest examples first, over all of them later.

    Until `set_progress` gets a share of at least ``end``, passes hold the easiest share ``start``
    of each class; after that they hold all examples. A loop that never calls it stays with the
    easiest. The hardest share ``trim`` of each class is always left out. This is curriculum
    learning with single-step pacing (Bengio et al. 2009; Hacohen & Weinshall 2019), with a
    difficulty that earlier trainings have measured. With ``start = 1`` it is training on a trimmed
    loss (Shen & Sanghavi 2019) with a constant trim.

    If a part is smaller than a batch, the next larger one is used: all but the hardest, or all.

    Without a ``difficulty`` it draws exactly as `UniformSampler`. With ``hpo-mab run`` the study's
    record of examples holds the difficulty. The first trials, at least four, measure it and are
    trained without it. It never changes afterwards, so that a trial can be replayed.

    It is biased on purpose: examples that are left out are never drawn. Whether that helps depends
    on data and budget, see ``studies/examples``.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        start: Share of each class that is drawn at first, in (0, 1].
        end: Share of the budget after which all are drawn, in [0, 1].
        trim: Share of the hardest of each class that is never drawn, in [0, 1).
        difficulty: A higher number is harder, float [N]; NaN where not known; infinities raise.
            None: not known for any example.

    Examples:
        >>> from hpo_mab.samplers import CurriculumSampler
        >>> sampler = CurriculumSampler([0] * 8, batch_size=4, start=0.5, difficulty=range(8))
        >>> sorted(sampler.draw().tolist())  # the easiest half
        [0, 1, 2, 3]
        >>> sampler.set_progress(0.5)
        >>> sorted(index for batch in sampler for index in batch)
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    record_column: ClassVar[str | None] = "loss"

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        start: float = 0.6,
        end: float = 0.5,
        trim: float = 0.0,
        difficulty: Tensor | Sequence[float] | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        require(0 < start <= 1, "start", "in (0, 1]", start)
        require(0 <= end <= 1, "end", "in [0, 1]", end)
        require(0 <= trim < 1, "trim", "in [0, 1)", trim)
        super().__init__(labels, **common)
        self.start = start
        self.end = end
        self.trim = trim
        own = self.examples
        self._easy = self._examples
        if difficulty is not None:
            known = checked_difficulty(difficulty, len(self.labels))[own]
            parts = [own]
            for share in (1 - trim, min(start, 1 - trim)):
                part = own[easiest(known, self.labels[own], share=share)]
                # A batch must hold no example twice, so a part needs at least a batch of them.
                parts.append(part if len(part) >= self.batch_size else parts[-1])
            _, self._examples, self._easy = (part.to(self.device) for part in parts)
        self._turn = end if len(self._easy) < len(self._examples) else 0.0

    def _plan(self) -> Tensor:
        examples = self._easy if self._progress < self.end else self._examples
        order = torch.randperm(len(examples), generator=self._generator, device=self.device)
        return examples[order]
