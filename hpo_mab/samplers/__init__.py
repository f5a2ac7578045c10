"""Batch samplers: each draws a batch of indices and learns from its losses.

`create` makes one by name, `available` lists the names. Classes are imported when first used, so
that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names
from hpo_mab.samplers._registry import available, create

if TYPE_CHECKING:
    from hpo_mab.samplers._base import BatchSampler, CommonArguments
    from hpo_mab.samplers._feedback import Draw, FeedbackError
    from hpo_mab.samplers._importance import AdamBSSampler, GradNormSampler
    from hpo_mab.samplers._linear import ContextualSampler, ImponSampler
    from hpo_mab.samplers._mab import MABSampler
    from hpo_mab.samplers._pass import CSGDSampler, PredictionVarianceSampler, PSGDSampler
    from hpo_mab.samplers._selective import CurriculumSampler, HardMiningSampler, InfoBatchSampler
    from hpo_mab.samplers._streams import UniformSampler

__all__ = [
    "AdamBSSampler",
    "BatchSampler",
    "CSGDSampler",
    "CommonArguments",
    "ContextualSampler",
    "CurriculumSampler",
    "Draw",
    "FeedbackError",
    "GradNormSampler",
    "HardMiningSampler",
    "ImponSampler",
    "InfoBatchSampler",
    "MABSampler",
    "PSGDSampler",
    "PredictionVarianceSampler",
    "UniformSampler",
    "available",
    "create",
]

__getattr__, __dir__ = lazy_names(__name__)
