"""``hpo-mab worker``."""

from __future__ import annotations

import signal
from typing import Any

import pytest


def test_a_worker_takes_signals_before_it_watches_its_input(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[Any] = []
    watch = "hpo_mab.cli._worker.interrupt_at_eof"
    monkeypatch.setattr(watch, lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
    cli.refusal("worker", "none", "--until-eof")
    assert handlers == [signal.default_int_handler]
