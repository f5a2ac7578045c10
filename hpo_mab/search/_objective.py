"""The Optuna objective: one trial trains one network with one batch sampler on one budget."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import nn
from torch.utils.data import Dataset

from hpo_mab._attributes import (
    AUTO,
    BUDGET_KEY,
    PAIRED_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TWIN_KEY,
    USED_RECORD_KEY,
)
from hpo_mab._errors import check_integer, plain_arguments, require
from hpo_mab._plan import Plan, budgets_of, slot_of, trial_seed
from hpo_mab._registry import Named
from hpo_mab.data import Augmentation, DataIdentity, DatasetSplits, ImageSplits
from hpo_mab.data._identity import source_digest
from hpo_mab.search._checkpoint import Checkpoints, TrialCheckpoint
from hpo_mab.search._portfolio import initial_kind
from hpo_mab.search._retries import requeue
from hpo_mab.search._space import Assignment, Configuration, SearchSpace
from hpo_mab.search._trial_record import (
    Recording,
    check_direction,
    mark_pair,
    store_end,
    train_and_record,
    warn_of_other_lengths,
    warn_of_unknown,
    warn_without_pilot,
)
from hpo_mab.search._trial_samplers import TrialSamplers
from hpo_mab.search._twins import queue_twin
from hpo_mab.search._workload import LoopSettings, Workload
from hpo_mab.storage import Storage
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._definition import StoredDefinition
from hpo_mab.storage._open import STORAGE_ERRORS, files_folder
from hpo_mab.storage._optuna import id_of
from hpo_mab.training import Budget, TrainingDiverged, select_device
from hpo_mab.training._schedule import DEFAULT_AVERAGE


class TrainingObjective:
    """An objective for `optuna.Study.optimize`: trains a network, returns its validation accuracy.

    Each value of ``model_options``, ``optimizer``, ``sampler``, ``batch_size``, ``warmup``,
    ``label_smoothing`` and ``average`` is a constant or a range. A range is an Optuna distribution,
    or a mapping such as ``{"low": 0.01, "high": 1.0, "log": True}``. Ranges become ordinary Optuna
    parameters. Those of the optimiser are named ``lr``, ``momentum``, ...; of the network,
    ``model.width``, ...; of the sampler, ``sampler.memory``, ...; of the loop, as the arguments.
    ``prior`` has two: ``sampler.prior_alpha`` and ``sampler.prior_beta``.

    Each evaluation reports its validation accuracy to Optuna, at steps 1 to ``evaluations``. The
    study's pruner may then stop the trial. A non-finite loss ends the trial as pruned.

    Trials use the global random states of torch, NumPy and Python, so a process trains one at a
    time. ``n_jobs`` above 1 raises an `ArgumentError`; start several processes on one storage
    instead.

    Args:
        model: Makes an untrained network; called with the model options as keywords.
        data: An `ImageSplits`, a `DatasetSplits`, or a pair of datasets (training, validation).
            Their items are ``(input tensor, class)``, with classes numbered from 0.
        budget: What one trial may spend.
        augmentation: Random crops and flips on the device; only with `ImageSplits`.
        optimizer: An optimiser's name, or ``name`` (default ``"sgd"``) and options.
        sampler: A sampler's kind, or ``kind`` (default ``"mab"``) and knobs. Kind ``"auto"`` trains
            the first configurations under uniform sampling. Twin trials train some of them under
            the samplers of ``portfolio`` as well. After this race the study continues with the best
            sampler. A kind may be ``"package.module:Name"``, or a class or a function, of any batch
            sampler or sampler of PyTorch's interface. The same holds for an optimiser's name.
            `optuna.Study.optimize` keeps no record of examples, which some samplers use.
        model_options: Keyword arguments of ``model``.
        batch_size: Examples per batch.
        warmup: Share of the budget in which the learning rate rises linearly.
        label_smoothing: Mass moved from the true label to all labels, in [0, 1).
        average: Window of the moving average of the weights, as a share of the steps so far, in
            [0, 1]. Evaluations before the last are those of the average; 0 keeps none.
        schedule: ``"linear"`` decay of the learning rate, or ``"constant"``.
        keep: ``"trained"`` weights at the end, or the ``"better"`` of these and their average.
        evaluations: Equally spaced evaluations per trial.
        early_validation: Validation examples of the evaluations before the last, a fixed random
            part, at least 1; None takes all. The last evaluation takes all.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).
        channels_last: Memory format of images and weights; not used with MPS.
        graph: Whether training steps may be captured in a CUDA graph; where they cannot be, the
            ordinary loop takes them.
        threads: CPU threads of a trial, at least 1; afterwards the process has as many as before.
            None leaves the number as it is.
        num_workers: Data-loading processes; only with datasets. On macOS and Windows their class
            must be in a module, not in a notebook.
        device: ``"auto"`` takes CUDA, then MPS, then the CPU.
        seed: The study's seed. A trial's seed follows from it and the trial's slot.
        initial: Trials in the first ``initial`` slots are never pruned, so that trials of another
            study can be paired with them. Earlier trials of the study take slots, too.
        pilot: Whether twin trials train the first ``initial`` configurations under uniform sampling
            as well; needs ``initial``; not with ``"auto"``.
        portfolio: The samplers of ``"auto"``, each a kind, or a mapping with ``kind``, knobs and a
            ``name``; ``"uniform"`` among them. None takes the default.
        trials: Trials of the study without twins, where known; they limit the race of ``"auto"``.
            With None the first ``initial`` configurations limit it; ``"auto"`` needs one of the
            two. ``n_trials`` of `optuna.Study.optimize` and `optuna.study.MaxTrialsCallback`
            count twins, too.
        total: The study's total budget. Samplers race at equal seconds where its unit is a time,
            else at equal examples.
        curves: Where learning curves are stored; None keeps none.

    Raises:
        ArgumentError: An argument outside its bound, or data whose labels are no classes.
        UnknownNameError: An unknown optimiser, sampler or option.

    Examples:
        >>> import optuna
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from hpo_mab.search import TrainingObjective
        >>> from hpo_mab.training import Budget
        >>> part = TensorDataset(torch.randn(40, 3), torch.tensor([0, 1] * 20))
        >>> objective = TrainingObjective(
        ...     model=lambda: torch.nn.Linear(3, 2),
        ...     data=(part, part),
        ...     budget=Budget(steps=4),
        ...     optimizer={"name": "sgd", "lr": {"low": 0.01, "high": 0.1}},
        ...     batch_size=10,
        ... )
        >>> study = optuna.create_study(direction="maximize")
        >>> study.optimize(objective, n_trials=1)
        >>> 0 <= study.best_value <= 1
        True
    """

    @plain_arguments
    def __init__(
        self,
        *,
        # What a trial trains.
        model: Callable[..., nn.Module],
        data: ImageSplits | DatasetSplits | tuple[Dataset[Any], Dataset[Any]],
        budget: Budget,
        augmentation: Augmentation | None = None,
        # The search space, constants or ranges.
        optimizer: Named | Mapping[str, Any],
        sampler: Named | Mapping[str, Any] = "mab",
        model_options: Mapping[str, Any] | None = None,
        batch_size: Any = 128,
        warmup: Any = 0.15,
        label_smoothing: Any = 0.0,
        average: Any = DEFAULT_AVERAGE,
        # The training loop, the same for all trials.
        schedule: str = "linear",
        keep: str = "trained",
        evaluations: int = 8,
        early_validation: int | None = None,
        precision: str = "float32",
        channels_last: bool = False,
        graph: bool = True,
        threads: int | None = None,
        # Where trials run.
        num_workers: int = 0,
        device: str | torch.device = "auto",
        # The study.
        seed: int = 0,
        initial: int = 0,
        pilot: bool = False,
        portfolio: Sequence[Any] | None = None,
        trials: int | None = None,
        total: str | None = None,
        curves: CurveStore | None = None,
    ) -> None:
        # Other types would raise in the first trial only.
        makes_networks = not isinstance(model, nn.Module)
        wanted = "a function or class that makes a network"
        require(makes_networks, "model", wanted, type(model).__name__)
        known = isinstance(model_options, Mapping | None)
        require(known, "model_options", "a mapping", type(model_options).__name__)
        require(isinstance(budget, Budget), "budget", "a Budget", type(budget).__name__)
        known = isinstance(curves, CurveStore | None)
        require(known, "curves", "a storage's curves", type(curves).__name__)
        check_integer("seed", seed, 0)
        chosen = {"kind": "mab", **sampler} if isinstance(sampler, Mapping) else {"kind": sampler}
        rule = optimizer if isinstance(optimizer, Mapping) else {"name": optimizer}
        self.space = SearchSpace(
            optimizer={"name": "sgd", **rule},
            sampler={**chosen, "kind": initial_kind(chosen["kind"])},
            model=model_options or {},
            loop={
                "batch_size": batch_size,
                "warmup": warmup,
                "label_smoothing": label_smoothing,
                "average": average,
            },
        )
        self.workload = Workload(
            model=model,
            data=data,
            budget=budget,
            loop=LoopSettings(
                evaluations=evaluations,
                precision=precision,
                channels_last=channels_last,
                graph=graph,
                schedule=schedule,
                keep=keep,
                threads=threads,
                early_validation=early_validation,
            ),
            augmentation=augmentation,
            num_workers=num_workers,
            device=select_device(str(device)),
        )
        #: Identity of the data; None for a pair of datasets.
        self.data = None if isinstance(data, tuple) else DataIdentity.of(data)
        self.seed = seed
        self.initial = initial
        auto = chosen["kind"] == AUTO
        #: Digest of the data of ``"auto"``, the same for all splits; empty if not known.
        self.source = source_digest(data) if auto and not isinstance(data, tuple) else ""
        self.pilot = pilot
        self.samplers = TrialSamplers(
            chosen["kind"],
            self.space.sampler.name,
            initial=initial,
            pilot=pilot,
            portfolio=portfolio,
            trials=trials,
            total=total,
            data=self.source,
        )
        #: Whether trials of other lengths were looked for.
        self._compared_lengths = False
        #: Where its trials are kept under `optuna.Study.optimize`.
        self.recording = Recording(curves=curves)
        #: Why trials were not trained many at a time or from a CUDA graph, each reason once.
        self.notes: dict[str, None] = {}

    def begin_study(self, study: optuna.Study, storage: Storage) -> None:
        """Take over what a stored study has fixed; forget what was noted of another study."""
        # A study keeps the part that it began with, even if another one would be taken now.
        early = StoredDefinition.load(study).settings.early_validation
        part = None if early == "all" or early >= self.workload.data.sizes[1] else early
        self.workload.loop = dataclasses.replace(self.workload.loop, early_validation=part)
        self.notes.clear()
        self.read_record(study, storage)

    def read_record(self, study: optuna.Study, storage: Storage) -> None:
        """Read the record of examples that a study keeps for its samplers, if it does by now."""
        self.workload.example_record = storage.examples.kept_record(id_of(study))

    def store_in(self, storage: Storage, *, checkpoint: float) -> None:
        """Write learning curves into the study's storage from now on, and checkpoints next to it.

        A trial is saved at the first evaluation ``checkpoint`` seconds after its last save; 0 saves
        none.
        """
        folder = files_folder(storage, "checkpoints")
        self.recording = dataclasses.replace(
            self.recording,
            curves=storage.curves,
            checkpoints=Checkpoints(folder, seconds=checkpoint),
        )

    def configuration_of(
        self, params: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> Configuration:
        """The configuration that a recorded trial with these user attributes has trained."""
        configuration = self.space.at(params)
        if self.samplers.has_twins or TWIN_KEY in attrs:
            name = str(attrs.get(SAMPLER_KEY, configuration.sampler.name))
            configuration = self.samplers.of_name(name, configuration)
        return dataclasses.replace(configuration, difficulty=bool(attrs.get(USED_RECORD_KEY)))

    def __call__(self, trial: optuna.trial.BaseTrial) -> float:
        """Train the trial's configuration.

        Args:
            trial: A running trial. An `optuna.trial.FixedTrial`, or a finished trial such as
                ``study.best_trial``, is only trained: nothing is stored or pruned. A finished
                trial keeps its slot, so that it is trained from the same seed.

        Returns:
            Validation accuracy at the end of the budget, in [0, 1].

        Raises:
            ArgumentError: The study does not maximize, another thread of this process is
                training, or the trial's stored sampler cannot be used here.
            optuna.TrialPruned: The pruner stops the trial, or training diverged.
        """
        if not isinstance(trial, optuna.trial.Trial):
            return self._train_unstored(trial)
        return self.train(trial, self.recording)

    @functools.cached_property
    def trial_examples(self) -> int:
        """Training examples of a trial; of searched batch sizes those of the longest."""
        return max(map(self.workload.trial_examples, self.space.batch_sizes))

    def assign(self, trial: optuna.trial.Trial, recording: Recording) -> Assignment:
        """Give a running trial its slot and suggest its configuration.

        Raises:
            ArgumentError: The study does not maximize, batch sizes give its trials different
                numbers of evaluations, or the trial's stored sampler cannot be used here.
        """
        check_direction(trial.study)
        # Before twins are queued: a race begins at the slot of a running trial.
        slot = slot_of(trial.study, trial)
        if SLOT_KEY not in trial.user_attrs:
            trial.set_user_attr(SLOT_KEY, slot)
        if not recording.in_loop:
            self.workload.check_evaluations(self.space.batch_sizes)
            if self.samplers.has_twins:
                # There is no lock: several processes may queue the same trial twice.
                # Optuna's own loop does not repeat a trial that Ctrl-C ended. Its pair would then
                # be missing.
                requeue(trial.study, Plan.of(trial.study))
                self.samplers.queue_twins(trial.study, recording.example_writer)
        suggested = self._suggest(trial)
        if not recording.in_loop:
            self._store_settings(trial, suggested)
            # In our own loop `TrialLoop` removes them.
            if recording.checkpoints is not None:
                recording.checkpoints.sweep(trial.study)
        writer = recording.example_writer
        if writer is not None or trial.user_attrs.keys() & {TWIN_KEY, USED_RECORD_KEY}:
            suggested = self.samplers.with_record(trial, suggested, self.workload, writer)
        if slot < self.initial:
            trial.set_user_attr(PAIRED_KEY, True)
        # Pairs need trials that ran to their end, so the pruner is not asked about the first ones.
        # Successive halving then does not compare later trials with them: most proposals of a
        # search would pass against random configurations (``studies/digits``).
        race = self.samplers.race
        first_prunable = max(self.initial, 0 if race is None else race.end(trial.study))
        return Assignment(
            plan_slot=slot,
            configuration=suggested,
            seed=trial_seed(self.seed, slot),
            # A twin is never pruned; an objective with another ``initial`` may have queued it.
            may_prune=slot >= first_prunable and TWIN_KEY not in trial.user_attrs,
            budgets=budgets_of(trial.user_attrs),
        )

    def _suggest(self, trial: optuna.trial.Trial) -> Configuration:
        suggested = self.space.suggest(trial)
        warn_of_unknown(trial)
        if self.samplers.has_twins or TWIN_KEY in trial.user_attrs:
            return self.samplers.of_trial(trial, suggested)
        return suggested

    def _store_settings(self, trial: optuna.trial.Trial, suggested: Configuration) -> None:
        """Store with a trial what a definition would hold, see `StoredDefinition.of`."""
        length = self.workload.trial_examples(suggested.batch_size)
        if not (self._compared_lengths or StoredDefinition.is_in(trial.study.user_attrs)):
            evaluations = min(self.workload.loop.evaluations, length // suggested.batch_size)
            warn_of_other_lengths(trial, length, evaluations)
            if self.pilot:
                warn_without_pilot(trial, initial=self.initial)
            self._compared_lengths = True
        trial.set_user_attr(BUDGET_KEY, length)
        if not self.samplers.has_twins:
            # A retry has the name of the first attempt, perhaps of another objective.
            trial.set_user_attr(SAMPLER_KEY, suggested.sampler.name)
        mark_pair(trial, initial=self.initial)

    def queue_pilot_twin(self, trial: optuna.trial.Trial, slot: int) -> None:
        """Queue the twin of a trial of the pilot that has reached the end of its budget."""
        if self.pilot and slot < self.initial and TWIN_KEY not in trial.user_attrs:
            queue_twin(trial.study, trial)

    def waits_for_record(self, study: optuna.Study) -> bool:
        """Whether the race of a study waits for the record of examples to be written."""
        race, record = self.samplers.race, self.workload.example_record
        return race is not None and record is None and race.needs_record(study)

    def checkpoint(
        self, trial: optuna.trial.Trial, assignment: Assignment, recording: Recording
    ) -> TrialCheckpoint | None:
        """Where a trial is saved; None if nothing is."""
        checkpoints = recording.checkpoints
        if checkpoints is None or not checkpoints.seconds:
            return None
        twin = str(trial.user_attrs[SAMPLER_KEY]) if TWIN_KEY in trial.user_attrs else ""
        place = assignment.plan_slot, twin
        configuration, seed = assignment.configuration, assignment.seed
        identity = functools.partial(self.workload.identity, configuration, seed=seed)
        return TrialCheckpoint(checkpoints, trial.study, place, identity=identity)

    def train(self, trial: optuna.trial.Trial, recording: Recording) -> float:
        """Train a running trial, as `__call__`; ``recording`` is what keeps it."""
        try:
            with recording.collect_writes():
                assignment = self.assign(trial, recording)
            checkpoint = self.checkpoint(trial, assignment, recording)
            with self.workload.training(
                assignment.configuration,
                seed=assignment.seed,
                budgets=assignment.budgets,
                state=None if checkpoint is None else checkpoint.load(),
                examples=recording.example_writer is not None,
            ) as training:
                last = train_and_record(
                    trial, training, assignment, recording, checkpoint=checkpoint
                )
                self.note_no_graph(training.loop_reason)
            self.queue_pilot_twin(trial, assignment.plan_slot)
        except TrainingDiverged as error:
            raise optuna.TrialPruned(str(error)) from error
        except STORAGE_ERRORS:
            # The reason could not be stored either.
            raise
        except (Exception, KeyboardInterrupt) as error:
            store_end(trial, error)
            raise
        return last.accuracy

    def note(self, reason: str) -> None:
        """Keep a reason for the summary."""
        self.notes.setdefault(reason)

    def note_no_graph(self, reason: str | None) -> None:
        """Keep why steps are not captured in a CUDA graph; None is no reason."""
        if reason is not None:
            self.note(f"no CUDA graph: {reason}")

    def _train_unstored(self, trial: optuna.trial.BaseTrial) -> float:
        known = isinstance(trial, optuna.trial.FixedTrial | FrozenTrial)
        require(known, "trial", "a Trial, FixedTrial or FrozenTrial", type(trial).__name__)
        attrs = trial.user_attrs
        if isinstance(trial, FrozenTrial):
            configuration = self.configuration_of(trial.params, attrs)
        else:
            configuration = self.space.suggest(trial)
        budgets = budgets_of(attrs)
        seed = trial_seed(self.seed, int(attrs.get(SLOT_KEY, trial.number)))
        try:
            with self.workload.training(configuration, seed=seed, budgets=budgets) as training:
                *_, last = training
        except TrainingDiverged as error:
            raise optuna.TrialPruned(str(error)) from error
        return last.accuracy
