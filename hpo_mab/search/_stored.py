"""A stored study: its definition's objective, a trial trained again, its record of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpo_mab._attributes import STACK_KEY
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab._examples import ExampleRecord, labels_digest
from hpo_mab._plan import trial_seed
from hpo_mab.data import Exclusion, ImageSplits
from hpo_mab.models import network_maker
from hpo_mab.search._definition import StudySpec
from hpo_mab.search._load import make_spec
from hpo_mab.search._objective import TrainingObjective
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._trial_loop import Slots
from hpo_mab.storage import Definition, Storage, TrialRun, open_study, read_run
from hpo_mab.storage._optuna import id_of
from hpo_mab.training import Budget, Evaluation, Training, TrainingDiverged


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


def stored_objective(definition: Definition, spec: StudySpec) -> TrainingObjective:
    """The objective of a stored study, its data loaded.

    Raises:
        StorageError: The data set here is another than the study's.
    """
    objective = make_objective(spec, load_splits(spec))
    difference = definition.data_difference(objective.workload.num_examples, objective.data)
    if difference:
        raise StorageError(
            f"The study was made on other data than '{spec.data.name}' is here ({difference}); "
            "check --data-root."
        )
    return objective


def reopen(
    storage: Storage, name: str, *, device: str | None, data_root: str | None
) -> tuple[StudySpec, TrainingObjective]:
    """Definition and objective of a stored study, to train its recorded trials again.

    Args:
        storage: The database.
        name: Optuna's study name.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.
    """
    study = open_study(storage, name)
    definition = Definition.load(study)
    spec = stored_spec(definition, device=device, data_root=data_root)
    objective = stored_objective(definition, spec)
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


#: Fields of an evaluation that a replay cannot reproduce.
_TIMES = ("seconds", "sampler_seconds")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trial's learning curve and that of its replay.

    Attributes:
        trial: The recorded trial.
        curve: The replayed curve, as long as the recorded one.
        network: The network as it was evaluated last, for ``torch.save``; see `load_network`.
            Empty if the replay diverged.

    Examples:
        >>> from hpo_mab.search import Replay
        >>> from hpo_mab.storage import TrialRun
        >>> trial = TrialRun(
        ...     number=0, slot=0, state="complete", params={}, value=0.9, paired=False, curve=()
        ... )
        >>> Replay(trial=trial, curve=()).is_identical
        True
    """

    trial: TrialRun
    curve: tuple[Evaluation, ...]
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def is_identical(self) -> bool:
        """Whether every value but the seconds is the same, bit for bit."""
        return [_without_times(e) for e in self.trial.curve] == [
            _without_times(e) for e in self.curve
        ]

    @property
    def slots(self) -> int | None:
        """Slots of the stack that the trial was trained in; None if it was trained alone.

        Alone, sums are taken in another order, and ``mab`` draws other batches.
        """
        slots = self.trial.attrs.get(STACK_KEY)
        return None if slots is None else int(slots)

    @property
    def largest_difference(self) -> float:
        """Largest difference of validation accuracies; infinite where the replay is shorter."""
        if len(self.curve) < len(self.trial.curve):
            return float("inf")
        pairs = zip(self.trial.curve, self.curve, strict=True)
        return max((abs(one.accuracy - other.accuracy) for one, other in pairs), default=0.0)


def replay(
    storage: Storage,
    name: str,
    number: int | None,
    *,
    device: str | None = None,
    data_root: str | None = None,
) -> Replay:
    """Train a recorded trial again from its record alone, as far as its curve goes.

    Args:
        storage: The database.
        name: Optuna's study name.
        number: The trial's number; None takes the best, whose accuracy is the mean of its trainings
            by `confirm`, if there are any.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.

    Raises:
        ArgumentError: The trial has no curve, or no trial is complete.
        StorageError: The study was not made by this product, or its data are others here.
        UnknownNameError: There is no such study, or it has no such trial.
    """
    trial = _recorded_trial(storage, name, number)
    spec, objective = reopen(storage, name, device=device, data_root=data_root)
    with train_recorded(objective, trial) as training:
        curve = tuple(_first_evaluations(len(trial.curve), training))
        if len(curve) < len(trial.curve):
            return Replay(trial=trial, curve=curve)
        weights = training.network_state()
    network = {
        "name": spec.model.name,
        "options": dict(objective.recorded(trial.params, trial.attrs).model),
        "weights": weights,
        "study": name,
        "trial": trial.number,
        "accuracy": curve[-1].accuracy,
        **_inputs_of(objective.workload.data),
    }
    return Replay(trial=trial, curve=curve, network=network)


def _inputs_of(data: Any) -> dict[str, Any]:
    """What a network needs to know of its data, as plain values."""
    found = {"input_shape": list(data.input_shape), "num_classes": data.num_classes}
    if isinstance(data, ImageSplits):
        found |= {"mean": data.mean.cpu(), "std": data.std.cpu()}
        # Names may be NumPy's, which a file could not be loaded with.
        found["classes"] = [str(name) for name in data.train.classes]
    return found


def load_network(path: str | Path) -> nn.Module:
    """A network from a file that ``hpo-mab replay --save`` wrote, on the CPU, in evaluation mode.

    Its inputs are images as ``(pixels / 255 - mean) / std`` [B, channels, height, width], or the
    inputs of your own data set. ``torch.load(path)`` has ``mean`` and ``std`` of each channel, the
    names of the ``classes``, and what the network is made from. A network of your own is imported
    by its name, so load only files that you trust.

    Args:
        path: The file.

    Raises:
        ArgumentError: Another file, or the network's code cannot be imported or has changed.
        OSError: It cannot be read.
        UnknownNameError: No such network.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # For another file torch raises errors of many kinds.
        saved = None
    if not isinstance(saved, dict) or "weights" not in saved or "input_shape" not in saved:
        raise ArgumentError(f"'{path}' is no file of 'hpo-mab replay --save'.")
    shape, classes = tuple(saved["input_shape"]), saved["num_classes"]
    options = dict(saved["options"])
    if saved["name"].startswith("timm:") and "pretrained" in options:
        # Otherwise timm would download weights, which those of the file replace.
        options["pretrained"] = False
    make = network_maker(saved["name"], input_shape=shape, num_classes=classes)
    try:
        made = make(**options)
        made.load_state_dict(saved["weights"])
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise ArgumentError(
            f"Network '{saved['name']}' is another one here than in '{path}': {reason}"
        ) from None
    return made.eval()


def _recorded_trial(storage: Storage, name: str, number: int | None) -> TrialRun:
    run = read_run(storage, name)
    if number is None:
        # Imported here, as it imports this module.
        from hpo_mab.search._confirm import best_candidate

        number = best_candidate(run, open_study(storage, name).user_attrs).trial.number
    trials = {trial.number: trial for trial in run.trials}
    if number not in trials:
        raise UnknownNameError("trial", str(number), map(str, trials))
    if not trials[number].curve:
        known = ", ".join(str(each) for each, trial in trials.items() if trial.curve)[:80] or "none"
        raise ArgumentError(
            f"Trial {number} of '{name}' has no learning curve to compare with; trials that have "
            f"one: {known}."
        )
    return trials[number]


def _first_evaluations(count: int, evaluations: Iterator[Evaluation]) -> Iterator[Evaluation]:
    try:
        # `range` first: zip then takes no evaluation more, which would train further.
        for _, evaluation in zip(range(count), evaluations, strict=False):
            yield evaluation
    except TrainingDiverged:
        return


def _without_times(evaluation: Evaluation) -> dict[str, float | int | None]:
    return {k: v for k, v in dataclasses.asdict(evaluation).items() if k not in _TIMES}


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
        preferred: Name of the class that networks predicted most often; empty if not known.
        score: What it is ranked by.
        visits: How often trials drew it.
        file: Its file, where the data come from files of the user's; or empty.
    """

    index: int
    row: int
    label: str
    preferred: str
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
    """

    name: str
    data: str
    record: ExampleRecord
    splits: ImageSplits

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
            raise StorageError(
                f"The study was made on other data than '{spec.data.name}' is here; check "
                "--data-root."
            )
        return cls(name=name, data=spec.data.name, record=record, splits=splits)

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

        Raises:
            ArgumentError: Fewer were visited.
        """
        found = self.top("suspicious", count)
        if count < 1 or len(found) < count:
            most = int((self.record.counts.visits > 0).sum())
            raise ArgumentError(
                f"--drop must be in [1, {most}], the examples that trials drew, got {count}."
            )
        indices = tuple(sorted(example.index for example in found))
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
                preferred=_class_name(classes, -1 if preferred is None else preferred[position]),
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
