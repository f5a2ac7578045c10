"""Checkpoints of long trials: one that was cut off need not be trained from the start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import optuna
import torch

from hpo_mab._attributes import PROMOTES_KEY, trial_attributes
from hpo_mab.pruners import TopKPruner
from hpo_mab.search._plan import Attempt, Place, Plan, slot_of
from hpo_mab.storage import STORAGE_ERRORS, Storage, files_folder

# A trial has one file, `<study>-<slot>.pt`, written anew from time to time and removed when its
# slot has its result. It is read as tensors and plain values only, never as a pickle that could run
# code.

_VERSION = 1


class CheckpointWarning(UserWarning):
    """A checkpoint that cannot be written, or not be used; the trial is trained all the same."""


class HasState(Protocol):
    """A training that can be saved: `hpo_mab.training.Training`, or one in a slot."""

    @property
    def has_state(self) -> bool:
        """Whether there is a state to save now."""

    def state_dict(self) -> dict[str, Any]:
        """The state, safe for ``weights_only`` loading."""


class Checkpoints:
    """The checkpoints of studies, in a folder that is made when the first is written.

    Args:
        folder: Where they are. Workers on several machines need one that all of them see; a file
            that is not there is a trial that begins at zero.
        seconds: A trial is saved at the first evaluation after so long without, above 0.
    """

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds

    @classmethod
    def of(cls, storage: Storage, *, seconds: float) -> Self | None:
        """Those of a storage, see `files_folder`; None if ``seconds`` is 0."""
        return cls(files_folder(storage, "checkpoints"), seconds=seconds) if seconds else None

    def path(self, study: optuna.Study, slot: Place) -> Path:
        """The file of a slot, or of a slot's twin."""
        return self.folder / f"{_name(_study_key(study), slot)}.pt"

    def sweep(self, study: optuna.Study) -> None:
        """Remove the files of slots that have their result or are given up.

        Args:
            study: The study; a database that is away leaves them for the next time.
        """
        # Listed first: a slot that is begun afterwards has no file in the list.
        with contextlib.suppress(OSError, *STORAGE_ERRORS):
            found = list(self.folder.glob("*.pt*"))
            if not found:
                return
            key = _study_key(study)
            places = Plan(study.get_trials(deepcopy=False)).unsettled() | _promotable(study)
            kept = {_name(key, slot) for slot in places}
            for path in found:
                # What a writer that was killed has left is named after the file it was to be.
                name = path.name.partition(".pt")[0]
                if name.startswith(key) and name not in kept:
                    path.unlink(missing_ok=True)


def _promotable(study: optuna.Study) -> set[Place]:
    """Slots of the best stopped trials that may yet be continued."""
    pruner = study.pruner
    if not isinstance(pruner, TopKPruner) or not pruner.resume:
        return set()
    done = set()
    for trial in study.get_trials(deepcopy=False):
        # One that was cut off is tried again, and continues from the same file.
        if trial.state.is_finished() and not Attempt.of(trial).cut_off:
            done.add(trial_attributes(trial).get(PROMOTES_KEY))
    best = [trial for trial in pruner.stopped(study) if trial.number not in done][: pruner.k]
    return {(slot_of(study, trial), "") for trial in best}


class SlotCheckpoint:
    """The checkpoint of one trial, as one attempt at it sees it.

    Args:
        checkpoints: Where it is.
        study: The trial's study.
        slot: The trial's slot, and the batch sampler of its twin.
        identity: Says what must be the same in the attempt that wrote it and the one that reads it;
            asked only if there is anything to write or read.
        clock: Returns seconds.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        study: optuna.Study,
        slot: Place,
        *,
        identity: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints = checkpoints
        self._study = study
        self._slot = slot
        self._identity = identity
        self._clock = clock
        self._saved = clock()

    def load(self) -> Mapping[str, Any] | None:
        """The state an earlier attempt has left; None without one that is this trial's."""
        # A study of short trials has no folder, and asks no more than that.
        if not self._checkpoints.folder.is_dir():
            return None
        path = self._checkpoints.path(self._study, self._slot)
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["identity"] == self._whole_identity():
                return dict(saved["state"])
            why = "is of another trial or another definition"
        except FileNotFoundError:
            return None
        except Exception as error:  # Whatever a broken file makes torch stumble over.
            why = f"cannot be read ({type(error).__name__})"
        warn_of_checkpoint(f"The checkpoint {path} {why}; the trial starts from zero.")
        return None

    def is_due(self, training: HasState) -> bool:
        """Whether it is time to save the training, and possible now."""
        waited = self._clock() - self._saved
        return waited > self._checkpoints.seconds and training.has_state

    def save(self, training: HasState) -> None:
        """Put the training's state in place of the last one, all of it or nothing."""
        path = self._checkpoints.path(self._study, self._slot)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, {"identity": self._whole_identity(), "state": training.state_dict()})
        except Exception as error:  # A full disk, no permission, a network that cannot be stored.
            reason = str(error).strip().partition("\n")[0]
            warn_of_checkpoint(f"The checkpoint {path} cannot be written: {reason}")
        self._saved = self._clock()

    def keeps_stopped(self, training: HasState) -> bool:
        """Whether a training that the pruner has stopped may be continued, and can be saved now."""
        pruner = self._study.pruner
        return isinstance(pruner, TopKPruner) and pruner.resume and training.has_state

    def _whole_identity(self) -> dict[str, Any]:
        slot, twin = self._slot
        whose = {"study": self._study.study_name, "slot": slot, "twin": twin}
        return {"version": _VERSION, **whose, **self._identity()}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    handle, scratch = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _name(key: str, slot: Place) -> str:
    return f"{key}-{slot[0]}{f'-{slot[1]}' if slot[1] else ''}"


def _study_key(study: optuna.Study) -> str:
    """Name of a study that another one of the same name, here or elsewhere, does not have."""
    first = study.get_trials(deepcopy=False)[0].datetime_start
    text = f"{study.study_name}\x1f{first}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def warn_of_checkpoint(message: str) -> None:
    """Say what keeps a checkpoint from being of use."""
    warnings.warn(message, CheckpointWarning, stacklevel=3)


def warn_of_misfit(error: Exception) -> None:
    """Say that a training refused the state of its checkpoint."""
    what = str(error).strip().partition("\n")[0]
    warn_of_checkpoint(f"A checkpoint does not fit its trial, which starts from zero: {what}")
