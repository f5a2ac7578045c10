"""The command line, ``hpo-mab``. Heavy imports happen inside the commands."""

from hpo_mab.cli._main import main

__all__ = ["main"]
