"""The Optuna objective: one trial trains one network with one batch sampler on one budget."""

from __future__ import annotations

import dataclasses
import functools
import warnings
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
    REASON_KEY,
    SAMPLER_KEY,
    SLOT_KEY,
    TWIN_KEY,
    UNIFORM,
    USED_RECORD_KEY,
    TotalBudget,
)
from hpo_mab._errors import ArgumentError, check_integer, plain_arguments, require
from hpo_mab._plan import Plan, budgets_of, slot_of, trial_seed
from hpo_mab._registry import Named
from hpo_mab.data import Augmentation, DataIdentity, DatasetSplits, ImageSplits
from hpo_mab.data._identity import source_digest
from hpo_mab.search._checkpoint import Checkpoints, TrialCheckpoint
from hpo_mab.search._choice import race_unit
from hpo_mab.search._portfolio import initial_kind, parse_portfolio, uses_record
from hpo_mab.search._queue import queue_twin, requeue
from hpo_mab.search._race import Race
from hpo_mab.search._recorder import (
    NO_CHECKPOINT,
    Recording,
    check_direction,
    mark_pair,
    store_end,
    train_and_record,
    warn_of_other_lengths,
    warn_without_pilot,
)
from hpo_mab.search._space import Assignment, Configuration, SearchSpace
from hpo_mab.search._workload import LoopSettings, Workload
from hpo_mab.storage import STORAGE_ERRORS, CurveStore, Storage, StoredDefinition, files_folder
from hpo_mab.storage._optuna import queued_params
from hpo_mab.training import DEFAULT_AVERAGE, Budget, TrainingDiverged, select_device


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
        require(isinstance(budget, Budget), "budget", "a Budget", type(budget).__name__)
        known = isinstance(curves, CurveStore | None)
        require(known, "curves", "a storage's curves", type(curves).__name__)
        check_integer("seed", seed, 0)
        check_integer("initial", initial, 0)
        if trials is not None:
            check_integer("trials", trials, 1)
        if total is not None:
            TotalBudget.parse(total)
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
        taken, kind = auto or portfolio is None, self.space.sampler.name
        require(taken, "portfolio", f"None for sampler '{kind}', which holds no race", portfolio)
        require(not pilot or initial > 0, "initial", "at least 1 with pilot", initial)
        # Uniform sampling would be paired with itself, and "auto" has pairs of its own.
        require(not pilot or kind != UNIFORM, "pilot", f"False for '{chosen['kind']}'", pilot)
        #: Digest of the data of ``"auto"``, the same for all splits; empty if not known.
        self.source = source_digest(data) if auto and not isinstance(data, tuple) else ""
        self.pilot = pilot
        #: The samplers of ``"auto"`` by name; empty for another kind.
        self.portfolio = parse_portfolio(portfolio) if auto else {}
        #: The race of ``"auto"``; None for another kind.
        self.race: Race | None = None
        if auto:
            judged = race_unit(total)
            self.race = Race(
                self.portfolio, initial=initial, trials=trials, judged=judged, data=self.source
            )
        self._has_twins = self.pilot or auto
        #: Whether trials of other lengths were looked for.
        self._compared_lengths = False
        #: Where its trials are kept; a `TrialLoop` replaces it while it runs.
        self.recording = Recording(curves=curves)
        #: Why trials were not trained many at a time or from a CUDA graph, each reason once.
        self.loop_reasons: dict[str, None] = {}

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

    def recorded(self, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> Configuration:
        """The configuration that a recorded trial with these user attributes has trained."""
        configuration = self.space.at(params)
        if self._has_twins or TWIN_KEY in attrs:
            name = str(attrs.get(SAMPLER_KEY, configuration.sampler.name))
            configuration = self._sampled_by(configuration, name)
        return dataclasses.replace(configuration, difficulty=bool(attrs.get(USED_RECORD_KEY)))

    def __call__(self, trial: optuna.trial.BaseTrial) -> float:
        """Train the trial's configuration.

        Args:
            trial: A running trial. An `optuna.trial.FixedTrial`, or a finished trial such as
                ``study.best_trial``, is trained alone: nothing is stored or pruned. A finished
                trial keeps its slot, so that it is trained from the same seed.

        Returns:
            Validation accuracy at the end of the budget, in [0, 1].

        Raises:
            ArgumentError: The study does not maximize, another thread of this process is
                training, or the trial's stored sampler cannot be used here.
            optuna.TrialPruned: The pruner stops the trial, or training diverged.
        """
        if not isinstance(trial, optuna.trial.Trial):
            return self._train_alone(trial)
        return self._train(trial)

    @functools.cached_property
    def trial_examples(self) -> int:
        """Training examples of a trial; of searched batch sizes those of the longest."""
        return max(map(self.workload.trial_examples, self.space.batch_sizes))

    def assign(self, trial: optuna.trial.Trial) -> Assignment:
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
        if not self.recording.in_loop:
            self.workload.check_evaluations(self.space.batch_sizes)
            if self._has_twins:
                # There is no lock: several processes may queue the same trial twice.
                # Optuna's own loop does not repeat a trial that Ctrl-C ended. Its pair would then
                # be missing.
                requeue(trial.study, Plan.of(trial.study))
                self.queue_twins(trial.study)
        suggested = self._with_sampler(trial, self.space.suggest(trial))
        unknown = queued_params(trial).keys() - trial.params.keys()
        if unknown:
            warnings.warn(
                f"Trial {trial.number} was queued with {', '.join(sorted(unknown))}, which this "
                f"objective does not search: its parameters are {', '.join(sorted(trial.params))}.",
                stacklevel=2,
            )
        if not self.recording.in_loop:
            self._store_settings(trial, suggested)
            # In our own loop `TrialLoop` removes them.
            if self.recording.checkpoints is not None:
                self.recording.checkpoints.sweep(trial.study)
        if slot < self.initial:
            trial.set_user_attr(PAIRED_KEY, True)
        # Pairs need trials that ran to their end, so the pruner is not asked about the first ones.
        # Successive halving then does not compare later trials with them: most proposals of a
        # search would pass against random configurations (``studies/digits``).
        first_prunable = max(self.initial, 0 if self.race is None else self.race.end(trial.study))
        return Assignment(
            plan_slot=slot,
            configuration=self._with_record(trial, suggested),
            seed=trial_seed(self.seed, slot),
            # A twin is never pruned; an objective with another ``initial`` may have queued it.
            may_prune=slot >= first_prunable and TWIN_KEY not in trial.user_attrs,
            budgets=budgets_of(trial.user_attrs),
        )

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
        if not self._has_twins:
            # A retry has the name of the first attempt, perhaps of another objective.
            trial.set_user_attr(SAMPLER_KEY, suggested.sampler.name)
        mark_pair(trial, initial=self.initial)

    def queue_pilot_twin(self, trial: optuna.trial.Trial, slot: int) -> None:
        """Queue the twin of a trial of the pilot that has reached the end of its budget."""
        if self.pilot and slot < self.initial and TWIN_KEY not in trial.user_attrs:
            queue_twin(trial.study, trial)

    def waits_for_record(self, study: optuna.Study) -> bool:
        """Whether the race of a study waits for the record of examples to be written."""
        frozen = self.workload.example_record is not None
        return self.race is not None and not frozen and self.race.needs_record(study)

    def queue_twins(self, study: optuna.Study) -> bool:
        """Queue the next twins of the race; see `hpo_mab.search._race.Race.advance`."""
        if self.race is None:
            return False
        writer = self.recording.example_writer
        has_record = None if writer is None else lambda: writer.freeze_written() is not None
        return self.race.advance(study, has_record=has_record)

    def checkpoint(
        self, trial: optuna.trial.Trial, assignment: Assignment
    ) -> TrialCheckpoint | None:
        """Where a trial is saved; None if nothing is."""
        checkpoints = self.recording.checkpoints
        if checkpoints is None or not checkpoints.seconds:
            return None
        twin = str(trial.user_attrs[SAMPLER_KEY]) if TWIN_KEY in trial.user_attrs else ""
        return TrialCheckpoint(
            checkpoints,
            trial.study,
            (assignment.plan_slot, twin),
            identity=functools.partial(
                self.workload.identity, assignment.configuration, seed=assignment.seed
            ),
        )

    def _train(self, trial: optuna.trial.Trial) -> float:
        try:
            with self.recording.collect_writes():
                assignment = self.assign(trial)
            checkpoint = self.checkpoint(trial, assignment)
            with self.workload.training(
                assignment.configuration,
                seed=assignment.seed,
                budgets=assignment.budgets,
                state=None if checkpoint is None else checkpoint.load(),
                examples=self.recording.example_writer is not None,
            ) as training:
                if assignment.budgets > 1 and not training.resumed:
                    trial.set_user_attr(REASON_KEY, NO_CHECKPOINT)
                    raise optuna.TrialPruned(NO_CHECKPOINT)
                if (on_progress := self.recording.on_progress) is not None:
                    number = trial.number
                    training.on_progress = lambda share: on_progress({number: share})
                last = train_and_record(
                    trial,
                    training,
                    self.recording,
                    checkpoint=checkpoint,
                    may_prune=assignment.may_prune,
                )
                self.note_loop(training.loop_reason)
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
        self.loop_reasons.setdefault(reason)

    def note_loop(self, reason: str | None) -> None:
        """Keep why steps are not captured in a CUDA graph; None is no reason."""
        if reason is not None:
            self.note(f"no CUDA graph: {reason}")

    def _train_alone(self, trial: optuna.trial.BaseTrial) -> float:
        known = isinstance(trial, optuna.trial.FixedTrial | FrozenTrial)
        require(known, "trial", "a Trial, FixedTrial or FrozenTrial", type(trial).__name__)
        attrs = trial.user_attrs
        frozen = isinstance(trial, FrozenTrial)
        configuration = self.recorded(trial.params, attrs) if frozen else self.space.suggest(trial)
        budgets = budgets_of(attrs)
        seed = trial_seed(self.seed, int(attrs.get(SLOT_KEY, trial.number)))
        try:
            with self.workload.training(configuration, seed=seed, budgets=budgets) as training:
                *_, last = training
        except TrainingDiverged as error:
            raise optuna.TrialPruned(str(error)) from error
        return last.accuracy

    def _with_sampler(
        self, trial: optuna.trial.Trial, configuration: Configuration
    ) -> Configuration:
        """The configuration with the trial's batch sampler; stores its name with the trial."""
        if not self._has_twins and TWIN_KEY not in trial.user_attrs:
            return configuration
        # A twin, a retry and a promotion have the name already.
        name = trial.user_attrs.get(SAMPLER_KEY)
        if name is None and self.race is not None:
            name = self.race.sampler(trial.study)
        name = name or configuration.sampler.name
        trial.set_user_attr(SAMPLER_KEY, name)
        return self._sampled_by(configuration, name)

    def _sampled_by(self, configuration: Configuration, name: str) -> Configuration:
        """The configuration with the batch sampler whose name a trial has stored."""
        if name in self.portfolio:
            return dataclasses.replace(configuration, sampler=self.portfolio[name])
        if name == UNIFORM:
            return configuration.with_sampler(UNIFORM)
        own = configuration.sampler.name
        known = ", ".join(self.portfolio) or own
        argument = "portfolio" if self.portfolio else "sampler"
        wanted = f"one with the trial's sampler '{name}'" if self.portfolio else f"'{name}'"
        require(name == own, argument, f"{wanted}, as in the objective that made it", known)
        return configuration

    def _with_record(
        self, trial: optuna.trial.Trial, configuration: Configuration
    ) -> Configuration:
        """The configuration with the difficulty of examples, if its sampler uses that."""
        writer = self.recording.example_writer
        if writer is None:
            needed = TWIN_KEY in trial.user_attrs or trial.user_attrs.get(USED_RECORD_KEY)
            if needed and uses_record(configuration.sampler):
                raise ArgumentError(
                    f"Trial {trial.number} needs the study's record of examples for sampler "
                    f"'{configuration.sampler.name}': continue the study with hpo-mab run and "
                    "training.examples = true."
                )
            return configuration
        if not uses_record(configuration.sampler):
            return configuration
        if self.workload.example_record is None:
            self.workload.example_record = writer.freeze()
        # A retried trial uses the record only if its first attempt did.
        used = trial.user_attrs.get(USED_RECORD_KEY, self.workload.example_record is not None)
        trial.set_user_attr(USED_RECORD_KEY, used)
        return dataclasses.replace(configuration, difficulty=used)
