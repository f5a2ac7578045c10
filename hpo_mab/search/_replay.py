"""A recorded trial trained again, to compare it with its record and to keep its network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpo_mab._attributes import STACK_SLOTS_KEY
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.data import ImageSplits
from hpo_mab.models import network_maker
from hpo_mab.search._confirm import candidates_of, stored_repeats
from hpo_mab.search._stored import reopen, train_stored_trial
from hpo_mab.storage import Storage, TrialRun, open_study, read_run
from hpo_mab.training import Evaluation, TrainingDiverged
from hpo_mab.training._average import python_numbers, set_numbers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trial's learning curve and that of its replay.

    Attributes:
        trial: The recorded trial.
        curve: The replayed curve, as long as the recorded one.
        network: The network as it was evaluated last, for ``torch.save``; see `load_network`.
            Empty if the replay diverged.
    """

    trial: TrialRun
    curve: tuple[Evaluation, ...]
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def is_identical(self) -> bool:
        """Whether every value but the seconds is the same, bit for bit."""
        recorded, replayed = (
            [dataclasses.replace(each, seconds=0.0, sampler_seconds=0.0) for each in curve]
            for curve in (self.trial.curve, self.curve)
        )
        return recorded == replayed

    @property
    def slots(self) -> int | None:
        """Slots of the stack that the trial was trained in; None if it was trained alone.

        A replay trains alone: it adds in another order, and ``mab`` draws other batches.
        """
        slots = self.trial.attrs.get(STACK_SLOTS_KEY)
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
        number: The trial's number; None takes the best, as ``best`` does on the command line: that
            of the highest accuracy, see `Confirmation`.
        device: Where to train; None takes the definition's device.
        data_root: Folder of the data here; None takes the definition's.

    Raises:
        ArgumentError: The trial has no curve, or no trial is complete.
        StorageError: The study was not made by ``hpo-mab``, or the data here differ from its own.
        UnknownNameError: There is no such study, or it has no such trial.
    """
    trial = _recorded_trial(storage, name, number)
    spec, objective = reopen(storage, name, device=device, data_root=data_root)
    with train_stored_trial(objective, trial) as training:
        curve = tuple(_first_evaluations(len(trial.curve), training))
        if len(curve) < len(trial.curve):
            return Replay(trial=trial, curve=curve)
        weights, numbers = training.network_state(), python_numbers(training.model)
    network = {
        "name": spec.model.name,
        "options": dict(objective.configuration_of(trial.params, trial.attrs).model),
        "weights": weights,
        "numbers": numbers,
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
        set_numbers(made, saved.get("numbers", {}))
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).strip().replace("\n", " ")
        raise ArgumentError(
            f"Network '{saved['name']}' here differs from the one in '{path}': {reason}"
        ) from None
    return made.eval()


def _recorded_trial(storage: Storage, name: str, number: int | None) -> TrialRun:
    run = read_run(storage, name)
    if number is None:
        repeats = stored_repeats(open_study(storage, name).user_attrs)
        number = candidates_of(run, repeats)[0].trial.number
    trials = {trial.number: trial for trial in run.trials}
    if number not in trials:
        raise UnknownNameError("trial", str(number), map(str, trials))
    if not trials[number].curve:
        known = [str(each) for each, trial in trials.items() if trial.curve]
        raise ArgumentError(
            f"Trial {number} of '{name}' has no learning curve to compare with; trials that have "
            f"one: {', '.join(known[:20]) or 'none'}."
        )
    return trials[number]


def _first_evaluations(count: int, evaluations: Iterator[Evaluation]) -> Iterator[Evaluation]:
    try:
        # `range` first: zip then takes no evaluation more, which would train further.
        for _, evaluation in zip(range(count), evaluations, strict=False):
            yield evaluation
    except TrainingDiverged:
        return
