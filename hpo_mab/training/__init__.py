"""The budgeted training loop: budget, schedule, optimisers, batches; yields evaluations.

Names are imported when first used: `Evaluation`, which storage and analysis need, costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._lazy import lazy_names

if TYPE_CHECKING:
    from hpo_mab.training._batches import Batches, DeviceBatches, LoaderBatches
    from hpo_mab.training._budget import Budget
    from hpo_mab.training._device import select_device
    from hpo_mab.training._device_step import DeviceStep
    from hpo_mab.training._evaluate import evaluate
    from hpo_mab.training._evaluation import Evaluation
    from hpo_mab.training._loss_meter import TrainingDiverged
    from hpo_mab.training._optimizers import (
        available_optimizers,
        create_optimizer,
        optimizer_options,
    )
    from hpo_mab.training._precision import PRECISIONS
    from hpo_mab.training._schedule import LinearSchedule, evaluation_steps
    from hpo_mab.training._sweeps import DeviceSweep, LoaderSweep, Sweep
    from hpo_mab.training._timed_sampler import TimedSampler
    from hpo_mab.training._train import train
    from hpo_mab.training._training import Training

__all__ = [
    "PRECISIONS",
    "Batches",
    "Budget",
    "DeviceBatches",
    "DeviceStep",
    "DeviceSweep",
    "Evaluation",
    "LinearSchedule",
    "LoaderBatches",
    "LoaderSweep",
    "Sweep",
    "TimedSampler",
    "Training",
    "TrainingDiverged",
    "available_optimizers",
    "create_optimizer",
    "evaluate",
    "evaluation_steps",
    "optimizer_options",
    "select_device",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PRECISIONS": "._precision",
        "Batches": "._batches",
        "Budget": "._budget",
        "DeviceBatches": "._batches",
        "DeviceStep": "._device_step",
        "DeviceSweep": "._sweeps",
        "Evaluation": "._evaluation",
        "LinearSchedule": "._schedule",
        "LoaderBatches": "._batches",
        "LoaderSweep": "._sweeps",
        "Sweep": "._sweeps",
        "TimedSampler": "._timed_sampler",
        "Training": "._training",
        "TrainingDiverged": "._loss_meter",
        "available_optimizers": "._optimizers",
        "create_optimizer": "._optimizers",
        "evaluate": "._evaluate",
        "evaluation_steps": "._schedule",
        "optimizer_options": "._optimizers",
        "select_device": "._device",
        "train": "._train",
    },
)
