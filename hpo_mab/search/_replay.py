"""Training a recorded trial again, alone, to see whether it comes out the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.search._join import stored_objective, stored_spec
from hpo_mab.search._recorded import train_recorded
from hpo_mab.storage import Definition, Storage, TrialRun, open_study, read_run
from hpo_mab.training import Evaluation, TrainingDiverged

# Clocks differ between two runs of anything.
_TIMES = ("seconds", "sampler_seconds")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trial's learning curve beside that of its replay.

    Attributes:
        trial: The recorded trial.
        curve: The replayed curve, as long as the recorded one.
    """

    trial: TrialRun
    curve: tuple[Evaluation, ...]

    @property
    def is_identical(self) -> bool:
        """Whether every value but the seconds is the same, bit for bit."""
        return [_timeless(e) for e in self.trial.curve] == [_timeless(e) for e in self.curve]

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
    number: int,
    *,
    device: str | None = None,
    data_root: str | None = None,
) -> Replay:
    """Train a recorded trial again from its record alone, as far as its curve goes.

    Args:
        storage: The database.
        name: Optuna's study name.
        number: The trial's number.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.

    Raises:
        ArgumentError: The study has no such trial, or it has no curve.
        StorageError: The study was not made by this product, or its data are others here.
        UnknownNameError: There is no such study.
    """
    trial = _recorded(storage, name, number)
    definition = Definition.load(open_study(storage, name))
    spec = stored_spec(definition, device=device, data_root=data_root)
    objective = stored_objective(definition, spec)
    with train_recorded(objective, trial) as run:
        curve = tuple(_first(len(trial.curve), run.evaluations))
    return Replay(trial=trial, curve=curve)


def _recorded(storage: Storage, name: str, number: int) -> TrialRun:
    trials = {trial.number: trial for trial in read_run(storage, name).trials}
    if number not in trials:
        raise UnknownNameError("trial", str(number), map(str, trials))
    if not trials[number].curve:
        told = ", ".join(str(known) for known, trial in trials.items() if trial.curve)[:80]
        raise ArgumentError(
            f"Trial {number} of '{name}' has no learning curve to compare with; "
            + (f"trials that have one: {told}." if told else "no trial of the study has one.")
        )
    return trials[number]


def _first(count: int, evaluations: Iterator[Evaluation]) -> Iterator[Evaluation]:
    try:
        for _, evaluation in zip(range(count), evaluations, strict=False):
            yield evaluation
    except TrainingDiverged:
        return


def _timeless(evaluation: Evaluation) -> dict[str, float | int | None]:
    return {k: v for k, v in dataclasses.asdict(evaluation).items() if k not in _TIMES}
