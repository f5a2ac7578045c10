"""Trainings that another tuner starts, as trials of a study."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo_mab import HpoMabWarning, MABSampler, TrialReporter, UniformSampler
from hpo_mab._attributes import SLOT_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.compare import stored_comparison
from hpo_mab.samplers import BatchSampler
from hpo_mab.search import recorded_trial
from hpo_mab.storage import Storage, study_names


def _train(
    storage: Storage,
    config: dict[str, float],
    *,
    study: str = "own",
    number: int | None = None,
    sampler: BatchSampler | None = None,
    reports: int = 4,
    end: BaseException | None = None,
) -> None:
    """A training of 4 evaluations that another tuner starts, and may end early."""
    with (
        recorded_trial(config, study=study, storage=storage, number=number) as trial,
        TrialReporter(
            trial, sampler=sampler, budget_examples=400, evaluations=4, curves=storage.curves
        ) as reporter,
    ):
        for index in range(reports):
            reporter.step(100)
            reporter.report(accuracy=0.1 * (index + 1))
        if end is not None:
            raise end


def _trials(storage: Storage, study: str = "own") -> list[FrozenTrial]:
    return optuna.load_study(study_name=study, storage=storage.optuna).get_trials()


def test_a_recorded_trial_has_a_heartbeat_from_the_start(storage: Storage) -> None:
    with recorded_trial({"lr": 0.3}, study="own", storage=storage) as trial:
        assert storage.optuna.heartbeats([trial._trial_id]) == {trial._trial_id: True}


@pytest.mark.parametrize("number", ["a", -3, 1.5])
def test_a_number_that_is_none_makes_no_study(storage: Storage, number: Any) -> None:
    with pytest.raises(ArgumentError, match=f"number must be an integer of .* got {number!r}"):
        _train(storage, {"lr": 0.3}, number=number)
    assert study_names(storage) == ()


def test_a_training_is_a_trial_with_the_tuners_configuration(storage: Storage) -> None:
    _train(storage, {"lr": 0.3, "width": 64}, number=np.int64(7))  # type: ignore[arg-type]
    (trial,) = _trials(storage)
    assert trial.user_attrs[SLOT_KEY] == 7
    assert trial.state == TrialState.COMPLETE
    assert trial.params == {"lr": 0.3, "width": 64}
    assert trial.value == pytest.approx(0.4)
    assert len(storage.curves.load([trial._trial_id])[trial._trial_id]) == 4


@pytest.mark.parametrize(
    ("reports", "end", "state"),
    [
        (2, SystemExit(0), TrialState.PRUNED),
        (2, optuna.TrialPruned(), TrialState.PRUNED),
        (0, SystemExit(0), TrialState.PRUNED),
        (2, SystemExit(1), TrialState.FAIL),
        (2, OSError("no data"), TrialState.FAIL),
        (2, KeyboardInterrupt(), TrialState.FAIL),
        # Ray Tune stops a function in its last report, too.
        (4, SystemExit(0), TrialState.COMPLETE),
    ],
)
def test_how_the_tuner_ends_it_is_the_trials_state(
    reports: int, end: BaseException, state: TrialState, storage: Storage
) -> None:
    with pytest.raises(type(end)):
        _train(storage, {"lr": 0.3}, reports=reports, end=end)
    (trial,) = _trials(storage)
    assert trial.state == state
    has_reason = "hpo_mab:reason" in trial.user_attrs
    assert has_reason == (state == TrialState.FAIL and not isinstance(end, KeyboardInterrupt))


def test_a_trial_that_waits_in_the_study_is_not_taken(storage: Storage) -> None:
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    study.enqueue_trial({"lr": 0.9})
    _train(storage, {"lr": 0.1})
    waiting, trained = _trials(storage)
    assert waiting.state == TrialState.WAITING
    assert (trained.state, trained.params) == (TrialState.COMPLETE, {"lr": 0.1})


def test_a_value_that_changes_its_kind_leaves_no_trial(storage: Storage) -> None:
    _train(storage, {"decay": 0})
    with pytest.raises(ArgumentError, match="whole in one trial and a fraction in another"):
        _train(storage, {"decay": 0.1})
    assert [trial.state for trial in _trials(storage)] == [TrialState.COMPLETE]


def test_a_training_that_ends_early_has_failed(storage: Storage) -> None:
    with pytest.warns(HpoMabWarning, match="300 of 400 examples"):
        _train(storage, {"lr": 0.3}, reports=3)
    assert [trial.state for trial in _trials(storage)] == [TrialState.FAIL]


def test_no_pruner_of_the_study_stops_it(storage: Storage) -> None:
    optuna.create_study(
        study_name="own",
        storage=storage.optuna,
        direction="maximize",
        pruner=optuna.pruners.ThresholdPruner(lower=0.9),
    )
    _train(storage, {"lr": 0.3})
    assert [trial.state for trial in _trials(storage)] == [TrialState.COMPLETE]


def test_trials_of_two_studies_are_pairs_by_the_tuners_number(storage: Storage) -> None:
    labels = [0, 1] * 200
    configs = [{"lr": 0.1 * number} for number in range(1, 4)]
    for study, kind, order in (
        ("own-uniform", UniformSampler, (0, 1, 2)),
        ("own-mab", MABSampler, (2, 0, 1)),
    ):
        for number in order:
            sampler = kind(labels, batch_size=100, seed=0)
            _train(storage, configs[number], study=study, number=number, sampler=sampler)
    found = stored_comparison(["own-*"], storages=[storage.secret_url])
    (contrast,) = found.summarise().contrasts
    assert (contrast.arm, contrast.reference, contrast.pairs) == ("mab", "uniform", 3)


def test_distributions_are_the_search_space(storage: Storage) -> None:
    space = {
        "lr": FloatDistribution(1e-3, 1.0, log=True),
        "activation": CategoricalDistribution(["relu", "tanh"]),
    }
    for activation in ("relu", "tanh"):
        with recorded_trial(
            {"lr": 0.3, "activation": activation},
            study="own",
            storage=storage,
            distributions=space,
        ):
            pass
    assert [trial.distributions for trial in _trials(storage)] == [space, space]
    assert [trial.params["activation"] for trial in _trials(storage)] == ["relu", "tanh"]


def test_numbers_of_numpy_are_numbers(storage: Storage) -> None:
    config = {"n": np.int64(3), "lr": np.float32(0.5)}
    with recorded_trial(config, study="own", storage=storage):
        pass
    assert _trials(storage)[0].params == {"n": 3, "lr": 0.5}


@pytest.mark.parametrize(
    ("config", "distributions", "words"),
    [
        ({"activation": "relu"}, None, r"config\['activation'\] must be a number, .* got 'relu'"),
        ({"nesterov": True}, None, r"config\['nesterov'\] must be a number, .* got True"),
        ({"lr": math.nan}, None, r"config\['lr'\] must be a number, .* got nan"),
        ({"lr": 2.0}, {"lr": FloatDistribution(0.1, 1.0)}, r"config\['lr'\] must be in .*got 2.0"),
        ({"a": "x"}, {"a": CategoricalDistribution(["y"])}, r"config\['a'\] must be in .*got x"),
    ],
)
def test_a_value_that_optuna_cannot_hold_is_refused(
    config: dict, distributions: dict | None, words: str, storage: Storage
) -> None:
    with (
        pytest.raises(ArgumentError, match=words),
        recorded_trial(config, study="own", storage=storage, distributions=distributions),
    ):
        raise AssertionError("not reached")
    assert storage.optuna.get_all_studies() == []


def test_how_the_tuner_ends_it_is_raised_even_if_it_cannot_be_stored(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise optuna.exceptions.StorageInternalError("away")

    monkeypatch.setattr(optuna.Study, "tell", fail)
    with pytest.raises(SystemExit) as caught:
        _train(storage, {"lr": 0.3}, reports=2, end=SystemExit(0))
    assert "could not be stored" in caught.value.__notes__[0]
    with pytest.raises(optuna.exceptions.StorageInternalError):
        _train(storage, {"lr": 0.3})
