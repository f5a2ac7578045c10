"""Studies and learning curves in SQL, beside Optuna's own tables."""

from hpo_mab.storage._beside import folder_beside
from hpo_mab.storage._curve_writer import CurveWriter
from hpo_mab.storage._curves import CurveStore
from hpo_mab.storage._definition import Definition
from hpo_mab.storage._heartbeat import heartbeat, hold, is_held, release
from hpo_mab.storage._open import DEFAULT_URL, RETRIES, STORAGE_ERRORS, Storage, retry_callback
from hpo_mab.storage._process import is_gone, is_here, this_process
from hpo_mab.storage._read import MissingCurvesWarning, open_study, read_run, study_names
from hpo_mab.storage._runs import StudyRun, TrialRun

__all__ = [
    "DEFAULT_URL",
    "RETRIES",
    "STORAGE_ERRORS",
    "CurveStore",
    "CurveWriter",
    "Definition",
    "MissingCurvesWarning",
    "Storage",
    "StudyRun",
    "TrialRun",
    "folder_beside",
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
