from __future__ import annotations

import pytest


@pytest.fixture(params=["host", "device"])
def engine_kind(request: pytest.FixtureRequest) -> str:
    """Either engine, on the CPU."""
    kind: str = request.param
    return kind
