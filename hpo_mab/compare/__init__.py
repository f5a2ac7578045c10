"""Compare arms, paired by seed: running them, statistics, figures, reports.

What runs studies is imported on first use: analysis alone needs neither torch nor Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._environment import environment
from hpo_mab._lazy import lazy_names
from hpo_mab.compare._incumbent import IncumbentCurve, incumbent_curve
from hpo_mab.compare._record_file import ComparisonRecord, comparison_record, read_record
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
from hpo_mab.compare._verdict import Question, outcome, verdict

if TYPE_CHECKING:
    from hpo_mab.compare._arms import arms_of
    from hpo_mab.compare._curve_table import CurveTable
    from hpo_mab.compare._evidence import evidence_of
    from hpo_mab.compare._false_prunings import FalsePrunings, false_prunings
    from hpo_mab.compare._runner import ComparisonRuns, retrain, run_comparison
    from hpo_mab.compare._simulation import Saving, Simulation, saving, simulate
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
    "Question",
    "Saving",
    "Simulation",
    "arms_of",
    "comparison_record",
    "comparison_tables",
    "environment",
    "evidence_of",
    "false_prunings",
    "incumbent_curve",
    "outcome",
    "read_record",
    "report_html",
    "retrain",
    "run_comparison",
    "saving",
    "simulate",
    "stored_comparison",
    "summarise",
    "verdict",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ComparisonRuns": "._runner",
        "CurveTable": "._curve_table",
        "FalsePrunings": "._false_prunings",
        "Saving": "._simulation",
        "Simulation": "._simulation",
        "arms_of": "._arms",
        "evidence_of": "._evidence",
        "false_prunings": "._false_prunings",
        "retrain": "._runner",
        "run_comparison": "._runner",
        "saving": "._simulation",
        "simulate": "._simulation",
        "stored_comparison": "._stored",
    },
)
