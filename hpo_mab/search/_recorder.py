"""What is kept of a trial while it trains: reports, curve, cost, checkpoint, why it ended.

`follow` records a training of ours, `hpo_mab.TrialReporter` a user's own loop; both by
`TrialRecord`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import optuna
import torch
from optuna.study import StudyDirection

from hpo_mab._attributes import (
    EVALUATION_KEY,
    EXAMPLES_KEY,
    INTERRUPTED_KEY,
    PRUNED_KEY,
    REASON_KEY,
    RESUMED_KEY,
    SECONDS_KEY,
    UNREPORTED_KEY,
)
from hpo_mab._errors import ArgumentError, interruptible, memory_reason
from hpo_mab._plan import Place, Plan, slot_of
from hpo_mab.pruners import AdvantagePruner, PromotionPruner
from hpo_mab.pruners._reasons import reason_of
from hpo_mab.storage import (
    STORAGE_ERRORS,
    CurveStore,
    ExampleWriter,
    Storage,
    files_folder,
)
from hpo_mab.storage._optuna import id_of, storage_of
from hpo_mab.training import Evaluation, Training, TrainingDiverged
from hpo_mab.training._tally import ExampleTally


def check_direction(study: optuna.Study) -> None:
    """Refuse a study that does not maximize the accuracy that its trials report.

    Raises:
        ArgumentError: The study minimizes, or has several objectives.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        given = ", ".join(f"'{direction.name.lower()}'" for direction in study.directions)
        raise ArgumentError(
            "A trial's value is validation accuracy: the study must be created with "
            f"direction='maximize', got {given}."
        )


_TRACEBACK = "Traceback (most recent call last):"


def failure_reason(error: BaseException) -> str:
    """The kind of an error and the first line of its message.

    The message of an error in a data-loading process is that process's traceback. Its last line is
    then the reason. Out-of-memory errors get one format.
    """
    text = f"{type(error).__name__}: {error}".strip()
    out_of_memory = memory_reason(error)
    head, mark, traceback = text.rpartition(_TRACEBACK)
    if mark and "DataLoader worker" in head:
        # Frames are indented; the error itself is the first line that is not.
        errors = [line for line in traceback.splitlines() if line and not line[0].isspace()]
        if errors:
            return f"{out_of_memory or errors[0]} (in a data-loading process)"
    return out_of_memory or text.splitlines()[0]


def store_end(trial: optuna.trial.BaseTrial, error: BaseException) -> None:
    """Store why an error has ended a trial; of a pruned one, the pruner has stored it."""
    if isinstance(error, KeyboardInterrupt):
        trial.set_user_attr(INTERRUPTED_KEY, True)
    elif not isinstance(error, optuna.TrialPruned):
        trial.set_user_attr(REASON_KEY, failure_reason(error))


#: Seconds between writes of a trial's curve.
_CURVE_SECONDS = 5.0


class TrialRecord:
    """Reports a trial's evaluations to Optuna, and writes its curve and cost to the database.

    The curve is written every few seconds: a short trial's is one transaction, a long one's a few.
    A killed trial loses the evaluations since its last write. The first write replaces the curve of
    an earlier attempt at the trial.

    Args:
        trial: Optuna's trial. Nothing is stored of one that is not running.
        curves: Where its learning curve is kept; None keeps none.

    Raises:
        ArgumentError: The curves are those of another database.
    """

    def __init__(self, trial: optuna.trial.BaseTrial, curves: CurveStore | None) -> None:
        self.last: Evaluation | None = None
        #: Seconds of the evaluations that this attempt has made itself; None if not known.
        self.evaluation_seconds: float | None = None
        self._trial = trial
        self._curves: CurveStore | None = None
        if isinstance(trial, optuna.trial.Trial):
            if curves is not None:
                curves.check_holds(trial.study)
            self._curves, self._id = curves, id_of(trial)
        self._waiting: list[Evaluation] = []
        self._is_first = True
        self._written = time.monotonic()

    def add(self, evaluation: Evaluation) -> None:
        """Add an evaluation and report it."""
        self.add_later(evaluation)
        if self.is_due:
            self.flush()

    def add_later(self, evaluation: Evaluation) -> None:
        """Add an evaluation and report it; its point of the curve waits for `flush_all`."""
        self.last = evaluation
        if self._curves is not None:
            self._waiting.append(evaluation)
        self._trial.report(evaluation.accuracy, step=evaluation.index)

    def should_prune(self) -> bool:
        """Whether the study's pruner stops the trial; the reason is then stored with it."""
        pruned = self._trial.should_prune()
        if pruned and isinstance(self._trial, optuna.trial.Trial):
            store_reason(self._trial)
        return pruned

    def diverged(self, error: TrainingDiverged) -> None:
        """Store why the trial diverged, and what it has spent since its last evaluation."""
        self._trial.set_user_attr(REASON_KEY, str(error))
        self._trial.set_user_attr(UNREPORTED_KEY, [error.examples, round(error.seconds, 3)])

    def flush(self) -> None:
        """Write the points of the curve that wait."""
        self.flush_all([self])

    @property
    def is_due(self) -> bool:
        """Whether the last write of the curve was several seconds ago."""
        return time.monotonic() - self._written >= _CURVE_SECONDS

    @staticmethod
    def flush_all(records: Iterable[TrialRecord]) -> None:
        """Write the points that wait of several trials' curves, in one transaction."""
        full = [each for each in records if each._waiting]
        if full and (curves := full[0]._curves) is not None:
            curves.extend([(each._id, each._waiting, each._is_first) for each in full])
        for each in full:
            each._waiting.clear()
            each._is_first = False
            each._written = time.monotonic()

    def close(self) -> None:
        """Write the rest of the curve, and its cost."""
        self.flush()
        if self.last is not None:
            self._trial.set_user_attr(EXAMPLES_KEY, self.last.examples)
            self._trial.set_user_attr(SECONDS_KEY, round(self.last.seconds, 3))
        if self.evaluation_seconds is not None:
            self._trial.set_user_attr(EVALUATION_KEY, round(self.evaluation_seconds, 3))


def store_reason(trial: optuna.trial.Trial) -> None:
    """Store why the study's pruner has stopped a trial, unless the pruner has stored it itself.

    Args:
        trial: A running trial whose ``should_prune()`` was true.
    """
    study, pruner = trial.study, trial.study.pruner
    # It stores every reason with its decision, so there is nothing to look up.
    if isinstance(pruner, AdvantagePruner):
        return
    storage, frozen = storage_of(study), storage_of(study).get_trial(id_of(trial))
    if PRUNED_KEY not in frozen.user_attrs:
        storage.set_trial_user_attr(id_of(trial), PRUNED_KEY, reason_of(pruner, study, frozen))


def follow(
    trial: optuna.trial.Trial,
    training: Training,
    *,
    curves: CurveStore | None,
    checkpoint: SlotCheckpoint | None,
    examples: ExampleWriter | None,
    may_prune: bool,
) -> Evaluation:
    """Train to the end of the budget, or until the pruner stops the trial.

    Evaluations from a checkpoint are reported, stored and judged like all others. So the trial's
    curve is complete, and so are a pruner's records of the trial. How many they are is the trial's
    user attribute `RESUMED_KEY`, so that their cost is not counted twice.

    Args:
        trial: Optuna's trial.
        training: Its training.
        curves: Where learning curves are stored; None keeps none.
        checkpoint: Where long trials are saved; None saves none.
        examples: Takes what the training saw of each example, unless it diverged; None takes
            nothing.
        may_prune: Whether the study's pruner may stop it.

    Returns:
        The last evaluation.

    Raises:
        optuna.TrialPruned: The study's pruner stops the trial.
        TrainingDiverged: A loss is no longer finite.
    """
    if training.resumed_at:
        # Written before the curve: a worker that dies in between has no curve and no cost.
        trial.set_user_attr(RESUMED_KEY, training.resumed_at)
    with contextlib.closing(TrialRecord(trial, curves)) as record:
        while (evaluation := _next_of(training, record)) is not None:
            record.add(evaluation)
            pruned = may_prune and not training.ended and record.should_prune()
            stops = pruned or training.ended
            if stops:
                offer(trial, training.examples, examples)
            if checkpoint is not None and training.has_state:
                checkpoint.save_if_due(record, training.state_dict, stops=stops, pruned=pruned)
            if pruned:
                raise optuna.TrialPruned
    if record.last is None:
        raise RuntimeError("training ended without an evaluation")
    return record.last


def _next_of(training: Training, record: TrialRecord) -> Evaluation | None:
    try:
        with interruptible():
            return next(training, None)
    except TrainingDiverged as error:
        record.diverged(error)
        raise
    finally:
        record.evaluation_seconds = training.evaluation_seconds


def offer(
    trial: optuna.trial.Trial,
    tally: ExampleTally | None,
    examples: ExampleWriter | None,
    *,
    slot: int = 0,
) -> None:
    """Keep what a trial saw, before the next steps use its slot of the tally."""
    if examples is not None and tally is not None:
        examples.offer(id_of(trial), tally.take(slot))
        # If the trial is continued, only later visits are added.
        tally.begin(slot)


# A trial has one file, `<study>-<slot>.pt`, replaced from time to time and removed when its slot
# has its result. It is read as tensors and plain values only, never as a pickle that could run
# code.

_VERSION = 1


class CheckpointWarning(UserWarning):
    """A checkpoint cannot be written or used; the trial is trained without it."""


class Checkpoints:
    """The checkpoints of studies, in a folder that is made when the first is written.

    Args:
        folder: Where they are. Workers on several machines need a folder that all of them reach. A
            trial whose file is not there begins at zero.
        seconds: A trial is saved at the first evaluation this long after its last save, above 0.
    """

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds

    @classmethod
    def of(cls, storage: Storage, *, seconds: float) -> Self | None:
        """The checkpoints of a storage's studies, see `files_folder`; None if ``seconds`` is 0."""
        return cls(files_folder(storage, "checkpoints"), seconds=seconds) if seconds else None

    def path(self, study: optuna.Study, place: Place) -> Path:
        """The file of a slot, or of a slot's twin."""
        return self.folder / f"{_file_stem(_study_key(study), place)}.pt"

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
            kept = {_file_stem(key, place) for place in places}
            for path in found:
                # A temporary file of a killed writer begins with the name of the final file.
                name = path.name.partition(".pt")[0]
                if name.startswith(key) and name not in kept:
                    path.unlink(missing_ok=True)


def _promotable(study: optuna.Study) -> set[Place]:
    """Slots of the paused trials that may yet be continued."""
    pruner = study.pruner
    if not isinstance(pruner, PromotionPruner):
        return set()
    return {(slot_of(study, trial), "") for trial in pruner.worth_keeping(study)}


class SlotCheckpoint:
    """The checkpoint of one trial, for one attempt at it.

    Args:
        checkpoints: Where it is.
        study: The trial's study.
        place: The trial's slot, and the batch sampler of its twin.
        identity: Returns what must be equal in the attempt that writes and the one that reads.
            Called only if there is something to write or read.
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
        # A study of short trials has no folder, and so needs no further query.
        if not self._checkpoints.folder.is_dir():
            return None
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
        warn_of_checkpoint(f"The checkpoint {path} {why}; the trial starts from zero.")
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

        Args:
            record: The trial's record, written first: a continuation counts from the stored curve.
            state: Returns the training's state.
            stops: Whether the training has ended or is pruned.
            pruned: Whether it is pruned.
        """
        is_late = time.monotonic() - self._saved > self._checkpoints.seconds
        if self._may_continue(pruned=pruned) if stops else is_late:
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


def _file_stem(key: str, place: Place) -> str:
    slot, twin = place
    return f"{key}-{slot}{f'-{twin}' if twin else ''}"


def _study_key(study: optuna.Study) -> str:
    """A name that no other study has but its copies (`hpo-mab copy`)."""
    first = study.get_trials(deepcopy=False)[0].datetime_start
    # Optuna's times are local ones, and machines may differ in their time zone.
    moment = first and first.astimezone(datetime.UTC).replace(tzinfo=None)
    text = f"{study.study_name}\x1f{moment}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def warn_of_checkpoint(message: str) -> None:
    """Warn that a checkpoint cannot be written or used."""
    warnings.warn(message, CheckpointWarning, stacklevel=3)


def warn_of_misfit(error: Exception) -> None:
    """Warn that the state of a checkpoint does not fit its training."""
    warn_of_checkpoint(
        f"A checkpoint does not fit its trial, which starts from zero: {failure_reason(error)}. "
        "One that was saved in slots fits only in slots, and the other way round."
    )
