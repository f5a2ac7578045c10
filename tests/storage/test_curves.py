from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from made_up import point
from tools import statements_of

from hpo_mab.search._trial_record import TrialRecord
from hpo_mab.storage import Storage, TrialRun, _curves
from hpo_mab.storage._curves import CurveStore
from hpo_mab.training import Evaluation


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """A database whose trials have the ids 1 to 9."""
    opened = Storage(str(tmp_path / "studies.db"))
    _make_trials(opened, 9)
    yield opened
    opened.close()


@pytest.fixture
def store(storage: Storage) -> CurveStore:
    return storage.curves


def _make_trials(storage: Storage, count: int, name: str = "study") -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=storage.optuna)
    for _ in range(count):
        study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING))
    return study


def _extend(
    store: CurveStore, trial_id: int, points: Sequence[Evaluation], *, restart: bool = False
) -> None:
    store.extend([(trial_id, points, restart)])


def test_curves_come_back_as_they_were_in_order(store: CurveStore) -> None:
    averaged = dataclasses.replace(point(2), averaged=True)
    curve = [point(1), averaged, point(3, reward_rate=None, concentration=0.2)]
    for evaluation in (curve[1], curve[0], curve[2]):
        _extend(store, 7, [evaluation])
    _extend(store, 9, [point(1)])
    assert store.load([7]) == {7: tuple(curve)}
    assert set(store.load([7, 8, 9])) == {7, 9}
    assert store.load([]) == {}


@pytest.mark.parametrize("listed", [1, 2])
def test_ids_between_the_wanted_are_left_out(
    storage: Storage, store: CurveStore, monkeypatch: pytest.MonkeyPatch, listed: int
) -> None:
    other = _make_trials(storage, 1, "other").get_trials()[0]._trial_id
    for trial_id in (1, 2, 3, other):
        _extend(store, trial_id, [point(1)])
    monkeypatch.setattr(_curves, "_CHUNK", listed)
    (statements := statements_of(store._engine)).clear()
    assert set(store.load([1, 3])) == {1, 3}
    # The rows of few ids are read without those between them.
    assert [" BETWEEN " in statement for statement in statements] == [listed == 1]
    # Those of another study are not read.
    monkeypatch.setattr(_curves, "_CHUNK", 1)
    assert set(store.load([1, 3, other])) == {1, 3}


def test_a_trial_begun_again_replaces_the_curve_of_an_earlier_attempt(store: CurveStore) -> None:
    _extend(store, 7, [point(1), point(2)])
    _extend(store, 8, [point(1)])
    _extend(store, 7, [point(1, accuracy=0.9)], restart=True)
    assert store.load([7, 8]) == {7: (point(1, accuracy=0.9),), 8: (point(1),)}


@pytest.mark.parametrize("listed", [1, 500])
def test_curves_of_several_trials_are_begun_together(
    store: CurveStore, monkeypatch: pytest.MonkeyPatch, listed: int
) -> None:
    for trial_id in (1, 2):
        _extend(store, trial_id, [point(1)])
    monkeypatch.setattr(_curves, "_CHUNK", listed)
    (statements := statements_of(store._engine)).clear()
    again = (point(1, accuracy=0.9),)
    # One curve continues, one begins again, two are new, and one trial has been deleted.
    parts = [(1, (point(2),), False), *((number, again, True) for number in (2, 3, 4, 77))]
    store.extend(parts)
    done = [statement.split()[0] for statement in statements]
    assert listed == 1 or done == ["SELECT", "UPDATE", "INSERT", "INSERT"]
    monkeypatch.undo()
    curves = {1: (point(1), point(2)), 2: again, 3: again, 4: again}
    assert store.load(range(1, 10)) == curves


def test_a_curve_is_written_now_and_then_and_at_the_end(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("hpo_mab.search._trial_record.time", clock)
    study = optuna.load_study(study_name="study", storage=storage.optuna)
    trial = optuna.trial.Trial(study, 1)
    store, number = storage.curves, trial._trial_id
    _extend(store, number, [point(4)])
    record = TrialRecord(trial, store)
    record.add(point(1))
    assert not record.is_due
    assert len(store.load([number])[number]) == 1
    now[0] += 5.0
    assert record.is_due
    record.add(point(2))
    assert store.load([number])[number] == (point(1), point(2))
    now[0] += 4.0
    record.add(point(3))
    assert not record.is_due
    assert len(store.load([number])[number]) == 2
    record.flush()
    record.flush()
    assert store.load([number])[number] == (point(1), point(2), point(3))


def test_an_evaluation_is_stored_once(store: CurveStore) -> None:
    _extend(store, 7, [point(1)])
    with pytest.raises(sa.exc.IntegrityError):
        _extend(store, 7, [point(1)])


def test_every_database_keeps_what_a_curve_holds(anywhere: Storage) -> None:
    study = _make_trials(anywhere, 2)
    odd = point(2, loss=math.nan, learning_rate=math.nan, reward_rate=None)
    _extend(anywhere.curves, 1, [point(1), odd])
    _extend(anywhere.curves, 2, [dataclasses.replace(point(1), averaged=True)])
    loaded = anywhere.curves.load([1, 2])
    assert repr(loaded[1]) == repr((point(1), odd))
    assert loaded[2][0].averaged
    assert anywhere.curves.spent(study._study_id) == (30 * 3, pytest.approx(0.5 * 3))


def test_an_infinite_loss_is_no_error(anywhere: Storage) -> None:
    _make_trials(anywhere, 1)
    _extend(anywhere.curves, 1, [point(1, loss=math.inf)])
    assert not math.isfinite(anywhere.curves.load([1])[1][0].loss)


def test_a_trial_with_the_id_of_a_deleted_one_has_no_curve(anywhere: Storage) -> None:
    _make_trials(anywhere, 3)
    _extend(anywhere.curves, 2, [point(1)])
    optuna.delete_study(study_name="study", storage=anywhere.optuna)
    study = _make_trials(anywhere, 3)
    ids = [trial._trial_id for trial in study.get_trials()]
    if anywhere.is_sqlite:
        assert ids == [1, 2, 3], "the ids are those of the deleted trials"
    assert anywhere.curves.load(ids) == {}
    assert anywhere.curves.spent(study._study_id) == (0, 0.0)


def test_evaluations_of_a_deleted_trial_are_dropped(anywhere: Storage) -> None:
    _make_trials(anywhere, 2)
    optuna.delete_study(study_name="study", storage=anywhere.optuna)
    # As a worker does that has not noticed it yet.
    for restart in (True, False):
        _extend(anywhere.curves, 2, [point(1)], restart=restart)
    study = _make_trials(anywhere, 2)
    ids = [trial._trial_id for trial in study.get_trials()]
    assert anywhere.curves.load(ids) == {}
    with anywhere.optuna.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM hpo_mab_curves")) == 0


def test_a_copy_in_the_same_database_has_the_curves(anywhere: Storage) -> None:
    study = _make_trials(anywhere, 2)
    _extend(anywhere.curves, 1, [point(1), point(2)])
    optuna.copy_study(
        from_study_name="study",
        from_storage=anywhere.optuna,
        to_storage=anywhere.optuna,
        to_study_name="copy",
    )
    copy = optuna.load_study(study_name="copy", storage=anywhere.optuna)
    copied = copy.get_trials()[0]._trial_id
    assert anywhere.curves.load([copied]) == {copied: (point(1), point(2))}
    # Changes of the copy do not change the original.
    _extend(anywhere.curves, copied, [point(1, accuracy=0.9)], restart=True)
    assert anywhere.curves.spent(copy._study_id)[0] == 30
    assert anywhere.curves.spent(study._study_id)[0] == 2 * 30


def test_a_retry_by_optuna_does_not_count_the_lost_trial_again(store: CurveStore) -> None:
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{store._engine.url.database}")
    _extend(store, 1, [point(1), point(2)])
    lost = study.get_trials()[0]
    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            system_attrs={"failed_trial": 0, **lost.system_attrs},
        )
    )
    assert set(store.load([1, 10])) == {1}
    assert store.spent(study._study_id)[0] == 2 * 30
    _extend(store, 10, [point(1)], restart=True)
    assert set(store.load([1, 10])) == {1, 10}
    assert store.spent(study._study_id)[0] == 3 * 30


def test_only_what_no_trial_refers_to_is_removed(anywhere: Storage) -> None:
    _make_trials(anywhere, 2)
    for trial_id in (1, 2):
        _extend(anywhere.curves, trial_id, [point(1)])
    optuna.delete_study(study_name="study", storage=anywhere.optuna)
    other = _make_trials(anywhere, 1, "other").get_trials()[0]._trial_id
    _extend(anywhere.curves, other, [point(1)])
    statements = statements_of(anywhere.optuna.engine)
    anywhere.curves.remove_orphans()
    # PostgreSQL searches a long list for each curve.
    assert not any("NOT IN" in statement for statement in statements)
    with anywhere.optuna.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM hpo_mab_curves")) == 1
    assert set(anywhere.curves.load([other])) == {other}


def test_large_budgets_do_not_overflow(store: CurveStore) -> None:
    _extend(store, 1, [point(1, examples=10**12, steps=10**10)])
    assert store.load([1])[1][0].examples == 10**12


def test_a_pruned_trial_without_its_curve_has_no_known_cost() -> None:
    trial = TrialRun(
        number=0,
        slot=0,
        state="pruned",
        params={},
        value=None,
        paired=False,
        curve=(),
        attrs={"hpo_mab:examples": 100},
    )
    assert trial.lacks_curve
