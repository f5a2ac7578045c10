"""What the Optuna dashboard shows of a study: notes, figures, learning curves to download."""

from hpo_mab.dashboard._publish import publish_comparison, publish_study, refresh
from hpo_mab.dashboard._serve import application, comparison_path

__all__ = [
    "application",
    "comparison_path",
    "publish_comparison",
    "publish_study",
    "refresh",
]
