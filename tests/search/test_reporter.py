"""A user's own training loop, followed by a `TrialReporter`."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tools import Caching, no_waiting
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hpo_mab
from hpo_mab import HpoMabWarning
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.samplers import MABSampler, create
from hpo_mab.search import TrialReporter, _trial_record
from hpo_mab.storage import Storage, read_run
from hpo_mab.storage._curves import CurveStore
from hpo_mab.training import WeightAverage

# Optuna's, of trials that `ask` begins.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat")


class _PruneAt(optuna.pruners.BasePruner):
    def __init__(self, step: int) -> None:
        self._step = step

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.last_step == self._step


def _data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    return TensorDataset(torch.randn(200, 4, generator=generator) + 2 * labels[:, None], labels)


def _accuracy(model: nn.Module, data: TensorDataset) -> float:
    inputs, labels = data.tensors
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).double().mean())


def _plain_loop(trial: optuna.trial.Trial, kind: str = "MABSampler", **options: Any) -> float:
    """A loop as users write it."""
    data = _data()
    sampler = getattr(hpo_mab, kind)(data.tensors[1], batch_size=20, seed=0)
    loader = DataLoader(data, batch_sampler=sampler)
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.01, 0.1))
    reporter = TrialReporter(trial, sampler=sampler, budget_examples=400, evaluations=4, **options)
    while not reporter.done:
        for x, y in loader:
            loss = sampler.update(F.cross_entropy(model(x), y, reduction="none"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if reporter.step(len(y), loss=loss.detach()):
                reporter.report(accuracy=_accuracy(model, data))
    return reporter.accuracy


def _study(
    pruner: optuna.pruners.BasePruner | None = None, *, storage: Storage | None = None
) -> optuna.Study:
    return optuna.create_study(
        storage=None if storage is None else storage.optuna,
        direction="maximize",
        pruner=pruner or optuna.pruners.NopPruner(),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )


def test_a_plain_loop_reports_at_equal_shares_of_its_budget() -> None:
    study = _study()
    study.optimize(_plain_loop, n_trials=1)
    trial = study.trials[0]
    assert trial.state == TrialState.COMPLETE
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert trial.value == trial.intermediate_values[4] > 0.8
    assert trial.user_attrs["hpo_mab:examples"] == 400
    assert trial.user_attrs["hpo_mab:sampler"] == "MABSampler"
    assert trial.user_attrs["hpo_mab:seconds"] >= 0


def test_a_plain_loop_is_pruned() -> None:
    study = _study(_PruneAt(2))
    study.optimize(_plain_loop, n_trials=1)
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1, 2]
    assert trial.user_attrs["hpo_mab:examples"] == 200


def test_uniform_loops_are_named_so_for_the_pruner() -> None:
    study = _study()
    study.optimize(lambda trial: _plain_loop(trial, "UniformSampler"), n_trials=1)
    assert study.trials[0].user_attrs["hpo_mab:sampler"] == "uniform"


def test_the_advantage_pruner_judges_a_users_own_loops() -> None:
    study = _study(hpo_mab.AdvantagePruner(max_resource=4))

    def objective(trial: optuna.trial.Trial) -> float:
        reporter = TrialReporter(trial, budget_examples=40, evaluations=4)
        while not reporter.done:
            if reporter.step(10):
                reporter.report(accuracy=0.9 - 0.1 * trial.number)
        return reporter.accuracy

    with pytest.warns(HpoMabWarning, match="no evidence"):
        study.optimize(objective, n_trials=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert study.trials[1].user_attrs["hpo_mab:pruned_because"]["threshold"] == 0.9


def test_the_curve_is_kept_and_the_clock_stands_while_evaluating(storage: Storage) -> None:
    trial = _study(storage=storage).ask()
    ticks: Iterator[float] = itertools.count(0.0, 1.0)
    reporter = TrialReporter(
        trial,
        budget_examples=40,
        evaluations=2,
        curves=storage.curves,
        clock=lambda: next(ticks),
    )
    for loss in (4.0, 2.0, 1.0, 0.5):
        if reporter.step(10, loss=torch.tensor(loss)):
            next(ticks)  # A second of evaluation.
            reporter.report(accuracy=0.5, loss=0.7, learning_rate=0.1)
    curve = storage.curves.load([trial._trial_id])[trial._trial_id]
    assert [(e.index, e.steps, e.examples) for e in curve] == [(1, 2, 20), (2, 4, 40)]
    assert [e.train_loss for e in curve] == [3.0, 0.75]
    assert [e.seconds for e in curve] == [1.0, 2.0]
    assert (curve[0].accuracy, curve[0].loss, curve[0].learning_rate) == (0.5, 0.7, 0.1)
    assert curve[0].reward_rate is None


def test_the_clock_counts_training_whatever_the_loop_evaluates(storage: Storage) -> None:
    now = 0.0
    trial = _study(storage=storage).ask()
    reporter = TrialReporter(
        trial, budget_examples=80, evaluations=4, curves=storage.curves, clock=lambda: now
    )
    now += 100.0  # The loop prepares its data.
    with reporter:
        for step in range(1, 9):
            now += 1.0
            reporter.step(10)
            if step == 3:  # Evaluated before it is due, which `step` cannot announce.
                reporter.stop_clock()
                now += 50.0
                reporter.report(accuracy=0.5)
            # The evaluations due after steps 2 and 6 are left out: these seconds were training.
            if step in (4, 8):
                now += 50.0
                reporter.report(accuracy=0.5)
    curve = storage.curves.load([trial._trial_id])[trial._trial_id]
    assert [(e.index, e.seconds) for e in curve] == [(1, 3.0), (2, 4.0), (4, 8.0)]


def test_a_loop_that_evaluates_seldom_reports_the_last_point_it_passed() -> None:
    study = _study()
    trial = study.ask()
    reporter = TrialReporter(trial, budget_examples=80, evaluations=8)
    for examples, accuracy in ((5, 0.1), (30, 0.5), (55, 0.6)):
        reporter.step(examples)
        reporter.report(accuracy=accuracy)
    assert study.trials[0].intermediate_values == {3: 0.5, 8: 0.6}
    assert reporter.done
    assert reporter.accuracy == 0.6


def test_a_large_budget_is_spent_at_its_last_example_only() -> None:
    study = _study()
    reporter = TrialReporter(study.ask(), budget_examples=10**8 + 1, evaluations=8)
    reporter.step(10**8)
    reporter.report(accuracy=0.5)
    assert not reporter.done
    reporter.step(1)
    reporter.report(accuracy=0.6)
    assert study.trials[0].intermediate_values == {7: 0.5, 8: 0.6}


def test_the_sampler_gets_the_share_of_the_budget_that_is_spent() -> None:
    class Listening(hpo_mab.UniformSampler):
        shares: list[float]

        def set_progress(self, share: float) -> None:
            self.shares = [*getattr(self, "shares", []), share]

    sampler = Listening([0, 1], batch_size=1)
    reporter = TrialReporter(_study().ask(), sampler=sampler, budget_examples=4, evaluations=1)
    for _ in range(5):
        reporter.step(1)
    assert sampler.shares == [0.25, 0.5, 0.75, 1.0, 1.0]


class _Broken(TensorDataset):
    """A data set that cannot be read after some items."""

    left = 250

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        self.left -= 1
        if self.left < 0:
            raise OSError("shard 3 is gone\nand more about it")
        return super().__getitem__(index)


#: Where it raises.
_BROKEN_LINE = _Broken.__getitem__.__code__.co_firstlineno + 3


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are written at the end only, also on a machine that is slow."""
    monkeypatch.setattr(_trial_record, "_CURVE_SECONDS", math.inf)


def _a_loop_that_ends_early(
    trial: optuna.trial.Trial, curves: CurveStore, *, num_workers: int = 0, stop: str = ""
) -> float:
    """A plain loop over data that break after 250 examples, or that Ctrl-C ends."""
    data = _Broken(torch.zeros(400, 4), torch.arange(400) % 2)
    loader = DataLoader(data, batch_size=25, num_workers=num_workers)
    with TrialReporter(trial, budget_examples=400, evaluations=8, curves=curves) as reporter:
        for _, y in loader:
            if stop and reporter.examples == 250:
                raise KeyboardInterrupt
            if reporter.step(len(y)):
                reporter.report(accuracy=0.5)
                # Kept in memory until the end: a transaction per point would be slow.
                assert not curves.load([trial._trial_id])
            data.left += 25 if stop else 0
    return reporter.accuracy


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("num_workers", "reason"),
    [
        (0, f"OSError: shard 3 is gone ({Path(__file__).name}, line {_BROKEN_LINE})"),
        (1, "OSError: shard 3 is gone (in a data-loading process)"),
    ],
)
def test_a_loop_that_raises_leaves_its_curve_and_the_reason(
    storage: Storage, num_workers: int, reason: str
) -> None:
    study = _study(storage=storage)
    study.optimize(
        lambda trial: _a_loop_that_ends_early(trial, storage.curves, num_workers=num_workers),
        n_trials=1,
        catch=OSError,
    )
    trial = study.trials[0]
    curve = storage.curves.load([trial._trial_id])[trial._trial_id]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["hpo_mab:reason"] == reason
    assert [e.examples for e in curve] == [50, 100, 150, 200, 250]
    assert trial.user_attrs["hpo_mab:examples"] == 250
    assert "hpo_mab:interrupted" not in trial.user_attrs


@pytest.mark.usefixtures("patient")
def test_a_loop_that_ctrl_c_ends_leaves_its_curve_and_says_so(storage: Storage) -> None:
    study = _study(storage=storage)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(
            lambda trial: _a_loop_that_ends_early(trial, storage.curves, stop="Ctrl-C"), n_trials=1
        )
    trial = study.trials[0]
    curve = storage.curves.load([trial._trial_id])[trial._trial_id]
    assert trial.user_attrs["hpo_mab:interrupted"] is True
    assert "hpo_mab:reason" not in trial.user_attrs
    assert len(curve) == 5


def test_outside_a_with_block_every_point_is_written_at_once(storage: Storage) -> None:
    trial = _study(storage=storage).ask()
    reporter = TrialReporter(trial, budget_examples=40, evaluations=4, curves=storage.curves)
    for points in (1, 2, 3):
        reporter.step(10)
        reporter.report(accuracy=0.5)
        assert len(storage.curves.load([trial._trial_id])[trial._trial_id]) == points


def test_what_ended_the_loop_is_raised_even_if_it_cannot_be_stored(storage: Storage) -> None:
    trial = _study(storage=storage).ask()
    with (  # noqa: PT012 - the loop is what is tested
        pytest.raises(ValueError, match="broken") as caught,
        TrialReporter(trial, budget_examples=40, evaluations=4, curves=storage.curves) as reporter,
    ):
        reporter.step(10)
        reporter.report(accuracy=0.5)
        with storage.optuna.engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE hpo_mab_curves"))
        raise ValueError("broken")
    assert "could not be stored" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"budget_examples": 10, "evaluations": 0},
            ArgumentError,
            "evaluations must be an integer of at least 1, got 0",
        ),
        (
            {"budget_examples": 3, "evaluations": 4},
            ArgumentError,
            "budget_examples must be at least .* 4, got 3",
        ),
        (
            {"budget_examples": 8, "average": 1.5},
            ArgumentError,
            r"average must be a share in \[0, 1\], got 1.5",
        ),
        ({"budget_examples": 40, "schedule": "cosine"}, UnknownNameError, "schedule 'cosine'"),
        ({"budget_examples": "40"}, ArgumentError, "budget_examples must be an integer, got '40'"),
        (
            {"budget_examples": 40, "sampler": optuna.samplers.RandomSampler()},
            ArgumentError,
            "sampler must be a hpo_mab.samplers.BatchSampler or None, got RandomSampler",
        ),
        (
            {"budget_examples": 40, "model": nn.Linear},
            ArgumentError,
            "model must be a network or None, got the class Linear",
        ),
    ],
)
def test_arguments_outside_their_bound_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TrialReporter(_study().ask(), **options)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("report", {"accuracy": -2.3}, r"accuracy must be in \[0, 1\], not a loss, got -2.3"),
        ("report", {"accuracy": 86.2}, r"accuracy must be in \[0, 1\], percent divided"),
        ("report", {"accuracy": None}, "accuracy must be a number, got None"),
        ("report", {"accuracy": "high"}, "accuracy must be a number, got 'high'"),
        ("step", {"examples": 33.3}, r"examples must be a whole number, got 33\.3"),
        ("step", {"examples": -5}, "examples must be at least 0, got -5"),
        ("step", {"examples": 20, "loss": torch.zeros(3)}, r"loss must be one .* shape \[3\]"),
        ("step", {"examples": 20, "loss": "low"}, "loss must be a number, got 'low'"),
    ],
)
def test_a_refused_number_changes_nothing(
    method: str, arguments: dict[str, Any], message: str
) -> None:
    with TrialReporter(_study().ask(), budget_examples=20, evaluations=1) as reporter:
        reporter.step(torch.tensor(20))  # type: ignore[arg-type]
        assert type(reporter.examples) is int
        with pytest.raises(ArgumentError, match=message):
            getattr(reporter, method)(**arguments)
        assert (reporter.examples, reporter._steps) == (20, 1)
        reporter.report(accuracy=0.5)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((10, 0), r"ended after 10 of 20 examples, so .* of a whole trial\.$"),
        ((16, 4), r"ended after 20 of 20 .* after 16\. .* give budget_examples=16\.$"),
    ],
)
def test_a_loop_that_ends_before_its_budget_is_said(steps: tuple[int, int], message: str) -> None:
    reporter = TrialReporter(_study().ask(), budget_examples=20, evaluations=2)
    reporter.step(steps[0])
    reporter.report(accuracy=0.5)
    reporter.step(steps[1])
    with pytest.warns(HpoMabWarning, match=message):
        reporter.__exit__(None, None, None)


def test_a_loop_that_evaluates_rarely_may_end_beyond_its_budget() -> None:
    with TrialReporter(_study().ask(), budget_examples=1000, evaluations=4) as reporter:
        for accuracy in (0.5, 0.6):
            reporter.step(650)
            reporter.report(accuracy=accuracy)
    assert reporter.done


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_loop_that_goes_on_after_its_budget_is_said(steps: int) -> None:
    reporter = TrialReporter(_study().ask(), budget_examples=20, evaluations=2)
    for _ in range(steps):
        if reporter.step(10):
            reporter.report(accuracy=0.5)
    if steps == 2:
        reporter.__exit__(None, None, None)  # Warnings are errors.
        return
    said = rf"has trained {10 * steps} examples, its budget is 20: what it trained after 20 is"
    with pytest.warns(HpoMabWarning, match=said):
        reporter.__exit__(None, None, None)


def test_curves_of_another_database_are_refused(storage: Storage, tmp_path: Path) -> None:
    other = Storage(str(tmp_path / "other.db"))
    own = optuna.create_study(storage=storage.optuna, direction="maximize")
    # The same file by another name and engine.
    again = optuna.load_study(
        study_name=own.study_name, storage=f"sqlite:///{tmp_path}/../{tmp_path.name}/studies.db"
    )
    elsewhere = optuna.create_study(storage=other.optuna, direction="maximize")
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    for study in (own, again):
        TrialReporter(study.ask(), budget_examples=20, curves=storage.curves)
    for study in (
        elsewhere,
        _study(),
        optuna.create_study(storage=journal, direction="maximize"),
    ):
        with pytest.raises(ArgumentError, match="curves must be those of the database of study"):
            TrialReporter(study.ask(), budget_examples=20, curves=storage.curves)
    with pytest.raises(ArgumentError, match=r"curves must be .* or None, got Storage"):
        TrialReporter(own.ask(), budget_examples=20, curves=storage)  # type: ignore[arg-type]
    other.close()


def test_studies_of_own_loops_have_the_seed_that_they_are_given(storage: Storage) -> None:
    for seed in (None, 3):
        study = optuna.create_study(storage=storage.optuna, direction="maximize")
        if seed is not None:
            study.set_user_attr("hpo_mab:seed", seed)
        trial = study.ask()
        with TrialReporter(
            trial, budget_examples=20, evaluations=1, curves=storage.curves
        ) as reporter:
            reporter.step(20)
            reporter.report(accuracy=0.5)
        study.tell(trial, 0.5)
        assert read_run(storage, study.study_name).seed == (seed or 0)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ArgumentError, match=r"copy.deepcopy can copy, got Locked: .*lock"):
        TrialReporter(_study().ask(), model=Locked(), budget_examples=8)
    with pytest.raises(ArgumentError, match=r"can copy, got LazyLinear: .*uninitialized"):
        TrialReporter(_study().ask(), model=nn.LazyLinear(2), budget_examples=8)


def test_a_network_whose_forward_a_copy_would_share_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
    model.forward = torch.autocast("cpu", enabled=False)(model.forward)  # type: ignore[method-assign]
    with pytest.raises(
        ArgumentError, match=r"in place of Sequential\.forward, which a copy shares"
    ):
        TrialReporter(_study().ask(), budget_examples=8, model=model)


def test_a_learning_rate_may_be_a_tensor(storage: Storage) -> None:
    study = optuna.create_study(storage=storage.optuna, direction="maximize")
    trial = study.ask()
    with TrialReporter(trial, budget_examples=8, evaluations=1, curves=storage.curves) as reporter:
        reporter.step(8)
        reporter.report(accuracy=0.5, learning_rate=torch.tensor(0.5))
    (point,) = storage.curves.load([trial._trial_id])[trial._trial_id]
    assert point.learning_rate == 0.5


def test_there_is_nothing_to_evaluate_without_a_model() -> None:
    reporter = TrialReporter(_study().ask(), budget_examples=8)
    with pytest.raises(ArgumentError, match="model must be given for network, got None"):
        reporter.network  # noqa: B018


def test_a_step_keeps_nothing_of_its_loss_but_the_value() -> None:
    study = _study()
    reporter = TrialReporter(study.ask(), budget_examples=100, evaluations=1)
    weight = torch.ones(3, requires_grad=True)
    loss = (weight**2).sum()
    held = weakref.ref(weight)
    reporter.step(10, loss=loss)
    del loss, weight
    assert held() is None


class _OfAllKinds(nn.Module):
    """Recurrent, parametrized and normalised; assigns to its buffer, and has an integer one."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 3)
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.scale = 0.9 * self.scale + 0.1 * x.std()
        return self.norm(self.last(self.recurrent(x)[0][:, -1])) * self.scale


def _train(model: nn.Module, inputs: torch.Tensor) -> None:
    model(inputs)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)


@pytest.mark.parametrize(
    ("window", "schedule"), [(0.2, "linear"), (1.0, "linear"), (0.2, "constant")]
)
def test_the_network_to_evaluate_is_averaged_until_the_budget_is_spent(
    storage: Storage, window: float, schedule: str
) -> None:
    torch.manual_seed(0)
    trial, model = _study(storage=storage).ask(), _OfAllKinds()
    model.norm.eval()  # Frozen, as some users have it.
    reporter = TrialReporter(
        trial,
        model=model,
        average=window,
        schedule=schedule,
        budget_examples=40,
        evaluations=4,
        curves=storage.curves,
    )
    model.double()  # Moved after the reporter was made, as Lightning does.
    inputs, own = torch.randn(6, 5, 4, dtype=torch.float64) + 1, WeightAverage(model, window=window)
    for step in range(1, 21):
        _train(model, inputs)
        own.update()
        if not reporter.step(2):
            continue
        expected = copy.deepcopy(model.state_dict())
        if step < 20 or schedule == "constant":
            expected |= own.state_dict()["average"]
        with torch.inference_mode():
            network = reporter.network
        assert not any(module.training for module in network.modules())
        assert model.training
        assert not model.norm.training
        torch.testing.assert_close(dict(network.state_dict()), dict(expected))
        reference = _OfAllKinds().double().eval()
        reference.load_state_dict(expected)
        torch.testing.assert_close(network(inputs), reference(inputs))
        reporter.report(accuracy=0.5)
    curve = storage.curves.load([trial._trial_id])[trial._trial_id]
    assert [point.averaged for point in curve] == [True, True, True, schedule == "constant"]


@pytest.mark.parametrize("average", [0.0, 0.2])
def test_a_network_that_keeps_values_of_its_weights_is_evaluated_with_new_ones(
    average: float,
) -> None:
    model, inputs = Caching(4, 2, bias=False), torch.randn(6, 4)
    reporter = TrialReporter(
        _study().ask(), model=model, average=average, budget_examples=40, evaluations=4
    )
    for _ in range(4):
        _train(model, inputs)
        reporter.step(10)
        network = reporter.network
        torch.testing.assert_close(network(inputs), 2 * inputs @ network.weight.T)
        reporter.report(accuracy=0.5)


@pytest.mark.parametrize(
    ("options", "read", "own", "averaged"),
    [
        ({}, True, None, True),
        ({}, False, None, False),
        ({"average": 0.0}, True, None, False),
        ({"model": None}, False, None, False),
        ({"model": None}, False, True, True),
        ({}, True, False, False),
    ],
)
def test_the_curve_says_which_weights_were_evaluated(
    storage: Storage, options: dict[str, Any], read: bool, own: bool | None, averaged: bool
) -> None:
    trial, model = _study(storage=storage).ask(), nn.Linear(4, 2)
    options = {"model": model, "budget_examples": 40, "curves": storage.curves} | options
    reporter = TrialReporter(trial, evaluations=2, **options)
    reporter.step(20)
    if read:
        weights = reporter.network.state_dict()
        torch.testing.assert_close(dict(weights), dict(model.state_dict()))
    reporter.report(accuracy=0.5, averaged=own)
    reporter.step(20)
    reporter.report(accuracy=0.5)  # Of something else than the network.
    curve = storage.curves.load([trial._trial_id])[trial._trial_id]
    assert [point.averaged for point in curve] == [averaged, False]


def test_an_average_does_not_change_what_is_trained(storage: Storage) -> None:
    curves = []
    for average in (0.0, 0.2):
        trial = _study(storage=storage).ask()
        data = _data()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reporter = TrialReporter(
            trial, model=model, average=average, budget_examples=400, curves=storage.curves
        )
        for _ in range(2):
            for x, y in DataLoader(data, batch_size=20):
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if reporter.step(len(y), loss=loss):
                    reporter.report(accuracy=_accuracy(reporter.network, data))
        curves.append(storage.curves.load([trial._trial_id])[trial._trial_id])
    trained, averaged = curves
    assert [p.train_loss for p in trained] == [p.train_loss for p in averaged]
    assert trained[-1].accuracy == averaged[-1].accuracy


@pytest.mark.cuda
def test_no_step_waits_for_the_device() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    reporter = TrialReporter(_study().ask(), model=model, budget_examples=100, evaluations=4)
    model.cuda()
    inputs = torch.randn(8, 4, device="cuda")
    _train(model, inputs)
    reporter.step(1)
    with no_waiting():
        for _ in range(20):
            _train(model, inputs)
            reporter.step(1)
    network = reporter.network
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cuda"}


def test_a_fixed_trial_is_trained_alone(storage: Storage) -> None:
    trial = optuna.trial.FixedTrial({"lr": 0.05})
    assert _plain_loop(trial, curves=storage.curves) > 0.8  # type: ignore[arg-type]


def test_a_study_that_minimizes_accuracy_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"direction='maximize', got 'minimize'"):
        TrialReporter(optuna.create_study().ask(), budget_examples=10)


def test_a_study_in_place_of_its_trial_is_refused() -> None:
    with pytest.raises(ArgumentError, match="trial must be an Optuna trial, got Study"):
        TrialReporter(_study(), budget_examples=10)  # type: ignore[arg-type]


def test_a_trial_that_wraps_another_is_refused_with_curves(storage: Storage) -> None:
    base = optuna.trial.BaseTrial
    wrapped = type("Wrapped", (base,), dict.fromkeys(base.__abstractmethods__))()
    with pytest.raises(ArgumentError, match=r"trial must be a Trial, .* got Wrapped"):
        TrialReporter(wrapped, budget_examples=10, curves=storage.curves)


@pytest.mark.parametrize(
    ("loss", "accuracy", "reason"),
    [
        (math.nan, 0.5, "Training diverged by step 2: the training loss is nan."),
        (torch.tensor(math.inf), 0.5, "Training diverged by step 2: the training loss is inf."),
        (0.1, math.nan, "Training diverged by step 2: the accuracy is nan."),
    ],
)
def test_a_loop_that_diverges_is_pruned_with_the_reason(
    storage: Storage, loss: Any, accuracy: float, reason: str
) -> None:
    def objective(trial: optuna.Trial) -> float:
        reporter = TrialReporter(trial, budget_examples=40, evaluations=4, curves=storage.curves)
        with contextlib.nullcontext() if trial.number else reporter:
            reporter.step(10, loss=0.2)
            reporter.report(accuracy=0.4)
            reporter.step(10, loss=loss)
            reporter.report(accuracy=accuracy)
        return reporter.accuracy

    study = _study(storage=storage)
    study.optimize(objective, n_trials=2)
    for trial in study.trials:
        assert trial.state == TrialState.PRUNED
        assert trial.intermediate_values == {1: 0.4}
        assert trial.user_attrs["hpo_mab:reason"] == reason
        assert trial.user_attrs["hpo_mab:unreported"][0] == 10
    for run in read_run(storage, study.study_name).trials:
        assert [point.index for point in run.curve] == [1]


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(n_startup_trials=2),
        optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=2), patience=1),
    ],
)
def test_pairs_are_trials_that_the_pruner_cannot_stop(
    storage: Storage, pruner: optuna.pruners.BasePruner
) -> None:
    study = _study(pruner, storage=storage)
    study.optimize(lambda trial: _plain_loop(trial, curves=storage.curves), n_trials=3)
    trials = read_run(storage, study.study_name).trials
    assert [trial.paired for trial in trials] == [True, True, False]


def test_trials_that_were_reported_without_a_reporter_are_warned_of() -> None:
    study = _study()

    def plain(trial: optuna.Trial) -> float:
        trial.report(0.5, 0)
        return 0.5

    study.optimize(plain, n_trials=1)
    with pytest.warns(
        HpoMabWarning, match="Trial 0 was reported by another loop. .* another study"
    ):
        TrialReporter(study.ask(), budget_examples=8, evaluations=4)


def test_a_second_reporter_of_a_trial_is_warned_of() -> None:
    trial = _study().ask()
    reporter = TrialReporter(trial, budget_examples=8, evaluations=4)
    reporter.step(2)
    reporter.report(accuracy=0.5)
    with pytest.warns(HpoMabWarning, match="Trial 0 has reports already"):
        TrialReporter(trial, budget_examples=8, evaluations=4)


def test_a_loop_without_an_evaluation_is_warned_of() -> None:
    with (
        pytest.warns(HpoMabWarning, match=r"after 0 of 20 examples, .* was not reported"),
        TrialReporter(_study().ask(), budget_examples=20, evaluations=1),
    ):
        pass


def test_another_number_of_evaluations_is_warned_of() -> None:
    study = _study()

    def objective(trial: optuna.Trial) -> float:
        count = 2 if trial.number == 0 else 4
        reporter = TrialReporter(trial, budget_examples=8, evaluations=count)
        reporter.step(8)
        reporter.report(accuracy=0.5)
        return reporter.accuracy

    study.optimize(objective, n_trials=1)
    with pytest.warns(HpoMabWarning, match="evaluations is 4, of trial 0 it was 2"):
        study.optimize(objective, n_trials=1)


@pytest.mark.parametrize(
    ("budgets", "warned"),
    [
        ((6 * 32, 6 * 50), False),  # Equal steps.
        ((400, 416), False),  # Rounded to whole steps.
        ((6 * 32, 12 * 50), True),
    ],
)
def test_budgets_of_searched_batch_sizes_are_warned_of_where_they_differ(
    budgets: tuple[int, int], warned: bool
) -> None:
    study = _study()
    for size in (50, 32):
        study.enqueue_trial({"batch_size": size})

    def objective(trial: optuna.Trial) -> float:
        size = trial.suggest_int("batch_size", 32, 50)
        budget = budgets[size == 50]
        reporter = TrialReporter(trial, budget_examples=budget, evaluations=1)
        reporter.step(budget)
        reporter.report(accuracy=0.5)
        return reporter.accuracy

    said = pytest.warns(HpoMabWarning, match="budget in examples is 192, of trial 0 it was 600")
    with said if warned else contextlib.nullcontext():
        study.optimize(objective, n_trials=2)


@pytest.mark.filterwarnings("ignore:The loop has ended:hpo_mab.HpoMabWarning")
def test_a_trial_that_ended_early_had_as_many_evaluations_to_make() -> None:
    def objective(trial: optuna.Trial) -> float:
        with TrialReporter(trial, budget_examples=8, evaluations=4) as reporter:
            reporter.step(4)
            reporter.report(accuracy=0.5)
        return reporter.accuracy

    # A warning would be an error.
    _study().optimize(objective, n_trials=2)


def test_a_network_may_keep_one_tensor_in_two_buffers() -> None:
    class Remembers(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("last", torch.ones(2))

    model = Remembers()
    with TrialReporter(_study().ask(), model=model, budget_examples=20, evaluations=2) as reporter:
        for step in range(2):
            model.mean = model.last = torch.full((2,), 5.0 + step)
            reporter.step(10)
            network = reporter.network
            assert isinstance(network, Remembers)
            reporter.report(accuracy=0.5)
    # The learning rate decays, so the last evaluation is that of the trained weights.
    assert network.mean.tolist() == network.last.tolist() == [6.0, 6.0]


def test_the_network_to_evaluate_has_the_numbers_that_the_model_keeps_in_python() -> None:
    layer = nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(3, 2), layer)
    reporter = TrialReporter(_study().ask(), model=model, budget_examples=20, evaluations=2)
    layer.p = 0.25
    network = reporter.network
    assert isinstance(network, nn.Sequential)
    assert network[1].p == 0.25


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("curriculum", "CurriculumSampler"),
        ("torch.utils.data:RandomSampler", "torch.utils.data:RandomSampler"),
        (type("Own", (MABSampler,), {"_name": None}), "Own"),
    ],
)
def test_a_sampler_that_is_not_the_uniform_one_is_stored_by_name(kind: Any, name: str) -> None:
    study = optuna.create_study(direction="maximize")
    sampler = create(kind, [0, 1] * 4, batch_size=2, difficulty=torch.arange(8.0))
    with TrialReporter(study.ask(), budget_examples=8, evaluations=1, sampler=sampler) as reporter:
        reporter.step(8)
        reporter.report(accuracy=0.5)
    assert study.trials[0].user_attrs["hpo_mab:sampler"] == name
