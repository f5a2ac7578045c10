"""Sums over the visits of each example in trainings: losses, margins, predicted classes.

NumPy only, so that a database is read without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Self

import numpy as np
from numpy.typing import NDArray

#: Sums kept for each example, all over visits with a finite loss: their number; those whose loss
#: reached the moving average of the loss; the loss divided by that average; the margin, which is
#: the label's logit minus the highest of another class; the probability of the label, and its
#: square.
COLUMNS = ("visits", "high", "loss", "margin", "confidence", "squares")

#: Margins are clamped to this size in both directions.
MOST_MARGIN = 20.0

#: Most examples with sums. Of a larger data set, a fixed random sample of this size has them.
MOST_EXAMPLES = 10**6
#: Most cells of the table of predicted classes, examples times classes. A larger one is not kept.
MOST_CELLS = 2**24


def recorded_examples(total: int) -> NDArray[np.int64] | None:
    """The examples of which sums are kept, ascending; None for all.

    It depends on ``total``, the training examples, alone, so that all workers keep the same.
    """
    if total <= MOST_EXAMPLES:
        return None
    chosen = np.random.default_rng(total).choice(total, MOST_EXAMPLES, replace=False)
    return np.sort(chosen).astype(np.int64)


def keeps_predictions(examples: int, classes: int) -> bool:
    """Whether the classes that networks predict are counted."""
    return examples * classes <= MOST_CELLS


def labels_digest(labels: NDArray[np.int64]) -> str:
    """Digest of the label of each example, [N]: sums are for these examples only."""
    return hashlib.blake2b(np.ascontiguousarray(labels).data, digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleCounts:
    """Sums over the visits of each recorded example.

    Attributes:
        trials: Number of trials whose visits are summed.
        sums: A column for each of `COLUMNS`, float32 [n, 6].
        predictions: How often each class had the highest output, uint32 [n, C]; None where
            `keeps_predictions` is false.
    """

    trials: int
    sums: NDArray[np.float32]
    predictions: NDArray[np.uint32] | None

    def __add__(self, other: Self) -> Self:
        """The sums of both.

        Raises:
            ValueError: They are of other numbers of examples or classes.
        """
        kept = self.predictions is not None and other.predictions is not None
        return dataclasses.replace(
            self,
            trials=self.trials + other.trials,
            # Added in double precision and rounded once. Otherwise sums over thousands of trials
            # would depend on the order of additions.
            sums=(self.sums.astype(np.float64) + other.sums).astype(np.float32),
            predictions=self.predictions + other.predictions if kept else None,  # type: ignore[operator]
        )

    def mean(self, column: str) -> NDArray[np.float64]:
        """Mean over visits of one of `COLUMNS`, [n]; NaN for an example never visited."""
        values = self.sums[:, COLUMNS.index(column)].astype(np.float64)
        means: NDArray[np.float64] = np.full(len(values), np.nan)
        np.divide(values, self.visits, out=means, where=self.visits > 0)
        return means

    @property
    def visits(self) -> NDArray[np.float64]:
        """Visits of each example, [n]."""
        return self.sums[:, 0].astype(np.float64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleRecord:
    """The sums of a study: those of its training examples over all trials.

    Attributes:
        total: Training examples of the study.
        labels: Digest of their labels, see `labels_digest`.
        counts: Sums of the recorded examples.
    """

    total: int
    labels: str
    counts: ExampleCounts

    @property
    def trials(self) -> int:
        """Trials that have added to it."""
        return self.counts.trials

    @property
    def examples(self) -> NDArray[np.int64]:
        """The recorded examples, positions among the training examples, [n]."""
        chosen = recorded_examples(self.total)
        return np.arange(self.total) if chosen is None else chosen

    @property
    def suspicious(self) -> int:
        """Recorded examples for which another class's logit exceeds the label's, on average."""
        return int((self.suspicion() > 0).sum())

    def summary(self) -> str:
        """How much was recorded, in two sentences."""
        count = f"{self.total:,}"
        if self.total > MOST_EXAMPLES:
            count = f"a fixed random sample of {len(self.examples):,} of {count}"
        return (
            f"{self.trials:,} trial{'' if self.trials == 1 else 's'} saw {count} training examples "
            f"{self.counts.visits.sum():,.0f} times. For {self.suspicious:,} examples another "
            "class's logit exceeds the label's, on average."
        )

    def suspicion(self) -> NDArray[np.float64]:
        """How likely each recorded example is to be mislabelled: the higher, the likelier.

        The negated mean margin over all visits of all trials, in logits (area under the margin,
        Pleiss et al. 2020). Above 0 the label's logit was below another class's, on average.
        Examples never visited have the lowest, `-MOST_MARGIN`.
        """
        return np.nan_to_num(-self.counts.mean("margin"), nan=-MOST_MARGIN)

    def hardness(self) -> NDArray[np.float64]:
        """Mean loss relative to the moving average of the loss; 0 for examples never visited."""
        return np.nan_to_num(self.counts.mean("loss"), nan=0.0)

    def ambiguity(self) -> NDArray[np.float64]:
        """Standard deviation over visits of the probability of the label, in [0, 0.5].

        The variability of dataset cartography (Swayamdipta et al. 2020). Examples visited less
        than twice have 0.
        """
        variance = self.counts.mean("squares") - self.counts.mean("confidence") ** 2
        seen = self.counts.visits > 1
        return np.sqrt(np.where(seen, np.maximum(np.nan_to_num(variance), 0.0), 0.0))

    def preferred(self) -> NDArray[np.int64] | None:
        """The class that networks predicted most often, [n]; -1 where none; None if not kept."""
        counts = self.counts.predictions
        if counts is None:
            return None
        return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)
