from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from hpo_mab.storage import CurveStore, CurveWriter
from hpo_mab.training import Evaluation


def _evaluation(index: int, **changes: float | None) -> Evaluation:
    values = {
        "steps": 10 * index,
        "examples": 640 * index,
        "seconds": 0.5 * index,
        "sampler_seconds": 0.1 * index,
        "accuracy": 0.1 * index,
        "loss": 2.0 / index,
        "train_loss": 2.5 / index,
        "learning_rate": 0.1,
        "reward_rate": 0.4,
        "concentration": None,
    }
    return Evaluation(index=index, **{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CurveStore]:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'curves.db'}")
    yield CurveStore(engine)
    engine.dispose()


def test_curves_come_back_as_they_were_in_order(store: CurveStore) -> None:
    curve = [_evaluation(1), _evaluation(2), _evaluation(3, reward_rate=None, concentration=0.2)]
    for evaluation in (curve[1], curve[0], curve[2]):
        store.extend(7, [evaluation])
    store.extend(9, [_evaluation(1)])
    assert store.load([7]) == {7: tuple(curve)}
    assert set(store.load([7, 8, 9])) == {7, 9}
    assert store.load([]) == {}


def test_ids_between_the_wanted_are_left_out(store: CurveStore) -> None:
    for trial_id in (1, 2, 3):
        store.extend(trial_id, [_evaluation(1)])
    assert set(store.load([1, 3])) == {1, 3}


def test_a_trial_begun_anew_forgets_an_earlier_attempt(store: CurveStore) -> None:
    store.extend(7, [_evaluation(1), _evaluation(2)])
    store.extend(8, [_evaluation(1)])
    store.extend(7, [_evaluation(1, accuracy=0.9)], anew=True)
    assert store.load([7, 8]) == {7: (_evaluation(1, accuracy=0.9),), 8: (_evaluation(1),)}


def test_a_curve_is_written_now_and_then_and_at_the_end(store: CurveStore) -> None:
    now = [100.0]
    store.extend(7, [_evaluation(4)])
    writer = CurveWriter(store, 7, seconds=5.0, clock=lambda: now[0])
    writer.append(_evaluation(1))
    assert len(store.load([7])[7]) == 1
    now[0] += 5.0
    writer.append(_evaluation(2))
    assert store.load([7])[7] == (_evaluation(1), _evaluation(2))
    now[0] += 4.0
    writer.append(_evaluation(3))
    assert len(store.load([7])[7]) == 2
    writer.flush()
    writer.flush()
    assert store.load([7])[7] == (_evaluation(1), _evaluation(2), _evaluation(3))


def test_an_evaluation_is_stored_once(store: CurveStore) -> None:
    store.extend(7, [_evaluation(1)])
    with pytest.raises(sa.exc.IntegrityError):
        store.extend(7, [_evaluation(1)])


def test_large_budgets_do_not_overflow(store: CurveStore) -> None:
    store.extend(1, [_evaluation(1, examples=10**12, steps=10**10)])
    assert store.load([1])[1][0].examples == 10**12
