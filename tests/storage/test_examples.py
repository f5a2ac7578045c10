"""A study's record of examples: it adds up, is copied and goes with its study."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy as sa

from hpo_mab._examples import COLUMNS, ExampleCounts, ExampleRecord
from hpo_mab.search._copy import copy_study
from hpo_mab.storage import Storage, _examples
from hpo_mab.storage._examples import ExampleWriter
from hpo_mab.storage._tables import EXAMPLES


def _counts(seed: int, *, examples: int = 50, classes: int = 3) -> ExampleCounts:
    rng = np.random.default_rng(seed)
    return ExampleCounts(
        trials=1,
        sums=rng.random((examples, len(COLUMNS)), dtype=np.float32),
        predictions=rng.integers(0, 9, (examples, classes)).astype(np.uint32),
    )


def _study(storage: Storage, name: str = "one") -> int:
    return optuna.create_study(study_name=name, storage=storage.optuna)._study_id


def _load(storage: Storage, study_id: int) -> ExampleRecord:
    record = storage.examples.load(study_id)
    assert record is not None
    return record


def _rows(storage: Storage) -> int:
    with storage.optuna.engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(EXAMPLES)) or 0


def test_sums_of_trials_add_up(anywhere: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several parts, the last of them shorter.
    monkeypatch.setattr(_examples, "_PART", 200)
    study = _study(anywhere)
    assert anywhere.examples.load(study) is None
    parts = [_counts(seed) for seed in range(3)]
    for part in parts:
        anywhere.examples.add(study, part, total=50, labels="abc")
    record = _load(anywhere, study)
    assert (record.trials, record.total, record.labels) == (3, 50, "abc")
    np.testing.assert_allclose(record.counts.sums, sum(p.sums for p in parts), rtol=1e-6)
    expected = sum(p.predictions.astype(int) for p in parts if p.predictions is not None)
    np.testing.assert_array_equal(record.counts.predictions, expected)


def test_its_size_does_not_grow_with_trials(storage: Storage) -> None:
    study = _study(storage)
    for seed in range(5):
        storage.examples.add(study, _counts(seed), total=50, labels="abc")
    assert _rows(storage) == 2


def test_a_record_without_predictions(storage: Storage) -> None:
    study = _study(storage)
    counts = ExampleCounts(trials=1, sums=_counts(0).sums, predictions=None)
    for _ in range(2):
        storage.examples.add(study, counts, total=50, labels="abc")
    record = _load(storage, study)
    assert record.counts.predictions is None
    assert record.preferred() is None
    np.testing.assert_allclose(record.counts.sums, 2 * counts.sums)


def test_sums_of_other_labels_are_not_added(storage: Storage) -> None:
    study = _study(storage)
    storage.examples.add(study, _counts(0), total=50, labels="abc")
    storage.examples.add(study, _counts(1), total=50, labels="xyz")
    assert _load(storage, study).trials == 1


def test_a_record_goes_with_its_study(anywhere: Storage) -> None:
    for name in ("one", "two"):
        anywhere.examples.add(_study(anywhere, name), _counts(0), total=50, labels="abc")
    optuna.delete_study(study_name="two", storage=anywhere.optuna)
    anywhere.examples.remove_orphans()
    assert _rows(anywhere) == 2
    # Databases give the ids of deleted studies out again.
    assert anywhere.examples.load(_study(anywhere, "three")) is None


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same database", "another database"])
def test_a_copy_has_a_separate_record(anywhere: Storage, tmp_path: Path, elsewhere: bool) -> None:
    study = _study(anywhere)
    anywhere.examples.add(study, _counts(0), total=50, labels="abc")
    target = Storage(f"sqlite:///{tmp_path / 'copy.db'}") if elsewhere else anywhere
    copy_study(anywhere, "one", target, to_name="copy")
    copied = optuna.load_study(study_name="copy", storage=target.optuna)._study_id
    np.testing.assert_array_equal(_load(target, copied).counts.sums, _counts(0).sums)
    # Trials may be added to either study alone.
    target.examples.add(copied, _counts(1), total=50, labels="abc")
    assert (_load(anywhere, study).trials, _load(target, copied).trials) == (1, 2)
    optuna.delete_study(study_name="one", storage=anywhere.optuna)
    anywhere.examples.remove_orphans()
    assert _load(target, copied).trials == 2
    target.close()


class _Sums:
    def __init__(self, counts: ExampleCounts) -> None:
        self.counts = counts

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.counts + other.counts)

    def on_host(self) -> ExampleCounts:
        return self.counts


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_writer_spends_a_hundredth_of_its_time_and_drops_what_is_tried_again(
    storage: Storage,
) -> None:
    study, clock = _study(storage), _Clock()

    @contextlib.contextmanager
    def slow() -> Iterator[None]:
        clock.now += 2.0
        yield

    writer = ExampleWriter(storage.examples, study, total=50, labels="abc", lock=slow, clock=clock)
    writer.offer(1, _Sums(_counts(0)))
    writer.flush_if_due()
    assert storage.examples.load(study) is None
    writer.take_or_drop(1, take=True)
    writer.flush_if_due()
    assert _load(storage, study).trials == 1
    for trial, counts in ((2, True), (3, False), (4, True)):
        writer.offer(trial, _Sums(_counts(trial)))
        writer.take_or_drop(trial, take=counts)
    clock.now += 199.0
    writer.flush_if_due()
    assert _load(storage, study).trials == 1
    clock.now += 1.0
    writer.flush_if_due()
    writer.flush()
    record = _load(storage, study)
    assert record.trials == 3
    expected = sum(_counts(seed).sums for seed in (0, 2, 4))
    np.testing.assert_allclose(record.counts.sums, expected, rtol=1e-6)


def test_sums_of_a_deleted_study_are_dropped(anywhere: Storage) -> None:
    study = _study(anywhere)
    optuna.delete_study(study_name="one", storage=anywhere.optuna)
    anywhere.examples.add(study, _counts(0), total=50, labels="abc")
    assert _rows(anywhere) == 0
    # On SQLite it gets the same id.
    assert anywhere.examples.load(_study(anywhere, "two")) is None


@pytest.mark.parametrize("continued", ["one", "two"])
def test_a_copy_by_optuna_and_its_original_have_separate_records_from_the_next_sums(
    anywhere: Storage, continued: str
) -> None:
    study = _study(anywhere)
    for seed in range(2):
        anywhere.examples.add(study, _counts(seed), total=50, labels="abc")
    assert anywhere.examples.freeze(study, trials=2) is not None
    optuna.copy_study(
        from_study_name="one",
        from_storage=anywhere.optuna,
        to_storage=anywhere.optuna,
        to_study_name="two",
    )
    copy = optuna.load_study(study_name="two", storage=anywhere.optuna)._study_id
    assert _load(anywhere, copy).trials == 2
    longer, other = (study, copy) if continued == "one" else (copy, study)
    anywhere.examples.add(longer, _counts(2), total=50, labels="abc")
    assert (_load(anywhere, longer).trials, _load(anywhere, other).trials) == (3, 2)
    frozen = anywhere.examples.kept_record(longer)
    assert frozen is not None
    assert frozen.trials == 2
