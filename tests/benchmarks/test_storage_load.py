"""The benchmark of the storage runs its empty trials."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
import storage_load

from hpo_mab.storage import Storage, read_run


def test_empty_trials_run_to_their_end(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage_load.make_study(url, "load", trials=2)
    costs: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
    storage_load._work(url, "load", costs)
    _, errors = costs.get()
    assert errors == 0
    storage = Storage(url)
    trials = read_run(storage, "load").trials
    storage.close()
    assert [(trial.state, len(trial.curve)) for trial in trials] == [("complete", 8)] * 2


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_study_of_finished_trials_is_continued(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    figures, _ = storage_load.continued(url, 60)
    assert figures["finished_trials"] == 60
    assert figures["further"] == 40
    assert figures["cpu_ms_per_trial"] > 0


def test_a_large_study_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["storage_load.py", "read"])
    monkeypatch.setattr(storage_load, "read", lambda _, trials: ({}, trials == 10_000))
    with pytest.raises(SystemExit) as ended:
        storage_load.main()
    assert not ended.value.code
