"""The budgeted training loop: budget, schedule, optimisers, batches; yields evaluations.

Names are imported when first used: `Evaluation`, which storage and analysis need, costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._lazy import lazy_names

if TYPE_CHECKING:
    from hpo_mab.training._average import WeightAverage
    from hpo_mab.training._batches import Batches, DeviceBatches, LoaderBatches
    from hpo_mab.training._device import select_device
    from hpo_mab.training._device_step import DeviceStep
    from hpo_mab.training._evaluate import evaluate
    from hpo_mab.training._evaluation import Evaluation
    from hpo_mab.training._meters import TimedSampler, TrainingDiverged
    from hpo_mab.training._optimizers import (
        available_optimizers,
        create_optimizer,
        optimizer_options,
    )
    from hpo_mab.training._precision import PRECISIONS
    from hpo_mab.training._schedule import (
        DEFAULT_AVERAGE,
        SCHEDULES,
        Budget,
        Schedule,
        evaluation_steps,
    )
    from hpo_mab.training._stack import StackedTrainer
    from hpo_mab.training._sweeps import DeviceSweep, LoaderSweep, Sweep
    from hpo_mab.training._training import KEEP, Training

__all__ = [
    "DEFAULT_AVERAGE",
    "KEEP",
    "PRECISIONS",
    "SCHEDULES",
    "Batches",
    "Budget",
    "DeviceBatches",
    "DeviceStep",
    "DeviceSweep",
    "Evaluation",
    "LoaderBatches",
    "LoaderSweep",
    "Schedule",
    "StackedTrainer",
    "Sweep",
    "TimedSampler",
    "Training",
    "TrainingDiverged",
    "WeightAverage",
    "available_optimizers",
    "create_optimizer",
    "evaluate",
    "evaluation_steps",
    "optimizer_options",
    "select_device",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DEFAULT_AVERAGE": "._schedule",
        "KEEP": "._training",
        "PRECISIONS": "._precision",
        "SCHEDULES": "._schedule",
        "Batches": "._batches",
        "Budget": "._schedule",
        "DeviceBatches": "._batches",
        "DeviceStep": "._device_step",
        "DeviceSweep": "._sweeps",
        "Evaluation": "._evaluation",
        "LoaderBatches": "._batches",
        "LoaderSweep": "._sweeps",
        "Schedule": "._schedule",
        "StackedTrainer": "._stack",
        "Sweep": "._sweeps",
        "TimedSampler": "._meters",
        "Training": "._training",
        "TrainingDiverged": "._meters",
        "WeightAverage": "._average",
        "available_optimizers": "._optimizers",
        "create_optimizer": "._optimizers",
        "evaluate": "._evaluate",
        "evaluation_steps": "._schedule",
        "optimizer_options": "._optimizers",
        "select_device": "._device",
    },
)
