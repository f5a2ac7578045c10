"""What the Optuna dashboard shows of a study: notes, figures, learning curves to download."""

from hpo_mab.dashboard._serve import application

__all__ = ["application"]
