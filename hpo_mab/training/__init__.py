"""Training on a budget: one network, or many as one stack; yields evaluations.

Names are imported when first used: storage and analysis need `Evaluation`, but not torch.

The modules:

Trainings
    ``_training`` trains one network, ``_stack`` many. ``_schedule`` has budget, learning rate and
    learning curve of both.
A step
    ``_device_step`` is that of one network. ``_stack_step`` is that of a stack: ``_stack_batches``
    has its batches, ``_rows`` its tensors. ``_captured`` replays either from a CUDA graph.
Parts
    ``_batches`` reads examples, ``_optimizers`` makes optimisers, ``_average`` averages weights.
    ``_evaluate`` measures accuracy and loss, ``_tally`` adds up the visits of examples.
    ``_device`` has precision, random states and memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab.training._average import WeightAverage
    from hpo_mab.training._batches import (
        DeviceBatches,
        DeviceSweep,
        LoaderBatches,
        LoaderSweep,
    )
    from hpo_mab.training._device import select_device
    from hpo_mab.training._evaluate import evaluate
    from hpo_mab.training._optimizers import create_optimizer
    from hpo_mab.training._schedule import (
        Budget,
        Evaluation,
        TrainingDiverged,
    )
    from hpo_mab.training._stack import StackedTrainer
    from hpo_mab.training._training import Training

__all__ = [
    "Budget",
    "DeviceBatches",
    "DeviceSweep",
    "Evaluation",
    "LoaderBatches",
    "LoaderSweep",
    "StackedTrainer",
    "Training",
    "TrainingDiverged",
    "WeightAverage",
    "create_optimizer",
    "evaluate",
    "select_device",
]

__getattr__, __dir__ = lazy_names(__name__)
