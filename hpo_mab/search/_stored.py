"""A stored study: its objective, a trial trained again, what its trials learned of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hpo_mab._errors import ArgumentError, StorageError
from hpo_mab._examples import ExampleRecord, labels_digest
from hpo_mab._plan import trial_seed
from hpo_mab.data import Exclusion, ImageSplits
from hpo_mab.search._definition import Slots, StudySpec
from hpo_mab.search._load import make_spec
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.storage import Definition, Storage, TrialRun, open_study
from hpo_mab.storage._optuna import id_of
from hpo_mab.training import Budget, Training


def stored_spec(
    definition: Definition,
    *,
    device: str | None = None,
    data_root: str | None = None,
    slots: Slots | None = None,
) -> StudySpec:
    """The spec a study was made from, with what may differ on this machine."""
    raw: dict[str, Any] = dict(definition.spec)
    if device is not None:
        raw["training"] = {**raw["training"], "device": device}
    if slots is not None:
        raw["training"] = {**raw["training"], "slots": slots}
    if data_root is not None:
        raw["data"] = {**raw["data"], "root": data_root}
    return make_spec(raw)


def _other_data(spec: StudySpec, difference: str = "") -> StorageError:
    what = f" ({difference})" if difference else ""
    return StorageError(
        f"The study was made on other data than '{spec.data.name}' is here{what}; check "
        "--data-root."
    )


def reopen(
    storage: Storage,
    name: str,
    *,
    device: str | None,
    data_root: str | None,
    slots: Slots | None = None,
) -> tuple[StudySpec, TrainingObjective]:
    """Definition and objective of a stored study, its data loaded.

    Args:
        storage: The database.
        name: Optuna's study name.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.
        slots: Trials at the same time on a CUDA device; None takes the definition's.

    Raises:
        StorageError: The data set here is another than the study's.
    """
    study = open_study(storage, name)
    definition = Definition.load(study)
    spec = stored_spec(definition, device=device, data_root=data_root, slots=slots)
    objective = make_objective(spec, load_splits(spec))
    difference = definition.data_difference(objective.workload.num_examples, objective.data)
    if difference:
        raise _other_data(spec, difference)
    objective.workload.known = storage.examples.frozen(id_of(study))
    return spec, objective


def train_recorded(
    objective: TrainingObjective,
    trial: TrialRun,
    *,
    seed: int | None = None,
    sampler: str | None = None,
    final: Budget | None = None,
    evaluations: int | None = None,
) -> AbstractContextManager[Training]:
    """Train a recorded trial's configuration again, from the start; see `Workload.training`.

    Args:
        objective: The objective of the trial's study.
        trial: Whose parameters to use.
        seed: Seed of the training; None takes the trial's own.
        sampler: Batch sampler with its default knobs; None takes the trial's own.
        final: Another budget than the trial's, evaluated at its end only.
        evaluations: Evaluations in a budget; None takes the trial's.
    """
    configuration = objective.recorded(trial.params, trial.attrs)
    if sampler is not None:
        configuration = configuration.with_sampler(sampler)
    if seed is None:
        seed = trial_seed(objective.seed, trial.slot)
    budgets = 1 if final else trial.budgets
    return objective.workload.training(
        configuration, seed=seed, final=final, budgets=budgets, evaluations=evaluations
    )


# What trials learned about the training examples: suspicious labels and others.

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
        """Read a study's record and load its data.

        Args:
            storage: The database.
            name: Optuna's study name.
            data_root: Folder of the data here; None takes the definition's.

        Raises:
            ArgumentError: The data are no images.
            DataError: The data are not there.
            StorageError: The study was not made by this product, has no record, or its data are
                others here.
            UnknownNameError: There is no such study.
        """
        study = open_study(storage, name)
        definition = Definition.load(study)
        record = storage.examples.load(id_of(study))
        if record is None:
            raise StorageError(
                f"'{name}' has no record of examples: no trial has ended since it was begun with "
                "this version, or training.examples is off."
            )
        spec = stored_spec(definition, data_root=data_root)
        splits = load_splits(spec)
        if not isinstance(splits, ImageSplits):
            raise ArgumentError(
                f"study '{name}' must be on a data set of images; '{spec.data.name}' is not one."
            )
        if labels_digest(splits.train.labels.numpy()) != record.labels:
            raise _other_data(spec)
        excluded = Exclusion.load(spec.data.exclude) if spec.data.exclude else None
        return cls(name=name, data=spec.data.name, record=record, splits=splits, excluded=excluded)

    def top(self, ranking: str, count: int) -> list[Example]:
        """The first examples of a ranking, the highest score first.

        Args:
            ranking: One of `RANKINGS`.
            count: How many; fewer where fewer were visited.
        """
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

        Raises:
            ArgumentError: Fewer were visited.
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
        return Exclusion(labels=self.splits.source, indices=indices, data=self.data)

    def _examples(self, positions: NDArray[np.int64], scores: NDArray[np.float64]) -> list[Example]:
        record, splits = self.record, self.splits
        classes = splits.train.classes
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
                predicted=_class_name(classes, -1 if preferred is None else preferred[position]),
                score=float(scores[position]),
                visits=int(record.counts.visits[position]),
                file=splits.names[index] if splits.names else "",
            )
            for position, row, index, label in zip(positions, rows, indices, labels, strict=True)
        ]

    def picture(self, example: Example) -> torch.Tensor:
        """Pixels of an example, uint8 [channels, height, width]."""
        return self.splits.train.gather(torch.tensor([example.row]))[0]


def _class_name(classes: Sequence[str], number: Any) -> str:
    return classes[number] if number >= 0 else ""
