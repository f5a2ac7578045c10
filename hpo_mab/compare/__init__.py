"""Compare arms, paired by seed: running them, statistics, figures, reports.

What runs studies is imported on first use: importing this package loads neither torch nor Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names
from hpo_mab.compare._answers import Answer, answers, caveats, verdict
from hpo_mab.compare._html import report_html
from hpo_mab.compare._record_file import ComparisonRuns, comparison_record, read_record
from hpo_mab.compare._records import (
    ArmSummary,
    ComparisonSummary,
    Contrast,
    CostToTarget,
    FidelityRow,
    PairedRow,
)
from hpo_mab.compare._summary import summarise

if TYPE_CHECKING:
    from hpo_mab.compare._evidence import evidence_of
    from hpo_mab.compare._runner import run_comparison
    from hpo_mab.compare._stored import stored_comparison

__all__ = [
    "Answer",
    "ArmSummary",
    "ComparisonRuns",
    "ComparisonSummary",
    "Contrast",
    "CostToTarget",
    "FidelityRow",
    "PairedRow",
    "answers",
    "caveats",
    "comparison_record",
    "evidence_of",
    "read_record",
    "report_html",
    "run_comparison",
    "stored_comparison",
    "summarise",
    "verdict",
]

__getattr__, __dir__ = lazy_names(__name__)
