"""`LeanStorage` writes and reads the same as Optuna's own storage."""

from __future__ import annotations

import datetime
import inspect
import math
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, _CachedStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState
from tools import statements_of

from hpo_mab.storage import Storage, _lean
from hpo_mab.storage._lean import LeanStorage
from hpo_mab.storage._optuna import tell
from hpo_mab.storage._tables import HEARTBEATS, frozen_trials

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")

MAX = [StudyDirection.MAXIMIZE]


@pytest.fixture
def storage(anywhere: Storage) -> Storage:
    return anywhere


@pytest.fixture
def plain(storage: Storage) -> Iterator[RDBStorage]:
    """Optuna's own storage on the same database."""
    storage.optuna.get_all_studies()
    opened = RDBStorage(storage.secret_url)
    yield opened
    opened.remove_session()
    opened.engine.dispose()


class TestOptunasCases(StorageTestCase):
    """Optuna's tests of its storages, on SQLite only: they take half a minute."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[LeanStorage]:
        opened = Storage(str(tmp_path / "studies.db"))
        yield opened.optuna
        opened.close()


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
def test_any_part_of_the_trials_is_read_as_by_optuna(
    storage: Storage, plain: RDBStorage, listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lean, "_LISTED", listed)
    read: list[Any] = []

    def frozen(rows: Any, children: Any) -> list[FrozenTrial]:
        read.extend(kept := list(children))
        return frozen_trials(rows, kept)

    monkeypatch.setattr(_lean, "frozen_trials", frozen)
    studies = [plain.create_new_study(MAX, name) for name in ("one", "two")]
    # The studies' trials lie between one another.
    ids = [plain.create_new_trial(study, trial) for trial in _trials() for study in studies][::2]
    for states in (None, (TrialState.COMPLETE,), (TrialState.WAITING, TrialState.RUNNING)):
        for included in (set(), {ids[0], ids[2]}, {ids[1]}):
            for after in (-1, ids[2], ids[-1]):
                given = (studies[0], states, included, after)
                expected = _plainly(plain._get_trials(*given))
                assert _plainly(storage.optuna._get_trials(*given)) == expected
    assert {child[1] for child in read} <= set(ids)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_earlier_versions_of_sqlite_take_fewer_parameters(storage: Storage) -> None:
    engine = storage.optuna.engine
    engine.dispose()
    limit = sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER
    sa.event.listen(engine, "connect", lambda opened, _: opened.setlimit(limit, 999))
    study = optuna.create_study(study_name="study", storage=storage.optuna)
    for count in range(100, 400, 100):
        study.add_trials([optuna.create_trial(state=TrialState.WAITING) for _ in range(100)])
        found = optuna.load_study(study_name="study", storage=storage.optuna)
        assert len(found.trials) == len(study.trials) == count


def test_a_read_takes_one_connection(storage: Storage) -> None:
    lean = storage.optuna
    study = lean.create_new_study(MAX, "study")
    pool: Any = lean.engine.pool
    taken: list[int] = []
    sa.event.listen(pool, "checkout", lambda *_: taken.append(pool.checkedout()))
    assert lean.get_all_trials(study) == []
    assert set(taken) == {1}


def test_only_a_recent_heartbeat_is_recent(storage: Storage, plain: RDBStorage) -> None:
    study = plain.create_new_study(MAX, "study")
    ids = [plain.create_new_trial(study) for _ in range(3)]
    for trial_id in ids[:2]:
        storage.optuna.record_heartbeat(trial_id)
    beats = HEARTBEATS.c
    with storage.optuna.engine.begin() as connection:
        (last,) = connection.scalars(sa.select(beats.heartbeat).where(beats.trial_id == ids[0]))
        earlier = {"heartbeat": last - datetime.timedelta(seconds=200)}
        connection.execute(HEARTBEATS.update().where(beats.trial_id == ids[0]).values(earlier))
    assert storage.optuna.heartbeats(ids) == {ids[0]: False, ids[1]: True}
    assert storage.optuna.heartbeats([]) == {}


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


def test_heartbeats_are_optunas(storage: Storage, plain: RDBStorage) -> None:
    trial_id = plain.create_new_trial(plain.create_new_study(MAX, "study"))
    table = sa.text("SELECT count(*) FROM trial_heartbeats")
    hour_ago = {
        "sqlite": "datetime(heartbeat, '-1 hour')",
        "postgresql": "heartbeat - interval '1 hour'",
        "mysql": "heartbeat - interval 1 hour",
    }[storage.optuna.engine.dialect.name]
    for _ in range(2):
        storage.optuna.record_heartbeat(trial_id)
    plain.record_heartbeat(trial_id)
    storage.optuna.record_heartbeat(trial_id)
    with storage.optuna.engine.connect() as connection:
        assert connection.execute(table).scalar() == 1
    with storage.optuna.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE trial_heartbeats SET heartbeat = {hour_ago}"))
    assert storage.optuna._get_stale_trial_ids(1) == [trial_id]
    storage.optuna.record_heartbeat(trial_id)
    assert storage.optuna._get_stale_trial_ids(1) == []


# On MySQL writes are Optuna's own.
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_write_is_one_statement_and_a_reading_two(storage: Storage) -> None:
    lean = storage.optuna
    study = lean.create_new_study(MAX, "study")
    trial_id = lean.create_new_trial(study)
    statements = statements_of(lean.engine)
    lean.set_trial_intermediate_value(trial_id, 1, 0.5)
    lean.set_trial_user_attr(trial_id, "a", 1)
    lean.record_heartbeat(trial_id)
    assert len(statements) == 3
    lean.get_all_trials(study)
    assert len(statements) == 5


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_writes_of_many_trials_are_one_statement_each_table(storage: Storage) -> None:
    lean = storage.optuna
    study = lean.create_new_study(MAX, "study")
    ids = [lean.create_new_trial(study) for _ in range(3)]
    lean.set_trial_state_values(ids[2], TrialState.FAIL)
    statements = statements_of(lean.engine)
    with lean.collect_writes():
        for trial_id in ids:
            lean.set_trial_intermediate_value(trial_id, 1, 0.5)
            lean.set_trial_user_attr(trial_id, "a", 1)
        assert statements == []
    assert len(statements) == 2
    trials = lean.get_all_trials(study)
    assert [trial.intermediate_values for trial in trials] == [{1: 0.5}, {1: 0.5}, {}]
    assert [trial.user_attrs for trial in trials] == [{"a": 1}, {"a": 1}, {}]


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_trials_are_read_once_and_own_writes_seen(storage: Storage, plain: RDBStorage) -> None:
    lean = storage.optuna
    study = optuna.create_study(study_name="study", storage=lean, direction="maximize")
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    first, second = study.ask(), study.ask()

    def reported() -> list[dict[int, float]]:
        return [trial.intermediate_values for trial in study.get_trials(deepcopy=False)]

    with lean.collect_writes():
        assert reported() == [{}, {}]
        plain.set_trial_intermediate_value(first._trial_id, 1, 0.25)
        second.report(0.5, step=1)
        assert reported() == [{}, {1: 0.5}]
        # One of another process, whose id is below that of one made and ended here.
        other = plain.create_new_trial(study._study_id)
        third = study.ask()
        study.tell(third, 1.0)
        assert reported()[1:] == [{1: 0.5}, {}, {}]
        plain.set_trial_intermediate_value(other, 1, 0.75)
    assert reported() == [{1: 0.25}, {1: 0.5}, {1: 0.75}, {}]
    assert study.trials[3].value == 1.0


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_own_writes_are_seen_without_another_read(storage: Storage, plain: RDBStorage) -> None:
    lean = storage.optuna
    study = optuna.create_study(study_name="study", storage=lean, direction="maximize")
    trials = [study.ask() for _ in range(3)]
    ids = [trial._trial_id for trial in trials]

    def suggest(trial: optuna.Trial) -> None:
        trial.suggest_float("lr", 0.1, 1.0, log=True)
        trial.suggest_int("width", 8, 64, step=8)
        trial.suggest_categorical("kind", ["sgd", None, 3, True])

    # Optuna looks for the ranges of a study's first trial in the database.
    suggest(trials[0])
    statements = statements_of(lean.engine)
    with lean.collect_writes():
        before = study.get_trials(deepcopy=False)
        for trial_id in ids:
            lean.set_trial_intermediate_value(trial_id, 1, 1)
            lean.set_trial_user_attr(trial_id, "pair", (1, "ü"))
            lean.set_trial_system_attr(trial_id, "rung", 0.5)
        del statements[:]
        for trial in trials[1:]:
            suggest(trial)
        seen = [lean.get_trial(trial_id) for trial_id in ids]
        listed = study.get_trials(deepcopy=False)
        # Optuna's `Trial` changes what it gets.
        seen[0].user_attrs["own"] = True
        assert lean.get_trial(ids[0]) == listed[0]
        assert statements == []
    assert before[0].intermediate_values == before[0].user_attrs == {}
    assert _plainly(listed) == _plainly([plain.get_trial(trial_id) for trial_id in ids])
    assert listed[0].user_attrs == {"pair": [1, "ü"]}
    assert listed[2].system_attrs == {"rung": 0.5}
    assert [trial.intermediate_values for trial in listed] == 3 * [{1: 1.0}]


def test_a_trial_that_another_process_ends_after_it_was_read_stays_as_it_is(
    storage: Storage, plain: RDBStorage
) -> None:
    lean = storage.optuna
    study = optuna.create_study(storage=lean, direction="maximize")
    trial = study.ask()
    with lean.collect_writes():
        assert lean.get_trial(trial._trial_id).state == TrialState.RUNNING
        plain.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        tell(study, trial, 0.5, TrialState.COMPLETE)
        assert lean.get_trial(trial._trial_id).state == TrialState.FAIL


def test_parameters_keep_their_order(storage: Storage, plain: RDBStorage) -> None:
    study = optuna.create_study(storage=storage.optuna)
    study.ask().suggest_float("lr", 0.1, 1.0)
    second = study.ask()
    with storage.optuna.collect_writes():
        for name in ("lr", "momentum"):  # Optuna writes the latter, which is the first of its name.
            second.suggest_float(name, 0.1, 1.0)
    assert list(plain.get_trial(second._trial_id).params) == ["lr", "momentum"]


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_trial_that_is_made_is_known_without_a_read(storage: Storage, plain: RDBStorage) -> None:
    lean = storage.optuna
    study = lean.create_new_study(MAX, "study")
    template = optuna.create_trial(
        state=TrialState.RUNNING, user_attrs={"pair": (1, "ü")}, system_attrs={"b": math.nan}
    )
    statements = statements_of(lean.engine)
    with lean.collect_writes():
        trial_id = lean.create_new_trial(study, template)
        del statements[:]
        made = lean.get_trial(trial_id)
        assert statements == []
    assert _plainly([made]) == _plainly([plain.get_trial(trial_id)])


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_own_writes_are_seen_whatever_another_thread_reads(storage: Storage) -> None:
    lean = storage.optuna
    study = optuna.create_study(study_name="study", storage=lean, direction="maximize")
    trial = study.ask()

    def seen() -> dict[str, Any]:
        return study.get_trials(deepcopy=False)[0].user_attrs

    seen()
    with lean.collect_writes():
        seen()
        trial.set_user_attr("a", 1)
        assert seen() == {"a": 1}
        # It reads the trial from the database into the study's cache.
        thread = threading.Thread(target=study.get_trials)
        thread.start()
        thread.join()
        assert seen() == {"a": 1}


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_attributes_of_a_study_are_read_once(storage: Storage, plain: RDBStorage) -> None:
    lean = storage.optuna
    study = optuna.create_study(study_name="study", storage=lean)
    study.set_user_attr("a", 1)
    statements = statements_of(lean.engine)
    with lean.collect_writes():
        study.user_attrs["b"] = 2
        plain.set_study_user_attr(study._study_id, "a", 2)
        del statements[:]
        assert study.user_attrs == {"a": 1}
        assert statements == []
        study.set_user_attr("own", 3)
        assert study.user_attrs == {"a": 2, "own": 3}
        plain.set_study_user_attr(study._study_id, "a", 4)
        with lean.collect_writes():
            assert study.user_attrs == {"a": 4, "own": 3}
        plain.set_study_user_attr(study._study_id, "a", 5)
    assert study.user_attrs == {"a": 5, "own": 3}


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_trial_that_another_process_has_ended_does_not_change(
    storage: Storage, plain: RDBStorage
) -> None:
    lean = storage.optuna
    study = optuna.create_study(study_name="study", storage=lean, direction="maximize")
    trial_id = study.ask()._trial_id
    plain.set_trial_state_values(trial_id, TrialState.FAIL)
    with lean.collect_writes():
        assert study.trials[0].state == TrialState.FAIL
        lean.set_trial_user_attr(trial_id, "a", 1)
        lean.set_trial_intermediate_value(trial_id, 1, 0.5)
        assert lean.get_trial(trial_id).user_attrs == {}
        study.get_trials(deepcopy=False)
    assert study.trials[0].user_attrs == study.trials[0].intermediate_values == {}


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_an_inner_context_reads_trials_again(storage: Storage, plain: RDBStorage) -> None:
    lean = storage.optuna
    study = optuna.create_study(study_name="study", storage=lean, direction="maximize")
    trial = study.ask()
    with lean.collect_writes():
        assert study.get_trials()[0].state == TrialState.RUNNING
        trial.set_user_attr("reason", "unknown")
        # Another worker closes it before this one takes the study's lock.
        plain.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        with storage.lock("study"), lean.collect_writes():
            ended = study.tell(trial, 0.5, skip_if_finished=True)
            assert study.get_trials()[0].state == TrialState.FAIL
    assert (ended.state, ended.value, ended.user_attrs) == (TrialState.FAIL, None, {})


def test_a_database_that_fails_is_an_error_of_storage(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "studies.db"))
    lean = storage.optuna
    trial_id = lean.create_new_trial(lean.create_new_study(MAX, "study"))
    with lean.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE trial_user_attributes"))
    with pytest.raises(StorageInternalError) as caught:
        lean.set_trial_user_attr(trial_id, "a", 1)
    assert "trial_user_attributes" in str(storage.error(caught.value))
    storage.close()


@pytest.mark.parametrize("name", ["_set_trial_param", "_create_new_trial", "_get_trials"])
def test_optunas_cache_calls_the_private_methods_that_are_replaced(name: str) -> None:
    assert f"self._backend.{name}(" in inspect.getsource(_CachedStorage)
    ours, theirs = (getattr(kind, name) for kind in (_lean.LeanStorage, RDBStorage))
    assert ours is not theirs
    assert [*inspect.signature(ours).parameters] == [*inspect.signature(theirs).parameters]
