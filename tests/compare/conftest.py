from __future__ import annotations

import pytest
from made_up import comparison

from hpo_mab.compare import ComparisonSummary, summarise
from hpo_mab.storage import StudyRun


@pytest.fixture(scope="session")
def runs() -> list[StudyRun]:
    """A bandit that is ahead by half again, 5 seeds."""
    return comparison()


@pytest.fixture(scope="session")
def summary(runs: list[StudyRun]) -> ComparisonSummary:
    return summarise(runs)
