"""``python -m hpo_mab`` is ``hpo-mab``."""

from hpo_mab.cli import main

main()
