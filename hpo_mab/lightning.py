"""Optuna's trials in Lightning: ``pip install ".[lightning]"``."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import lightning
import optuna
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.data import extract_batch_size
from optuna.trial import TrialState
from torch import Tensor

from hpo_mab._errors import ArgumentError, require
from hpo_mab.samplers import BatchSampler
from hpo_mab.search import TrialReporter
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._open import STORAGE_ERRORS
from hpo_mab.training import WeightAverage
from hpo_mab.training._average import tensor_at
from hpo_mab.training._schedule import DEFAULT_AVERAGE

__all__ = ["TrialCallback"]


class TrialCallback(lightning.Callback):
    """`hpo_mab.TrialReporter` for a `lightning.Trainer`: budget, pruning, curve, averaged weights.

    .. code-block:: python

        callback = TrialCallback(trial, monitor="accuracy", budget_examples=20_000, evaluations=4)
        trainer = lightning.Trainer(max_epochs=4, callbacks=[callback])
        trainer.fit(module, train_loader, valid_loader)
        return callback.accuracy

    During each validation of ``fit`` the module has averaged weights and floating buffers; what
    validation writes into these in place is undone in the module, but stays in the averages. A
    buffer that validation assigns keeps the new value, and is not averaged from then on. At the end
    of the budget the module has the trained weights, unless the schedule is constant. A validation
    is reported only if one of ``evaluations`` is due; Lightning's sanity check is never reported.
    ``fit`` raises the pruner's `optuna.TrialPruned`.

    A checkpoint of Lightning's has the trained weights, also where ``monitor`` is the accuracy of
    averaged ones. With ``accumulate_grad_batches`` the curve counts batches as steps. With
    ``precision="16-mixed"`` a loss that is not finite ends the trial as diverged at the next
    validation, also where the step was skipped.

    The training must run in one process. With a distributed strategy on one device, the trainer
    needs ``use_distributed_sampler=False``.

    Args:
        trial: Optuna's trial.
        monitor: Name under which ``validation_step`` logs the accuracy, in [0, 1].
        sampler: The batch sampler in use; None means uniform batches.
        average: Window of the moving average as a share of the steps so far, in [0, 1]; 0 keeps
            none. None: another callback puts averaged weights into the module during each
            validation, such as Lightning's own ``WeightAveraging``.
        schedule: ``"linear"`` if the learning rate decays until the end, or ``"constant"``.
        budget_examples: Training examples of the whole ``fit``, at least ``evaluations``.
        evaluations: Equally spaced validations of the whole ``fit``, at least 1.
        curves: Where to keep the learning curve; None keeps none.

    Raises:
        ArgumentError: An argument outside its bound. Later, within ``fit``: several devices, a
            ``monitor`` that is not logged, or a training that continues from a checkpoint.
    """

    def __init__(
        self,
        trial: optuna.trial.BaseTrial,
        *,
        monitor: str,
        sampler: BatchSampler | None = None,
        average: float | None = DEFAULT_AVERAGE,
        schedule: str = "linear",
        budget_examples: int,
        evaluations: int = 8,
        curves: CurveStore | None = None,
    ) -> None:
        #: Whether another callback averages.
        self._foreign = average is None
        self._window = average or 0.0
        self._trial = trial
        self._sampler = sampler
        self._reporter = TrialReporter(
            trial,
            sampler=sampler,
            average=self._window,  # Without a model only checked.
            schedule=schedule,
            budget_examples=budget_examples,
            evaluations=evaluations,
            curves=curves,
        )
        self._monitor = monitor
        self._average: WeightAverage | None = None
        #: During validation: each tensor that has an average now, and its trained values.
        self._trained: dict[str, tuple[Tensor, Tensor]] | None = None
        #: Buffers that validations assign.
        self._assigned: set[str] = set()
        self._steps = 0
        self._rate = math.nan

    @property
    def accuracy(self) -> float:
        """The last reported accuracy; NaN before the first."""
        return self._reporter.accuracy

    def setup(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str
    ) -> None:
        """Refuse several processes: each would train a trial of its own, or report the same one.

        Raises:
            ArgumentError: The trainer has several devices or nodes.
        """
        one = trainer.world_size == 1 or stage != "fit"
        bound = "1 in all, because TrialCallback follows one process"
        require(one, "devices", bound, trainer.world_size)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Begin the trial.

        Raises:
            ArgumentError: The training continues from a checkpoint.
        """
        self._check_steps(trainer)
        self._reporter.__enter__()

    def on_before_optimizer_step(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Keep the learning rate of the step: at its end schedulers have changed it."""
        # A module without an optimiser has a mock one, without parameter groups.
        groups = trainer.optimizers[0].param_groups
        self._rate = float(groups[0]["lr"]) if groups else math.nan

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
    ) -> None:
        """Count the batch, and move the average after an optimiser step."""
        if self._window > 0 and trainer.global_step > self._steps:
            if self._average is None:
                # Not earlier: until then the module may move to another device.
                self._average = WeightAverage(module, window=self._window)
            self._average.update()
        self._steps = trainer.global_step
        if batch is None:  # Lightning skips it, so `training_step` cannot answer the draw.
            if self._sampler is not None and self._sampler.outstanding:
                self._sampler.discard()
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            # Lightning has divided it by this number.
            loss = loss * trainer.accumulate_grad_batches
        # The first dimension of a tensor may be another one, such as time.
        examples = extract_batch_size(batch) if self._sampler is None else self._sampler.batch_size
        self._reporter.step(examples, loss=loss)

    def on_validation_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Put the averaged weights into the module, if they are to be evaluated."""
        if not _within_fit(trainer):
            return
        self._reporter.stop_clock()
        if self._average is not None and self._reporter.averages:
            weights = self._average.weights()
            tensors = {k: tensor_at(module, k) for k in weights if k not in self._assigned}
            self._trained = {k: (tensor, tensor.data) for k, tensor in tensors.items()}
            for name, tensor in tensors.items():
                tensor.data = weights[name].detach()

    def on_validation_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Put the trained weights back, and report the accuracy.

        Raises:
            ArgumentError: ``monitor`` is not logged.
            optuna.TrialPruned: The study's pruner stops the trial.
        """
        if not _within_fit(trainer):
            return
        averaged = self._restore(module)
        logged = trainer.callback_metrics
        if self._monitor not in logged:
            names = ", ".join(f"'{name}'" for name in sorted(logged)) or "nothing"
            raise ArgumentError(
                f"monitor must be a name that validation_step logs, {names}, got '{self._monitor}'."
            )
        self._reporter.report(
            accuracy=float(logged[self._monitor]),
            learning_rate=self._rate,
            averaged=averaged or self._foreign,
        )

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the rest of the curve.

        Raises:
            ArgumentError: There was nothing to train after a checkpoint.
        """
        self._check_steps(trainer)
        self._reporter.__exit__(None, None, None)

    def on_exception(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Write the rest of the curve, and why the training ended."""
        self._restore(module)
        self._reporter.__exit__(type(exception), exception, exception.__traceback__)
        if isinstance(exception, KeyboardInterrupt) and isinstance(self._trial, optuna.Trial):
            # Lightning exits now. Optuna would leave the trial running, and repeat it later.
            with contextlib.suppress(*STORAGE_ERRORS):
                self._trial.study.tell(self._trial, state=TrialState.FAIL, skip_if_finished=True)

    def _check_steps(self, trainer: lightning.Trainer) -> None:
        """Raise `ArgumentError` if the trainer has steps that were not counted."""
        # Not `trainer.ckpt_path`, which also names files that Lightning's tuners write and restore.
        if trainer.global_step > self._steps:
            raise ArgumentError(
                "ckpt_path must be None: TrialCallback counts a training from its first step, "
                f"got one that continues from step {trainer.global_step}."
            )

    def _restore(self, module: lightning.LightningModule) -> bool:
        """Put the trained weights back; returns whether the module had the averaged ones."""
        if self._trained is None:
            return False
        for name, (tensor, own) in self._trained.items():
            if tensor_at(module, name) is tensor:
                tensor.data = own
            else:
                self._assigned.add(name)
        self._trained = None
        return True


def _within_fit(trainer: lightning.Trainer) -> bool:
    """Whether a validation is part of `fit`, and not its sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
