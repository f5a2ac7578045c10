"""Studies and learning curves in SQL, in one database with Optuna's tables."""

from hpo_mab.storage._curves import CurveStore, CurveWriter
from hpo_mab.storage._examples import FIRST_TRIALS, ExampleStore, ExampleWriter
from hpo_mab.storage._open import (
    DEFAULT_URL,
    RETRIES,
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
