"""What `LeanStorage` writes and reads is what Optuna's own storage writes and reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_mab.storage import Storage, _lean

MAX = [StudyDirection.MAXIMIZE]


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    opened = Storage(database_url)
    yield opened
    opened.close()


@pytest.fixture
def plain(storage: Storage) -> Iterator[RDBStorage]:
    """Optuna's own storage on the same database."""
    storage.optuna.get_all_studies()
    opened = RDBStorage(storage.secret_url)
    yield opened
    opened.remove_session()
    opened.engine.dispose()


def _trials() -> list[FrozenTrial]:
    distributions = {
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "width": IntDistribution(8, 64, step=8),
        "kind": CategoricalDistribution(["sgd", None, 3, True]),
    }
    make = optuna.create_trial
    return [
        make(
            state=TrialState.COMPLETE,
            value=0.1 + 0.2,
            params={"lr": 0.1, "width": 16, "kind": None},
            distributions=distributions,
            user_attrs={"slot": 3, "deep": {"a": [1, None, "ü"]}},
            system_attrs={"hpo_mab:worker": "x:1:2"},
            intermediate_values={1: 0.25, 2: math.inf, 5: -math.inf, 4: math.nan},
        ),
        make(state=TrialState.COMPLETE, value=math.inf),
        make(state=TrialState.PRUNED, value=-math.inf, intermediate_values={1: 0.5}),
        make(state=TrialState.FAIL, user_attrs={"reason": 'it "broke"'}),
        make(state=TrialState.WAITING, system_attrs={"fixed_params": {"lr": 0.5}}),
        make(state=TrialState.RUNNING),
    ]


def _plainly(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """Trials as values that can be compared: NaN equals itself in text.

    Parameters keep their order; that of attributes and reports Optuna leaves to the database.
    """
    loose = ("_user_attrs", "_system_attrs", "intermediate_values")
    return [
        {k: repr(sorted(v.items()) if k in loose else v) for k, v in vars(trial).items()}
        for trial in trials
    ]


def test_both_read_the_same(storage: Storage, plain: RDBStorage) -> None:
    study = storage.optuna.create_new_study(MAX, "study")
    other = storage.optuna.create_new_study(MAX, "other")
    for trial in _trials():
        storage.optuna.create_new_trial(study, trial)
        plain.create_new_trial(other, trial)
    for one in (study, other):
        expected = _plainly(plain.get_all_trials(one))
        assert len(expected) == len(_trials())
        assert _plainly(storage.optuna.get_all_trials(one)) == expected
        ids = [trial._trial_id for trial in plain.get_all_trials(one)]
        assert _plainly([storage.optuna.get_trial(i) for i in ids]) == expected


def test_two_objectives_stay_in_order(storage: Storage, plain: RDBStorage) -> None:
    study = plain.create_new_study([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE], "two")
    plain.create_new_trial(study, optuna.create_trial(values=[0.5, math.inf]))
    assert storage.optuna.get_all_trials(study)[0].values == [0.5, math.inf]


@pytest.mark.parametrize("listed", [500, 1])
def test_any_part_of_the_trials_is_read_alike(
    storage: Storage, plain: RDBStorage, listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lean, "_LISTED", listed)
    studies = [plain.create_new_study(MAX, name) for name in ("one", "two")]
    # The studies' trials lie between one another.
    ids = [plain.create_new_trial(study, trial) for trial in _trials() for study in studies][::2]
    for states in (None, (TrialState.COMPLETE,), (TrialState.WAITING, TrialState.RUNNING)):
        for included in (set(), {ids[0], ids[2]}, {ids[1]}):
            for after in (-1, ids[2], ids[-1]):
                given = (studies[0], states, included, after)
                expected = _plainly(plain._get_trials(*given))
                assert _plainly(storage.optuna._get_trials(*given)) == expected


def test_both_write_the_same(storage: Storage, plain: RDBStorage) -> None:
    study = plain.create_new_study(MAX, "study")
    writers: list[RDBStorage] = [plain, storage.optuna]
    ids = [plain.create_new_trial(study) for _ in writers]
    for trial_id, writer in zip(ids, writers, strict=True):
        for step, value in ((1, 0.5), (2, math.nan), (7, math.inf), (1, 0.75)):
            writer.set_trial_intermediate_value(trial_id, step, value)
        for value in (1, {"deep": [None, "ü", 1e300]}):
            writer.set_trial_user_attr(trial_id, "note", value)
            writer.set_trial_system_attr(trial_id, "note", value)
    first, second = _plainly(plain.get_all_trials(study))
    for attribute in ("_user_attrs", "_system_attrs", "intermediate_values"):
        assert first[attribute] == second[attribute]
    assert plain.get_trial(ids[1]).intermediate_values[1] == 0.75


def test_a_finished_trial_stays_as_it_is(storage: Storage) -> None:
    lean = storage.optuna
    trial_id = lean.create_new_trial(lean.create_new_study(MAX, "study"))
    lean.set_trial_state_values(trial_id, TrialState.FAIL)
    writes: list[Callable[[int], None]] = [
        lambda i: lean.set_trial_intermediate_value(i, 1, 0.5),
        lambda i: lean.set_trial_user_attr(i, "a", 1),
        lambda i: lean.set_trial_system_attr(i, "a", 1),
    ]
    for write in writes:
        with pytest.raises(UpdateFinishedTrialError):
            write(trial_id)
        with pytest.raises(KeyError):
            write(trial_id + 1)
    trial = lean.get_trial(trial_id)
    assert (trial.intermediate_values, trial.user_attrs, trial.system_attrs) == ({}, {}, {})
    with pytest.raises(KeyError):
        lean.get_trial(trial_id + 1)
    with pytest.raises(KeyError):
        lean.get_all_trials(77)


def test_signs_of_life_are_optunas(storage: Storage, plain: RDBStorage) -> None:
    trial_id = plain.create_new_trial(plain.create_new_study(MAX, "study"))
    table = sa.text("SELECT count(*), max(heartbeat), CURRENT_TIMESTAMP FROM trial_heartbeats")
    for _ in range(2):
        storage.optuna.record_heartbeat(trial_id)
    plain.record_heartbeat(trial_id)
    storage.optuna.record_heartbeat(trial_id)
    with storage.optuna.engine.connect() as connection:
        count, beat, now = connection.execute(table).one()
    assert count == 1
    assert str(beat)[:16] <= str(now)[:16]
    assert storage.optuna._get_stale_trial_ids(1) == []


# On MySQL writes are Optuna's own.
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_write_is_one_statement_and_a_reading_two(storage: Storage) -> None:
    lean = storage.optuna
    study = lean.create_new_study(MAX, "study")
    trial_id = lean.create_new_trial(study)
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sa.event.listen(lean.engine, "before_cursor_execute", note)
    lean.set_trial_intermediate_value(trial_id, 1, 0.5)
    lean.set_trial_user_attr(trial_id, "a", 1)
    lean.record_heartbeat(trial_id)
    assert len(statements) == 3
    lean.get_all_trials(study)
    assert len(statements) == 5


def test_a_database_that_fails_is_an_error_of_storage(storage: Storage) -> None:
    lean = storage.optuna
    trial_id = lean.create_new_trial(lean.create_new_study(MAX, "study"))
    with lean.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE trial_user_attributes"))
    with pytest.raises(StorageInternalError) as caught:
        lean.set_trial_user_attr(trial_id, "a", 1)
    assert "trial_user_attributes" in str(storage.error(caught.value))
