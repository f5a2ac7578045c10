"""The objective by itself, as Optuna's own recipes call it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pickle
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial
from small_studies import tiny
from tools import saved
from torch import nn
from torch.utils.data import TensorDataset

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import PAIRED_KEY, SAMPLER_KEY, SLOT_KEY, TWIN_KEY
from hpo_mab._errors import ArgumentError, StorageError, UnknownNameError
from hpo_mab._plan import Plan
from hpo_mab.advantage import pair_curves
from hpo_mab.compare import stored_comparison
from hpo_mab.data import ImageSplits
from hpo_mab.search import StudyRunner, TrainingObjective
from hpo_mab.search._choice import stored_choice
from hpo_mab.search._prepare import make_objective
from hpo_mab.search._retries import requeue
from hpo_mab.search._searchers import PlannedSearcher
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.search._trial_samplers import TrialSamplers
from hpo_mab.storage import Storage, open_study, read_run
from hpo_mab.storage._open import files_folder
from hpo_mab.training import Budget


def _objective(splits: ImageSplits, **options: Any) -> TrainingObjective:
    return TrainingObjective(
        **{
            "model": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)),
            "data": splits,
            "budget": Budget(steps=6),
            "optimizer": {"lr": {"low": 0.01, "high": 1.0, "log": True}},
            "batch_size": 64,
            "evaluations": 3,
            "device": "cpu",
            **options,
        }
    )


def _study(**options: Any) -> optuna.Study:
    sampler = PlannedSearcher(optuna.samplers.RandomSampler, seed=0)
    return optuna.create_study(direction="maximize", sampler=sampler, **options)


@pytest.mark.parametrize("sampler", ["uniform", "mab", "auto"])
def test_the_best_trial_is_trained_again_as_it_was(
    splits: ImageSplits, storage: Storage, sampler: str
) -> None:
    objective = _objective(splits, sampler=sampler, initial=2, curves=storage.curves)
    study = _study(storage=storage.optuna, study_name="own")
    study.optimize(objective, n_trials=4)
    for trial in (study.best_trial, *study.trials):
        before = dict(trial.user_attrs)
        assert objective(trial) == trial.value
        assert trial.user_attrs == before
    # Nothing of it is stored: no trial, and no second curve.
    assert len(study.trials) == 4
    assert {
        len(curve) for curve in storage.curves.load([t._trial_id for t in study.trials]).values()
    } == {3}


@pytest.mark.parametrize(("device", "last"), [("cpu", True), ("mps", False)])
def test_channels_last_is_not_used_with_mps(
    splits: ImageSplits, monkeypatch: pytest.MonkeyPatch, device: str, last: bool
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    part = TensorDataset(torch.zeros(128, 64), torch.arange(128) % 10)  # Stays on the CPU.
    objective = _objective(splits, data=(part, part), channels_last=True, device=device)
    assert objective.workload.loop.channels_last is last


def test_a_fixed_trial_trains_its_configuration(splits: ImageSplits) -> None:
    objective, study = _objective(splits), _study()
    study.optimize(objective, n_trials=2)
    lr = study.trials[1].params["lr"]
    assert objective(optuna.trial.FixedTrial({"lr": lr}, number=1)) == study.trials[1].value
    with pytest.raises(ValueError, match="'lr' is not found"):
        objective(optuna.trial.FixedTrial({}))
    base = optuna.trial.BaseTrial
    wrapped = type("Wrapped", (base,), dict.fromkeys(base.__abstractmethods__))()
    with pytest.raises(ArgumentError, match=r"trial must be a Trial, .* got Wrapped"):
        objective(wrapped)


class _Jittered(TensorDataset):
    """A data set with a transform that draws from NumPy's and Python's random states."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        inputs, label = super().__getitem__(index)
        return inputs + random.random() + np.random.rand(), label


def test_transforms_draw_from_the_random_states_of_the_trial() -> None:
    data = _Jittered(torch.randn(60, 4), torch.arange(60) % 3)
    objective = _objective_on((data, data), budget=Budget(epochs=2), evaluations=4, batch_size=10)
    point = objective.space.at({})

    def losses(state: Any = None, *, saved_at: int = 0) -> tuple[list[float], Any]:
        random.random()
        np.random.rand()
        found, kept = [], None
        with objective.workload.training(point, seed=1, state=state) as training:
            for evaluation in itertools.chain(training.resumed, training):
                found.append(evaluation.loss)
                if evaluation.index == saved_at:
                    kept = saved(training.state_dict())
        return found, kept

    whole, kept = losses(saved_at=2)
    assert len(set(whole)) == 4
    assert losses()[0] == whole
    assert losses(kept)[0] == whole


def test_a_training_has_gradients_whatever_the_process_has_left(splits: ImageSplits) -> None:
    study = _study()
    with torch.no_grad():
        study.optimize(_objective(splits), n_trials=1)
        assert not torch.is_grad_enabled()
    assert study.best_value > 0


@pytest.mark.parametrize("options", [{}, {"directions": ["maximize", "minimize"]}])
def test_a_study_that_minimizes_is_refused(splits: ImageSplits, options: Any) -> None:
    with pytest.raises(ArgumentError, match=r"direction='maximize', got .*'minimize'"):
        optuna.create_study(**options).optimize(_objective(splits), n_trials=1)


def test_attributes_of_the_users_own_may_have_any_name(splits: ImageSplits) -> None:
    study = _study()
    theirs = {"slot": "left", "sampler": "mine", "twin_of": [1], "promotes": 7, "lost": 3.5}
    study.enqueue_trial({"lr": 0.1}, user_attrs=theirs)
    study.optimize(_objective(splits, initial=1, pilot=True), n_trials=2)
    assert theirs.items() <= study.trials[0].user_attrs.items()
    assert [trial.user_attrs[SLOT_KEY] for trial in study.trials[:2]] == [0, 0]


def test_twins_take_no_point_of_a_grid(splits: ImageSplits) -> None:
    rates = [0.01, 0.02, 0.05, 0.1]
    study = _study()
    study.sampler = optuna.samplers.GridSampler({"lr": rates}, seed=0)
    study.optimize(_objective(splits, initial=2, pilot=True), n_trials=9)
    own = [trial.params["lr"] for trial in study.trials if TWIN_KEY not in trial.user_attrs]
    assert sorted(own) == rates
    assert len(study.trials) == 6


def test_trials_at_the_same_time_are_refused_with_the_reason(splits: ImageSplits) -> None:
    begun, checked = threading.Event(), threading.Event()

    class Slow(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            begun.set()
            assert checked.wait(60)
            return super().forward(input.flatten(1))

    objective = _objective(splits, model=lambda: Slow(64, 10), optimizer={"lr": 0.1})
    study = _study()
    thread = threading.Thread(target=study.optimize, args=(objective,), kwargs={"n_trials": 1})
    thread.start()
    assert begun.wait(60)
    try:
        with pytest.raises(ArgumentError, match="n_jobs must be 1"):
            study.optimize(objective, n_trials=1)
    finally:
        checked.set()
        thread.join()
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL"]
    assert "n_jobs must be 1" in study.trials[1].user_attrs["hpo_mab:reason"]
    # The state is free again.
    study.optimize(objective, n_trials=1)


def test_threads_and_random_state_of_the_process_are_left_as_they_were(splits: ImageSplits) -> None:
    spec = tiny(training={"threads": 2})
    seen = []

    class Looking(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(input.flatten(1))

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    objective = make_objective(spec, splits)
    objective.workload._model = lambda: Looking(64, 10)
    _study().optimize(objective, n_trials=1)
    assert set(seen) == {2}
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_study_seeds_no_device_that_it_does_not_use(
    storage: Storage, splits: ImageSplits, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    # Their states would not be restored.
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    spec = tiny(budget={"trials": 2}, training={"device": "cpu", "slots": slots})
    StudyRunner(spec, storage, objective=make_objective(spec, splits)).run(score=False)
    assert seeded == []


X = torch.zeros(8, 4)
GOOD = TensorDataset(X, torch.arange(8) % 2)


class Dicts(TensorDataset):
    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        x, y = super().__getitem__(index)
        return {"image": x, "label": y}


def _objective_on(data: Any, outputs: int = 3, **arguments: Any) -> TrainingObjective:
    return TrainingObjective(
        **{
            "model": lambda: nn.Linear(4, outputs),
            "data": data,
            "budget": Budget(steps=2),
            "optimizer": {"name": "sgd", "lr": 0.1},
            "batch_size": 4,
            "evaluations": 1,
            "device": "cpu",
            **arguments,
        }
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD, "data must be an ImageSplits or a pair of datasets.* got TensorDataset"),
        (
            (TensorDataset(X, X[:, 0] + 3.7), GOOD),
            r"labels of the training set in data must be one integer.* got 3\.7\d* at position 0",
        ),
        ((GOOD, Dicts(X, GOOD.tensors[1])), "item of the validation set in data must be a pair"),
    ],
)
def test_data_that_are_no_pairs_of_input_and_class_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        _objective_on(data)


def test_what_a_users_own_parts_return_is_checked() -> None:
    with pytest.raises(ArgumentError, match="augmentation needs ImageSplits"):
        _objective_on((GOOD, GOOD), augmentation=lambda images: images)
    study = optuna.create_study(direction="maximize")
    with pytest.raises(ArgumentError, match=r"model must make a torch\.nn\.Module, got int"):
        study.optimize(_objective_on((GOOD, GOOD), model=lambda: 3), n_trials=1)


@pytest.mark.parametrize("sampler", ["mab", "uniform"])
def test_labels_beyond_the_outputs_are_named(sampler: str) -> None:
    data = TensorDataset(X, 1 + torch.arange(8) % 3)
    objective = _objective_on((data, data), sampler=sampler)
    with pytest.raises(ArgumentError, match=r"labels must be in \[0, 3\) for a model of 3 outputs"):
        optuna.create_study(direction="maximize").optimize(objective, n_trials=1)
    fine = TensorDataset(X, torch.arange(8) % 3)
    objective = _objective_on((fine, data), sampler=sampler)
    with pytest.raises(ArgumentError, match=r"to evaluate on must be in \[0, 3\) .*, got 3"):
        optuna.create_study(direction="maximize").optimize(objective, n_trials=1)


def test_labels_stored_as_whole_floats_train() -> None:
    data = TensorDataset(X, (torch.arange(8) % 2).float())
    study = optuna.create_study(direction="maximize")
    study.optimize(_objective_on((data, data)), n_trials=1)
    assert study.best_value == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"schedule": "cosine"}, UnknownNameError, "Unknown schedule 'cosine'"),
        ({"keep": "best"}, UnknownNameError, "Unknown keep 'best'"),
        ({"average": 1.5}, ArgumentError, r"average must be a share in \[0, 1\], got 1.5"),
        ({"average": {"low": -0.1, "high": 0.5}}, ArgumentError, "average must be a share"),
        ({"early_validation": 0}, ArgumentError, "early_validation must be .* at least 1, got 0"),
        ({"evaluations": 0}, ArgumentError, "evaluations must be an integer of at least 1, got 0"),
        ({"threads": 0}, ArgumentError, "threads must be an integer of at least 1, got 0"),
        (
            {"num_workers": -1},
            ArgumentError,
            "num_workers must be an integer of at least 0, got -1",
        ),
        ({"precision": "float16"}, UnknownNameError, "Unknown precision 'float16'"),
        ({"batch_size": {"choices": [0, 32]}}, ArgumentError, "batch_size must be .* got 0"),
        ({"warmup": {"choices": [0.1, 1.5, 0.2]}}, ArgumentError, r"warmup must be .* got 1.5"),
        ({"label_smoothing": 1.0}, ArgumentError, r"label_smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_the_loop_refuses_is_refused_by_the_constructor(
    splits: ImageSplits, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _objective(splits, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "batch_size": np.int64(32),
            "warmup": np.float32(0.1),
            "average": np.float32(0.1),
            "budget": Budget(epochs=np.float32(0.5)),
            "early_validation": np.int64(50),
            "optimizer": {"lr": np.float32(0.1), "nesterov": np.bool_(True)},
            "sampler": {"kind": "psgd", "corrected": np.bool_(True)},
        },
        {
            "batch_size": {"low": np.int64(32), "high": np.int64(64), "step": np.int64(32)},
            "budget": Budget(steps=np.int64(6)),
            "evaluations": np.int64(3),
            "threads": np.int64(1),
            "sampler": {"kind": "mab", "memory": np.int64(3), "prior": (np.float32(1), 2)},
        },
        {
            "batch_size": {"choices": [np.int64(32), np.int64(64)]},
            "optimizer": {"name": "adam", "lr": {"low": np.float32(0.1), "high": np.float32(1)}},
            "seed": np.int64(1),
            "initial": np.int64(1),
            "pilot": np.bool_(True),
        },
    ],
    ids=["number", "range", "choices"],
)
def test_numbers_may_be_numpys(
    splits: ImageSplits, storage: Storage, arguments: dict[str, Any]
) -> None:
    study = _study(storage=storage.optuna)
    study.optimize(_objective(splits, curves=storage.curves, **arguments), n_trials=1)
    assert 0 < study.best_value <= 1


def test_early_evaluations_of_datasets_are_on_a_part_of_them() -> None:
    seen: list[int] = []

    class Counted(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            seen.append(index)
            return super().__getitem__(index)

    data = TensorDataset(torch.randn(64, 4), torch.arange(64) % 2)
    judged = Counted(torch.randn(20, 4), torch.arange(20) % 2)
    objective = _objective_on(
        (data, judged), early_validation=5, evaluations=3, budget=Budget(steps=3)
    )
    seen.clear()
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=2)
    first, second, last = seen[:5], seen[5:10], seen[10:30]
    assert first == second != list(range(5))
    assert last == list(range(20))
    assert seen[30:] == seen[:30]


def test_a_loop_queues_twins_with_the_lock_held(
    splits: ImageSplits, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, seen = [False], []
    hold, queue = storage.lock, TrialSamplers.queue_twins

    @contextlib.contextmanager
    def watched(name: str) -> Iterator[None]:
        with hold(name):
            held[0] = True
            try:
                yield
            finally:
                held[0] = False

    def queue_twins(self: TrialSamplers, *given: Any, **named: Any) -> bool:
        seen.append(held[0])
        return queue(self, *given, **named)

    monkeypatch.setattr(storage, "lock", watched)
    monkeypatch.setattr(TrialSamplers, "queue_twins", queue_twins)
    study = _study(storage=storage.optuna)
    StudyTarget(trials=2, total=None, epoch_examples=40).save(study)
    objective = _objective(splits, sampler="auto", initial=1, trials=2)
    TrialLoop(study, storage, objective).run()
    assert seen
    assert all(seen)
    # Without a loop, the objective queues them.
    assert not objective.recording.in_loop


def test_an_objective_keeps_no_record_for_another_study(
    splits: ImageSplits, storage: Storage
) -> None:
    objective = _objective(splits)
    for examples in (True, False):
        study = _study(storage=storage.optuna)
        StudyTarget(trials=1, total=None, epoch_examples=40).save(study)
        TrialLoop(study, storage, objective, examples=examples).run()
        assert objective.recording.example_writer is None
        assert (storage.examples.load(study._study_id) is not None) == examples


def test_studies_of_objectives_can_be_reported(splits: ImageSplits, storage: Storage) -> None:
    for kind in ("mab", "uniform"):
        objective = _objective(splits, sampler=kind, curves=storage.curves)
        study = optuna.create_study(
            study_name=f"own-{kind}",
            storage=storage.optuna,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=0),
        )
        study.optimize(objective, n_trials=4)
        # The sampler is the objective's, not the one that the trial has had before.
        other = _objective(splits, sampler="mab" if kind == "uniform" else "uniform")
        assert (
            other.configuration_of(study.trials[0].params, study.trials[0].user_attrs).sampler.name
            != kind
        )
    found = stored_comparison(["own-*"], storages=[str(storage.url)])
    assert {(run.arm, len(run.trials)) for run in found.runs} == {("mab", 4), ("uniform", 4)}
    (contrast,) = found.summarise().contrasts
    assert contrast.pairs == 4


@pytest.mark.parametrize(
    ("pruner", "last"),
    [
        (optuna.pruners.MedianPruner(n_startup_trials=1), False),
        (optuna.pruners.SuccessiveHalvingPruner(), False),
        (optuna.pruners.NopPruner(), True),
    ],
)
def test_pairs_are_trials_that_the_pruner_cannot_stop(
    splits: ImageSplits, storage: Storage, pruner: optuna.pruners.BasePruner, last: bool
) -> None:
    study = _study(storage=storage.optuna, study_name="own", pruner=pruner)
    study.optimize(_objective(splits, curves=storage.curves), n_trials=1)
    study.optimize(_objective(splits, curves=storage.curves, initial=2), n_trials=2)
    assert [trial.paired for trial in read_run(storage, "own").trials] == [True, True, last]


def test_trials_of_one_study_have_equally_many_evaluations() -> None:
    data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
    sizes = {"choices": [5, 30]}
    objective = _objective_on(
        (data, data), budget=Budget(epochs=1), evaluations=4, batch_size=sizes
    )
    with pytest.raises(ArgumentError, match="evaluations must be at most 2, the steps of a trial"):
        _study().optimize(objective, n_trials=1)


def test_a_network_must_be_a_new_one_for_each_trial() -> None:
    network = nn.Linear(4, 3)
    objective = _objective_on((GOOD, GOOD), model=lambda: network)
    study = _study()
    study.optimize(objective, n_trials=1)
    with pytest.raises(ArgumentError, match="model must make a new network at each call"):
        study.optimize(objective, n_trials=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": nn.Linear(4, 2)}, "model must be a function or class that makes.* got Linear"),
        ({"budget": 3}, "budget must be a Budget, got int"),
        ({"model_options": [1]}, "model_options must be a mapping, got list"),
        ({"optimizer": 3}, "optimizer must be the name of a class or a function, got 'int'"),
        ({"curves": "here"}, "curves must be a storage's curves, got str"),
        ({"initial": -1}, "initial must be an integer of at least 0, got -1"),
        ({"seed": 1.5}, "seed must be an integer of at least 0, got 1.5"),
        ({"total": "much"}, "total budget must be a positive amount with a unit"),
        ({"total": 3600}, "total budget must be a positive amount with a unit .* got 3600"),
        ({"portfolio": ["uniform"]}, "portfolio must be None for sampler 'mab', .* got .'uniform'"),
        ({"pilot": True}, "initial must be at least 1 with pilot, got 0"),
        (
            {"pilot": True, "initial": 1, "sampler": "uniform"},
            "pilot must be False for 'uniform', got True",
        ),
        (
            {"pilot": True, "initial": 1, "sampler": "auto"},
            "pilot must be False for 'auto', got True",
        ),
    ],
)
def test_arguments_of_other_types_are_refused_before_a_trial(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        _objective_on((GOOD, GOOD), **arguments)


@pytest.mark.parametrize("named", ["adamw", torch.optim.AdamW])
def test_an_optimiser_may_be_given_by_its_name_alone(splits: ImageSplits, named: Any) -> None:
    spaces = [_objective(splits, optimizer=one).space for one in (named, {"name": named})]
    one, other = (space.at({}) for space in spaces)
    assert one == other
    assert one.optimizer.name == "adamw" if named == "adamw" else "torch" in one.optimizer.name


@pytest.mark.parametrize("unit", ["epochs", "steps", "neither"])
def test_trials_of_searched_batch_sizes_have_lengths_of_their_own(
    splits: ImageSplits, storage: Storage, unit: str
) -> None:
    sizes = (32, 250)
    study = _study(study_name="own", storage=storage.optuna, pruner=_AfterFirst())
    for size in sizes:
        study.enqueue_trial({"batch_size": size, "lr": 0.1})
    for size in sizes:
        is_other = unit == "neither" and size == 250
        budget = Budget(steps=6) if unit == "steps" else Budget(epochs=2 if is_other else 1)
        objective = _objective(
            splits, budget=budget, batch_size={"choices": list(sizes)}, curves=storage.curves
        )
        said = pytest.warns(HpoMabWarning, match="budget in examples is 2,250, .* it was 1,152")
        with said if is_other else contextlib.nullcontext():
            study.optimize(objective, n_trials=1)
    lengths = [trial.user_attrs["hpo_mab:budget"] for trial in study.trials]
    # Epochs are rounded to whole steps of 1,149 examples.
    assert lengths[0] == {"epochs": 36, "steps": 6, "neither": 36}[unit] * 32
    assert lengths[1] == {"epochs": 5, "steps": 6, "neither": 9}[unit] * 250
    if unit == "neither":
        with pytest.raises(StorageError, match="have different budgets, 1,152 to 2,250 examples"):
            read_run(storage, "own")
        return
    run = read_run(storage, "own")
    assert run.trial_examples == lengths[1]
    assert [trial.state for trial in run.trials] == ["pruned"] * 2
    assert run.saved_examples == sum(lengths) - sum(trial.examples for trial in run.trials)


@pytest.mark.parametrize("budget", [Budget(epochs=1), Budget(steps=6)], ids=["epochs", "steps"])
def test_pairs_of_searched_batch_sizes_are_compared_at_their_ends(
    splits: ImageSplits, storage: Storage, budget: Budget
) -> None:
    for kind in ("uniform", "mab"):
        objective = _objective(
            splits,
            sampler=kind,
            budget=budget,
            batch_size={"choices": [32, 250]},
            curves=storage.curves,
        )
        study = _study(study_name=f"own-{kind}", storage=storage.optuna)
        for size in (32, 250):
            study.enqueue_trial({"batch_size": size, "lr": 0.1})
        study.optimize(objective, n_trials=2)
    runs = [read_run(storage, f"own-{kind}") for kind in ("mab", "uniform")]
    curves = pair_curves(runs[:1], runs[1:])
    # The larger batches end at more examples.
    assert curves.budgets[-1] == runs[0].trial_examples == runs[0].trials[1].examples
    ends = [[trial.curve[-1].accuracy for trial in run.trials] for run in runs]
    assert [curves.arm[:, -1].tolist(), curves.reference[:, -1].tolist()] == ends
    # A study that has tried the smaller batches only has the same budget.
    first = runs[0].trials[:1]
    small = dataclasses.replace(runs[0], trials=first, trial_examples=first[0].examples)
    assert len(pair_curves([small], runs[1:])) == 1


class _AfterFirst(optuna.pruners.BasePruner):
    """Stops each trial at its first evaluation."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return True


def test_an_objective_that_has_trained_can_be_sent_to_another_process() -> None:
    objective = _objective_on((GOOD, GOOD), model=_small_network)
    _study().optimize(objective, n_trials=1)
    sent = pickle.loads(pickle.dumps(objective))
    _study().optimize(sent, n_trials=1)


def _small_network() -> nn.Module:
    return nn.Linear(4, 2)


def test_images_need_no_loader_workers(splits: ImageSplits) -> None:
    with pytest.raises(ArgumentError, match=r"num_workers must be 0 with ImageSplits.*got 2"):
        _objective(splits, num_workers=2)


@pytest.mark.parametrize("before", [0, 13], ids=["new", "with trials"])
def test_a_race_in_optunas_own_loop_is_decided_after_ctrl_c(
    splits: ImageSplits, before: int
) -> None:
    made = []

    def network() -> nn.Module:
        made.append(None)
        if len(made) == 3:
            raise KeyboardInterrupt
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    portfolio = ["uniform", "mab"]
    objective = _objective(
        splits, model=network, sampler="auto", portfolio=portfolio, trials=12, evaluations=2
    )
    study = _study()
    study.add_trials([optuna.create_trial(value=0.5)] * before)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective, n_trials=30)
    study.optimize(objective, n_trials=30)
    choice = stored_choice(study)
    assert choice is not None
    assert choice.pairs > 0


def test_a_pilot_whose_slots_are_taken_is_warned_of(splits: ImageSplits) -> None:
    study = _study()
    study.add_trials([optuna.create_trial(value=0.5, user_attrs={PAIRED_KEY: True})] * 2)
    with pytest.warns(HpoMabWarning, match="have its first 2 slots, so there is no pilot"):
        study.optimize(_objective(splits, pilot=True, initial=2), n_trials=1)


@pytest.mark.parametrize("at", [1, 2], ids=["original", "twin"])
def test_a_pair_that_ctrl_c_has_cut_off_in_optunas_own_loop_is_repeated(
    splits: ImageSplits, at: int
) -> None:
    made = []

    def network() -> nn.Module:
        made.append(None)
        if len(made) == at:
            raise KeyboardInterrupt
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    objective = _objective(splits, model=network, pilot=True, initial=2)
    study = _study()
    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective, n_trials=9)
    study.optimize(objective, n_trials=5)
    complete = [one.user_attrs for one in study.trials if one.state.name == "COMPLETE"]
    twins = [attrs[SLOT_KEY] for attrs in complete if TWIN_KEY in attrs]
    originals = [attrs[SLOT_KEY] for attrs in complete if TWIN_KEY not in attrs]
    assert sorted(twins) == [0, 1]
    assert len(originals) == len({*originals})
    assert {*originals} > {0, 1}


@pytest.mark.parametrize("initial", [1, 0])
def test_a_twin_is_trained_as_it_was_queued_by_an_objective_without_twins(
    splits: ImageSplits, initial: int
) -> None:
    pairs, single = _objective(splits, pilot=True, initial=1), _objective(splits, initial=initial)
    whole, parts = _study(pruner=_AfterFirst()), _study(pruner=_AfterFirst())
    whole.optimize(pairs, n_trials=2)
    parts.optimize(pairs, n_trials=1)
    parts.optimize(single, n_trials=1)
    original, twin = parts.trials
    assert twin.user_attrs[SAMPLER_KEY] == "uniform"
    assert twin.intermediate_values == whole.trials[1].intermediate_values
    assert twin.intermediate_values != original.intermediate_values
    assert single(twin) == twin.value


def test_a_retry_has_the_name_of_the_sampler_that_trains_it(splits: ImageSplits) -> None:
    def network() -> nn.Module:
        raise KeyboardInterrupt

    study = _study()
    with pytest.raises(KeyboardInterrupt):
        study.optimize(_objective(splits, model=network), n_trials=1)
    requeue(study, Plan.of(study))
    study.optimize(_objective(splits, sampler="uniform"), n_trials=1)
    assert [trial.user_attrs[SAMPLER_KEY] for trial in study.trials] == ["mab", "uniform"]
    assert [trial.user_attrs[SLOT_KEY] for trial in study.trials] == [0, 0]


@pytest.mark.parametrize(
    ("options", "attrs", "words"),
    [
        (
            {},
            {SAMPLER_KEY: "gradnorm", SLOT_KEY: 0, TWIN_KEY: 0},
            "sampler must be 'gradnorm', as in .*, got mab",
        ),
        (
            {"sampler": "auto", "trials": 30},
            {SAMPLER_KEY: "gradnorm"},
            "portfolio must be one .* 'gradnorm', as in .*, got uniform, .*hard_half",
        ),
        (
            {"sampler": "auto", "trials": 30},
            {SAMPLER_KEY: "easy_first", SLOT_KEY: 0, TWIN_KEY: 0},
            "of examples for sampler 'curriculum': .* hpo-mab run and training.examples = true",
        ),
    ],
)
def test_a_trial_of_a_sampler_that_cannot_be_used_here_is_refused(
    splits: ImageSplits, options: dict[str, Any], attrs: dict[str, Any], words: str
) -> None:
    study = _study()
    study.enqueue_trial({"lr": 0.1}, user_attrs=attrs)
    with pytest.raises(ArgumentError, match=words):
        study.optimize(_objective(splits, **options), n_trials=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evaluations": 2}, "number of evaluations is 2, of trial 0 it was 3"),
        ({"budget": Budget(steps=12)}, "budget in examples is 768, of trial 0 it was 384"),
    ],
)
def test_another_length_of_trials_is_warned_of(
    splits: ImageSplits, options: dict[str, Any], words: str
) -> None:
    study = _study()
    study.optimize(_objective(splits), n_trials=2)
    with pytest.warns(HpoMabWarning, match=words):
        study.optimize(_objective(splits, **options), n_trials=1)


def test_a_study_with_a_definition_has_the_length_of_that(
    splits: ImageSplits, storage: Storage
) -> None:
    runner = StudyRunner(tiny(budget={"trials": 1}), storage)
    study = open_study(storage, runner.run(score=False).run.name)
    # Trials of `hpo-mab run` have no length of their own. A warning would be an error.
    study.optimize(runner.objective, n_trials=1)
    assert study.trials[1].state.name == "COMPLETE"


def test_files_of_ended_trials_are_removed_in_optunas_own_loop(
    splits: ImageSplits, storage: Storage
) -> None:
    objective = _objective(splits)
    objective.store_in(storage, checkpoint=1e-9)
    _study(storage=storage.optuna).optimize(objective, n_trials=3)
    (file,) = files_folder(storage, "checkpoints").iterdir()
    assert file.stem.endswith("-2")


def test_a_race_needs_a_number_of_trials(splits: ImageSplits) -> None:
    with pytest.raises(ArgumentError, match="'auto' needs trials"):
        _objective(splits, sampler="auto")


def test_a_queued_parameter_that_is_not_searched_is_warned_of(splits: ImageSplits) -> None:
    study = _study()
    study.enqueue_trial({"optimizer.lr": 0.1, "lr": 0.2})
    with pytest.warns(HpoMabWarning, match=r"queued with optimizer\.lr, .* its parameters are lr"):
        study.optimize(_objective(splits), n_trials=1)
    assert study.trials[0].params == {"lr": 0.2}
