"""What a study's trials learned about the training examples: suspicious labels and others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab._examples import ExampleRecord, labels_digest
from hpo_mab.data import DataIdentity, ImageSplits
from hpo_mab.data._splits import Exclusion, names_digest
from hpo_mab.search._prepare import load_splits
from hpo_mab.search._stored import other_data, stored_spec
from hpo_mab.storage import Storage, open_study
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._optuna import id_of

#: The rankings of examples, with what the first examples of each are.
RANKINGS: Mapping[str, str] = {
    "suspicious": "most likely mislabelled",
    "hard": "hardest",
    "ambiguous": "most ambiguous",
}
#: What the score of each ranking is.
SCORES: Mapping[str, str] = {
    "suspicious": "another class's logit minus the label's, on average",
    "hard": "the loss divided by the average loss, on average",
    "ambiguous": "standard deviation of the label's probability",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A training example in a ranking.

    Attributes:
        index: Its place among the training images of the data set.
        row: Its place in the study's training part.
        label: Name of its class.
        predicted: Name of the class that networks predicted most often; empty if not known.
        score: What it is ranked by.
        visits: How often trials drew it.
        file: Its file, where the data come from files of the user's; or empty.
    """

    index: int
    row: int
    label: str
    predicted: str
    score: float
    visits: int
    file: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyExamples:
    """A study's record of examples with its data.

    Attributes:
        name: The study's name.
        data: Name of the data set.
        record: What its trials saw.
        splits: Its data, on the CPU.
        excluded: What its definition leaves out of them; None leaves out nothing.
    """

    name: str
    data: str
    record: ExampleRecord
    splits: ImageSplits
    excluded: Exclusion | None = None

    @classmethod
    def read(cls, storage: Storage, name: str, *, data_root: str | None = None) -> Self:
        """Read a study's record and load its data; a ``data_root`` of None is the definition's."""
        study = open_study(storage, name)
        definition = StoredDefinition.load(study)
        record = storage.examples.load(id_of(study))
        if record is None:
            raise StorageError(
                f"'{name}' has no record of examples: none of its trials has ended yet, or "
                "training.examples is off."
            )
        spec = stored_spec(study, data_root=data_root)
        splits = load_splits(spec)
        if not isinstance(splits, ImageSplits):
            raise ArgumentError(
                f"study '{name}' must be on a data set of images; '{spec.data.name}' is not one."
            )
        splits = splits.to("cpu")
        difference = definition.data_difference(len(splits.train), DataIdentity.of(splits))
        if difference or labels_digest(splits.train.labels.numpy()) != record.labels:
            raise other_data(spec, difference)
        excluded = Exclusion.load(spec.data.exclude) if spec.data.exclude else None
        return cls(name=name, data=spec.data.name, record=record, splits=splits, excluded=excluded)

    def top(self, ranking: str, count: int) -> list[Example]:
        """The first of one of `RANKINGS`, highest score first; fewer where fewer were visited."""
        scores = self.scores(ranking)
        # Examples that no trial drew have no score.
        visited = np.flatnonzero(self.record.counts.visits > 0)
        order = visited[np.argsort(-scores[visited], kind="stable")]
        return self._examples(order[:count], scores)

    def scores(self, ranking: str) -> NDArray[np.float64]:
        """Score of each recorded example, [n]."""
        score = {
            "suspicious": self.record.suspicion,
            "hard": self.record.hardness,
            "ambiguous": self.record.ambiguity,
        }[ranking]
        return score()

    def exclusion(self, count: int) -> Exclusion:
        """The ``count`` most suspicious examples as a list that a definition can exclude.

        The list also has the examples that the study's own definition excludes. Of each class the
        last example stays.
        """
        found = self.top("suspicious", count)
        if count < 1 or len(found) < count:
            most = int((self.record.counts.visits > 0).sum())
            raise ArgumentError(
                f"--drop must be in [1, {most}], the examples that trials drew, got {count}."
            )
        before = () if self.excluded is None else self.excluded.indices
        labels = self.splits.train.labels.numpy()
        left = np.bincount(labels)
        dropped = set(before)
        for example in found:
            # Without any example of a class the list would be refused.
            if left[labels[example.row]] > 1:
                left[labels[example.row]] -= 1
                dropped.add(example.index)
        indices = tuple(sorted(dropped))
        return Exclusion(
            labels=self.splits.source,
            indices=indices,
            data=self.data,
            files=names_digest(self.splits.names),
        )

    def _examples(self, positions: NDArray[np.int64], scores: NDArray[np.float64]) -> list[Example]:
        record, splits = self.record, self.splits
        # The class -1 has no name.
        classes = (*splits.train.classes, "")
        # `positions` are places in the record, which may be a sample; `rows` in the training part;
        # `indices` in the data set.
        rows = record.examples[positions]
        indices = rows if splits.positions is None else splits.positions.numpy()[rows]
        labels = splits.train.labels.numpy()[rows]
        preferred = record.preferred()
        return [
            Example(
                index=int(index),
                row=int(row),
                label=classes[label],
                predicted=classes[-1 if preferred is None else preferred[position]],
                score=float(scores[position]),
                visits=int(record.counts.visits[position]),
                file=splits.names[index] if splits.names else "",
            )
            for position, row, index, label in zip(positions, rows, indices, labels, strict=True)
        ]

    def picture(self, example: Example) -> torch.Tensor:
        """Pixels of an example, uint8 [channels, height, width]."""
        return self.splits.train.gather(torch.tensor([example.row]))[0]
