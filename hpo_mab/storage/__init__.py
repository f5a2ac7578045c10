"""Studies and learning curves in SQL, in one database with Optuna's tables.

Names are imported when first used: a pruner in a user's study needs neither torch nor SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_mab._registry import lazy_names

if TYPE_CHECKING:
    from hpo_mab._plan import RETRIES
    from hpo_mab.storage._curves import CurveStore, CurveWriter
    from hpo_mab.storage._examples import FIRST_TRIALS, ExampleStore, ExampleWriter
    from hpo_mab.storage._open import (
        STORAGE_ERRORS,
        Storage,
        files_folder,
        retry_callback,
    )
    from hpo_mab.storage._process import (
        heartbeat,
        hold,
        is_gone,
        is_held,
        is_here,
        release,
        this_process,
    )
    from hpo_mab.storage._runs import (
        Definition,
        MissingCurvesWarning,
        StudyRun,
        TrialRun,
        open_study,
        read_run,
        study_names,
    )

#: The database of a command or `Storage` that names none.
DEFAULT_URL = "sqlite:///hpo_mab.db"

__all__ = [
    "DEFAULT_URL",
    "FIRST_TRIALS",
    "RETRIES",
    "STORAGE_ERRORS",
    "CurveStore",
    "CurveWriter",
    "Definition",
    "ExampleStore",
    "ExampleWriter",
    "MissingCurvesWarning",
    "Storage",
    "StudyRun",
    "TrialRun",
    "files_folder",
    "heartbeat",
    "hold",
    "is_gone",
    "is_held",
    "is_here",
    "open_study",
    "read_run",
    "release",
    "retry_callback",
    "study_names",
    "this_process",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CurveStore": "._curves",
        "CurveWriter": "._curves",
        "Definition": "._runs",
        "ExampleStore": "._examples",
        "ExampleWriter": "._examples",
        "FIRST_TRIALS": "._examples",
        "MissingCurvesWarning": "._runs",
        "RETRIES": "hpo_mab._plan",
        "STORAGE_ERRORS": "._open",
        "Storage": "._open",
        "StudyRun": "._runs",
        "TrialRun": "._runs",
        "files_folder": "._open",
        "heartbeat": "._process",
        "hold": "._process",
        "is_gone": "._process",
        "is_held": "._process",
        "is_here": "._process",
        "open_study": "._runs",
        "read_run": "._runs",
        "release": "._process",
        "retry_callback": "._open",
        "study_names": "._runs",
        "this_process": "._process",
    },
)
