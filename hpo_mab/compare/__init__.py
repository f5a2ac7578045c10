"""Compare arms, paired by seed: running them, statistics, figures, reports.

What runs studies is imported on first use: analysis alone needs neither torch nor Optuna.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpo_mab._environment import environment
from hpo_mab.compare._incumbent import IncumbentCurve, incumbent_curve
from hpo_mab.compare._record_file import ComparisonRecord, read_record
from hpo_mab.compare._records import (
    ArmSummary,
    ComparisonSummary,
    Contrast,
    CostToTarget,
    Currency,
    FidelityRow,
    PairedRow,
)
from hpo_mab.compare._report import report_html
from hpo_mab.compare._summarise import summarise
from hpo_mab.compare._table import comparison_tables
from hpo_mab.compare._verdict import outcome, verdict

if TYPE_CHECKING:
    from hpo_mab.compare._arms import arms_of
    from hpo_mab.compare._evidence import evidence_of
    from hpo_mab.compare._false_prunings import FalsePrunings, false_prunings
    from hpo_mab.compare._replay import CurveTable, Replay, Saving, replay, saving
    from hpo_mab.compare._runner import ComparisonRuns, retrain, run_comparison
    from hpo_mab.compare._stored import stored_comparison

__all__ = [
    "ArmSummary",
    "ComparisonRecord",
    "ComparisonRuns",
    "ComparisonSummary",
    "Contrast",
    "CostToTarget",
    "Currency",
    "CurveTable",
    "FalsePrunings",
    "FidelityRow",
    "IncumbentCurve",
    "PairedRow",
    "Replay",
    "Saving",
    "arms_of",
    "comparison_tables",
    "environment",
    "evidence_of",
    "false_prunings",
    "incumbent_curve",
    "outcome",
    "read_record",
    "replay",
    "report_html",
    "retrain",
    "run_comparison",
    "saving",
    "stored_comparison",
    "summarise",
    "verdict",
]

_MODULES = {
    "ComparisonRuns": "hpo_mab.compare._runner",
    "CurveTable": "hpo_mab.compare._replay",
    "FalsePrunings": "hpo_mab.compare._false_prunings",
    "Replay": "hpo_mab.compare._replay",
    "Saving": "hpo_mab.compare._replay",
    "arms_of": "hpo_mab.compare._arms",
    "evidence_of": "hpo_mab.compare._evidence",
    "false_prunings": "hpo_mab.compare._false_prunings",
    "replay": "hpo_mab.compare._replay",
    "retrain": "hpo_mab.compare._runner",
    "run_comparison": "hpo_mab.compare._runner",
    "saving": "hpo_mab.compare._replay",
    "stored_comparison": "hpo_mab.compare._stored",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
