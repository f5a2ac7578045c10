"""Checkpoints: a trial that was cut off continues where it was saved."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import torch

from hpo_mab._errors import HpoMabWarning, failure_reason
from hpo_mab._plan import Place, Plan, slot_of
from hpo_mab.pruners import PromotionPruner
from hpo_mab.storage._open import STORAGE_ERRORS

if TYPE_CHECKING:
    from hpo_mab.search._trial_record import TrialRecord

# A trial has one file, `<study>-<slot>.pt`, replaced from time to time and removed when its slot
# has its result. It is read as tensors and plain values only, never as a pickle that could run
# code.

#: Version of the files.
_VERSION = 5


class Checkpoints:
    """The checkpoints of studies, in a folder that is made when the first is written.

    Args:
        folder: Where they are. Workers on several machines need a folder that all of them reach. A
            trial whose file is not there begins at zero; a complete one does not continue.
        seconds: A trial is saved at the first evaluation this long after its last save; 0 saves
            none.
    """

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds

    def path(self, study: optuna.Study, place: Place) -> Path:
        """The file of a slot, or of a slot's twin."""
        return self.folder / f"{_file_stem(_study_key(study), place)}.pt"

    def sweep(self, study: optuna.Study) -> None:
        """Remove the files of slots that have their result or are given up.

        If the database does not answer, the files stay until the next call.
        """
        # Listed first: a slot that is begun afterwards has no file in the list.
        with contextlib.suppress(OSError, *STORAGE_ERRORS):
            found = list(self.folder.glob("*.pt*"))
            if not found:
                return
            key = _study_key(study)
            places = Plan.of(study).unsettled() | _promotable(study)
            kept = {_file_stem(key, place) for place in places}
            for path in found:
                # A temporary file of a killed writer begins with the name of the final file.
                name = path.name.partition(".pt")[0]
                if name.startswith(key) and name not in kept:
                    with contextlib.suppress(OSError):  # It may be another user's.
                        path.unlink()


def _promotable(study: optuna.Study) -> set[Place]:
    """Slots of the paused trials that may yet be continued."""
    pruner = study.pruner
    if not isinstance(pruner, PromotionPruner):
        return set()
    return {(slot_of(study, trial), "") for trial in pruner.worth_keeping(study)}


class TrialCheckpoint:
    """The checkpoint of one trial, for one attempt at it.

    ``identity`` returns what must be equal in the attempt that writes and the one that reads. It is
    called only if there is something to write or read.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        study: optuna.Study,
        place: Place,
        *,
        identity: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._checkpoints = checkpoints
        self._study = study
        self._place = place
        self._identity = identity
        self._saved = time.monotonic()

    def load(self) -> Mapping[str, Any] | None:
        """The state that an earlier attempt has saved; None if there is none of this trial."""
        path = self._checkpoints.path(self._study, self._place)
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["identity"] == self._whole_identity():
                return dict(saved["state"])
            why = "is of another trial, definition, version or kind of device"
        except FileNotFoundError:
            return None
        except Exception as error:  # torch raises errors of many kinds for a broken file.
            why = f"cannot be read ({type(error).__name__})"
        warn_of_checkpoint(f"The checkpoint {path} {why}, and is not used.")
        return None

    def save_if_due(
        self,
        record: TrialRecord,
        state: Callable[[], dict[str, Any]],
        *,
        stops: bool = False,
        pruned: bool = False,
    ) -> None:
        """Save a training after an evaluation: now and then, and where it stops but may continue.

        The training ``stops`` if it has ended or is pruned. The record is written first, because a
        continuation counts from the stored curve.
        """
        is_late = time.monotonic() - self._saved > self._checkpoints.seconds
        if (stops and self._may_continue(pruned=pruned)) or (is_late and not stops):
            record.flush()
            self.save(state)

    def save(self, state: Callable[[], dict[str, Any]]) -> None:
        """Replace the saved state by that of ``state()``, all of it or nothing."""
        path = self._checkpoints.path(self._study, self._place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, {"identity": self._whole_identity(), "state": state()})
        except Exception as error:  # A full disk, no permission, a network that cannot be stored.
            warn_of_checkpoint(f"The checkpoint {path} cannot be written: {failure_reason(error)}")
        # Also after an error: it must not be tried again at every evaluation.
        self._saved = time.monotonic()

    def _may_continue(self, *, pruned: bool) -> bool:
        """Whether a training that was pruned, or has ended, may be continued."""
        pruner = self._study.pruner
        return isinstance(pruner, PromotionPruner) and (pruned or pruner.unlimited)

    def _whole_identity(self) -> dict[str, Any]:
        slot, twin = self._place
        whose = {"study": self._study.study_name, "slot": slot, "twin": twin}
        return {"version": _VERSION, **whose, **self._identity()}


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file under another name first: a process that is killed leaves the last one whole."""
    # Not `tempfile`, whose files only their owner may read: workers of others continue the trial.
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with scratch.open("xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _file_stem(key: str, place: Place) -> str:
    slot, twin = place
    return f"{key}-{slot}{f'-{twin}' if twin else ''}"


def _study_key(study: optuna.Study) -> str:
    """A digest of a study's name and start; only its copies (`hpo-mab copy`) share it."""
    first = study.get_trials(deepcopy=False)[0].datetime_start
    # Optuna's times are local ones, and machines may differ in their time zone.
    moment = first and first.astimezone(datetime.UTC).replace(tzinfo=None)
    text = f"{study.study_name}\x1f{moment}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def warn_of_checkpoint(message: str) -> None:
    """Warn that a checkpoint cannot be written or used."""
    warnings.warn(message, HpoMabWarning, stacklevel=3)


def warn_of_misfit(error: Exception) -> None:
    """Warn that the state of a checkpoint does not fit its training."""
    warn_of_checkpoint(
        f"A checkpoint does not fit its trial, and is not used: {failure_reason(error)}. "
        "One saved in a slot fits only a slot; one of a trial trained alone fits only such a trial."
    )
