from __future__ import annotations

import functools

import pytest
import torch

from hpo_mab import _machine
from hpo_mab._errors import ArgumentError
from hpo_mab.workers._room import later_devices, room, worker_devices


def test_each_worker_has_a_cuda_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert worker_devices(2) == ("cuda:0", "cuda:1")
    assert worker_devices(1, device="cuda:1") == ("cuda:1",)
    assert worker_devices(3, device="cpu") == ("cpu", "cpu", "cpu")
    for device, most in (("auto", 2), ("cuda:1", 1)):
        expected = rf"at most {most}, the number of CUDA devices of --device {device}, got 3"
        with pytest.raises(ArgumentError, match=rf"{expected}.*--slots"):
            worker_devices(3, device=device)


def test_room_is_made_for_a_trial_a_core_or_a_worker_a_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    assert [room(device="cpu", threads=threads) for threads in (1, 2, 4, 8)] == [6, 3, 1, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert room() == 2
    assert room(device="cuda:1") == 1
    assert room(device="cpu") == 6


def test_less_than_one_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least 1, got 0"):
        worker_devices(0)


def test_a_quarter_of_the_trials_left_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    monkeypatch.setattr(_machine, "available_memory", lambda: None)
    later = functools.partial(later_devices, device="cpu")
    assert [len(later(trials=n)) for n in (0, 7, 8, 12, 1000)] == [0, 0, 1, 2, 5]
    assert [len(later(trials=n, slots=10)) for n in (79, 80)] == [0, 1]
    assert len(later(trials=1000, threads=2)) == 2


def test_workers_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    monkeypatch.setattr(_machine, "resident_memory", lambda: 100)
    for free, others in ((99, 0), (100, 1), (399, 3), (10_000, 5), (None, 5)):
        monkeypatch.setattr(_machine, "available_memory", lambda free=free: free)
        assert later_devices(trials=1000, device="cpu") == ("cpu",) * others


def test_each_card_has_one_worker_this_process_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_machine, "available_memory", lambda: None)
    assert later_devices(trials=1000) == ("cuda:1",)
    assert later_devices(trials=1000, device="cuda:1") == ()


def test_a_device_that_only_one_process_uses_well_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert later_devices(trials=1000) == ()
