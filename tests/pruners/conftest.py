from __future__ import annotations

from collections.abc import Callable

import pytest

from hpo_mab.advantage import Estimate, Evidence, Rung


def _known(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, n=12)


@pytest.fixture
def evidence() -> Callable[[float], Evidence]:
    """Makes evidence over 8 steps of an acceleration that keeps fidelity; 1 moves nothing."""

    def make(factor: float) -> Evidence:
        budgets = [step / 8 for step in range(1, 9)]
        rungs = []
        for budget in budgets:
            early = next(one for one in budgets if one * factor >= budget or one == budget)
            rungs.append(
                Rung(
                    budget=budget,
                    decided_at=early,
                    equivalent=early * factor,
                    fidelity=_known(0.0) if early < budget else None,
                    refused=None if early < budget else "advantage",
                )
            )
        return Evidence(
            budgets=tuple(budgets),
            advantage=(_known(factor - 1.0),) * 8,
            acceleration=(_known(factor),) * 8,
            fidelity=(_known(0.0),) * 8,
            rungs=tuple(rungs),
            pairs=12,
            margin=0.1,
            source="test",
        )

    return make
