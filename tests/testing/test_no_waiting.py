"""The fixture that makes waiting for a CUDA device an error, tried without a device."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_mode_is_restored_however_the_context_ends(
    monkeypatch: pytest.MonkeyPatch,
    no_waiting: Callable[[], Any],
    error: type[BaseException] | None,
) -> None:
    mode = ["warn"]

    def set_mode(name: str) -> None:
        mode.append(name)
        if name == "error":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    expected = contextlib.nullcontext() if error is None else pytest.raises(error)
    with expected, no_waiting():
        assert mode[-1] == "error"
        if error is not None:
            raise error
    assert mode == ["warn", "error", "warn"]
