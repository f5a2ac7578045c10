from __future__ import annotations

import pytest
import torch

from hpo_mab import _machine
from hpo_mab._errors import ArgumentError
from hpo_mab.workers import Later, room, worker_devices


def test_cuda_devices_are_assigned_round_robin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert worker_devices(2) == ("cuda:0", "cuda:1")
    assert worker_devices(1, device="cuda:1") == ("cuda:1",)
    assert worker_devices(3, device="cpu") == ("cpu", "cpu", "cpu")
    with pytest.raises(
        ArgumentError, match=r"at most 2, the number of CUDA devices, got 3.*--slots"
    ):
        worker_devices(3)


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
    later = Later(device="cpu")
    assert [len(later.devices(trials=n)) for n in (0, 7, 8, 12, 1000)] == [0, 0, 1, 2, 5]
    assert [len(later.devices(trials=n, slots=10)) for n in (79, 80)] == [0, 1]
    assert len(Later(device="cpu", threads=2).devices(trials=1000)) == 2


def test_workers_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    monkeypatch.setattr(_machine, "resident_memory", lambda: 100)
    later = Later(device="cpu")
    for free, others in ((99, 0), (100, 1), (399, 3), (10_000, 5), (None, 5)):
        monkeypatch.setattr(_machine, "available_memory", lambda free=free: free)
        assert later.devices(trials=1000) == ("cpu",) * others


def test_each_card_has_one_worker_this_process_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_machine, "available_memory", lambda: None)
    assert Later().devices(trials=1000) == ("cuda:1",)
    assert Later(device="cuda:1").devices(trials=1000) == ()


def test_a_device_that_only_one_process_uses_well_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Later().devices(trials=1000) == ()
