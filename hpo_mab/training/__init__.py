"""The budgeted training loop: budget, schedule, optimisers, batches; yields evaluations.

Names are imported when first used: storage and analysis need `Evaluation`, but not torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab.training._average import WeightAverage
    from hpo_mab.training._batches import (
        Batches,
        DeviceBatches,
        DeviceSweep,
        LoaderBatches,
        LoaderSweep,
        Sweep,
    )
    from hpo_mab.training._device import select_device
    from hpo_mab.training._evaluate import evaluate
    from hpo_mab.training._optimizers import create_optimizer
    from hpo_mab.training._schedule import (
        DEFAULT_AVERAGE,
        Budget,
        Evaluation,
        Schedule,
        TrainingDiverged,
    )
    from hpo_mab.training._stack import StackedTrainer
    from hpo_mab.training._training import Training

__all__ = [
    "DEFAULT_AVERAGE",
    "Batches",
    "Budget",
    "DeviceBatches",
    "DeviceSweep",
    "Evaluation",
    "LoaderBatches",
    "LoaderSweep",
    "Schedule",
    "StackedTrainer",
    "Sweep",
    "Training",
    "TrainingDiverged",
    "WeightAverage",
    "create_optimizer",
    "evaluate",
    "select_device",
]

__getattr__, __dir__ = lazy_names(__name__)
