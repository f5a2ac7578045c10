"""The benchmark of the storage runs its empty trials."""

from __future__ import annotations

import queue
from pathlib import Path

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


def test_a_study_of_finished_trials_is_continued(postgres_url: str) -> None:
    figures, _ = storage_load.continued(postgres_url, 60)
    assert figures["finished_trials"] == 60
    assert figures["further"] == 40
    assert figures["cpu_ms_per_trial"] > 0
