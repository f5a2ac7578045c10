"""Studies and learning curves in SQL, in one database with Optuna's tables.

Names are imported when first used: a pruner in a user's study needs neither torch nor SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab.storage._open import Storage
    from hpo_mab.storage._runs import (
        StudyRun,
        TrialRun,
        open_study,
        read_run,
        study_names,
    )

#: The database of a command or `Storage` that names none.
DEFAULT_URL = "sqlite:///hpo_mab.db"

__all__ = [
    "Storage",
    "StudyRun",
    "TrialRun",
    "open_study",
    "read_run",
    "study_names",
]

__getattr__, __dir__ = lazy_names(__name__)
