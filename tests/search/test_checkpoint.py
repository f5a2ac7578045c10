"""Trials that continue from a checkpoint, and which files stay."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from _faults import _fork
from small_studies import timeless

from hpo_mab import HpoMabWarning
from hpo_mab._plan import Next, Plan, trial_seed
from hpo_mab._results import Results
from hpo_mab.pruners import PromotionPruner
from hpo_mab.samplers import MABSampler
from hpo_mab.search import StudyRunner, StudySpec, TrainingObjective, make_spec, replay
from hpo_mab.search._checkpoint import Checkpoints, TrialCheckpoint, _study_key
from hpo_mab.search._claim import claim
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.search._study import open_for_training
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_loop import End, TrialLoop
from hpo_mab.search._trial_record import TrialRecord
from hpo_mab.storage import Storage, StudyRun, TrialRun, open_study, study_names
from hpo_mab.storage._open import files_folder
from hpo_mab.storage._process import release
from hpo_mab.training import Evaluation

Runner = Callable[..., StudyRunner]
KINDS = ("mab", "uniform")


def _long(kind: str = "mab", *, checkpoint: float = 1e-9, **budget: Any) -> StudySpec:
    """A study of one trial of six evaluations, a checkpoint after each, with crops and dropout."""
    return make_spec(
        {
            "name": "long",
            "budget": {"steps": 24, "evaluations": 6, "trials": 1, **budget},
            "data": {"augment": True},
            "model": {"name": "mlp", "dropout": 0.2},
            "optimizer": {"name": "sgd", "lr": {"low": 0.01, "high": 1.0, "log": True}},
            "training": {"batch_size": 64, "checkpoint": checkpoint},
            "sampler": {"kind": kind},
            "search": {"sampler": "random"},
            "pruner": {"kind": "none"},
        }
    )


@pytest.fixture(scope="module")
def objectives() -> dict[str, TrainingObjective]:
    """The data are loaded once."""
    made = {kind: make_objective(_long(kind), load_splits(_long(kind))) for kind in KINDS}
    assert all(objective.workload._augmentation is not None for objective in made.values())
    return made


@pytest.fixture(scope="module")
def clean(
    objectives: dict[str, TrainingObjective], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrialRun]:
    """An uninterrupted trial, by sampler."""
    storage = Storage(f"sqlite:///{tmp_path_factory.mktemp('clean') / 'studies.db'}")
    trials = {}
    for kind in KINDS:
        spec = _long(kind, checkpoint=0)
        runner = StudyRunner(spec, storage, objective=objectives[kind])
        (trials[kind],) = runner.run(score=False).run.trials
    storage.close()
    return trials


@pytest.fixture
def runner_of(storage: Storage, objectives: dict[str, TrainingObjective]) -> Runner:
    def make(kind: str = "mab", **options: Any) -> StudyRunner:
        return StudyRunner(_long(kind, **options), storage, objective=objectives[kind])

    return make


def _raising(what: BaseException | Callable[[], None], *, at: int) -> Any:
    """Interrupts a trial at an evaluation, the first time."""
    add, done = TrialRecord.add, []

    def cut_off(self: TrialRecord, evaluation: Evaluation) -> None:
        if evaluation.index == at and not done:
            done.append(at)
            if isinstance(what, BaseException):
                raise what
            what()
        add(self, evaluation)

    return cut_off


def _cut_off(
    runner: StudyRunner, monkeypatch: pytest.MonkeyPatch, what: BaseException, at: int = 4
) -> Path:
    """Run the study until an exception ends its trial; returns the checkpoints' folder."""
    with monkeypatch.context() as patch:
        patch.setattr(TrialRecord, "add", _raising(what, at=at))
        runner.run(score=False)
    return files_folder(runner.storage, "checkpoints")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_worker_s_trial_continues_where_it_was_saved(
    kind: str,
    runner_of: Runner,
    storage: Storage,
    clean: dict[str, TrialRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runner_of(kind)
    name, url = runner.study_name(), storage.secret_url
    runner.run(name, score=False, launch=lambda *_: False)
    storage.close()
    with monkeypatch.context() as patch:
        patch.setattr(
            TrialRecord, "add", _raising(lambda: os.kill(os.getpid(), signal.SIGKILL), at=4)
        )
        pid = _fork(url, name, runner)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    folder = files_folder(storage, "checkpoints")
    assert len(list(folder.iterdir())) == 1

    again = Storage(url)
    run = StudyRunner(runner.spec, again, objective=runner.objective).run(name, score=False).run
    lost, resumed = run.trials
    whole = clean[kind]
    assert (lost.state, resumed.state) == ("fail", "complete")
    assert (resumed.slot, resumed.attrs["hpo_mab:resumed_at"]) == (lost.slot, 3)
    assert timeless(resumed.curve) == timeless(whole.curve)
    assert [e.seconds for e in resumed.curve[:3]] == [e.seconds for e in lost.curve]
    assert resumed.curve[3].seconds > resumed.curve[2].seconds
    assert resumed.value == whole.value
    # Optuna has the whole curve under the new number, too.
    study = open_study(again, name)
    values = study.trials[resumed.number].intermediate_values
    assert values == {e.index: e.accuracy for e in whole.curve}
    assert replay(again, name, resumed.number).is_identical
    # The two attempts together have done the work of one trial.
    assert run.examples == whole.examples == again.curves.spent(study._study_id)[0]
    assert run.seconds == pytest.approx(again.curves.spent(study._study_id)[1])
    assert list(folder.iterdir()) == []
    again.close()


def test_an_interrupted_trial_continues_and_lost_work_counts_twice(
    runner_of: Runner, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of()
    save = TrialCheckpoint.save

    def save_twice(self: TrialCheckpoint, state: Any) -> None:
        if len(state()["points"]) <= 2:
            save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(TrialCheckpoint, "save", save_twice)
        _cut_off(runner, patch, KeyboardInterrupt(), at=5)
    # Interrupted again, before it is further than the first time.
    _cut_off(runner, monkeypatch, KeyboardInterrupt(), at=2)
    run = runner.run(score=False).run
    first, second, third = run.trials
    assert [len(trial.curve) for trial in run.trials] == [4, 1, 6]
    assert [trial.attrs.get("hpo_mab:resumed_at") for trial in run.trials] == [None, 2, 2]
    assert [trial.own_examples for trial in run.trials] == [
        first.curve[3].examples,
        0,
        third.curve[5].examples - third.curve[1].examples,
    ]
    assert second.own_seconds == 0
    study = open_study(storage, run.name)
    examples, seconds = storage.curves.spent(study._study_id)
    assert (examples, seconds) == (run.examples, pytest.approx(run.seconds))


def test_a_study_s_total_budget_counts_work_once(
    runner_of: Runner, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = 2 * 24 * 64
    runner = runner_of(trials=9, total=f"{examples}examples")
    _cut_off(runner, monkeypatch, KeyboardInterrupt(), at=6)
    run = runner.run(score=False).run
    # Counted twice, five sixths of a trial would have left no room for the second.
    assert [trial.state for trial in run.trials] == ["fail", "complete", "complete"]
    assert run.examples == examples


def _garble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _as_other(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    saved["identity"]["configuration"] += " "
    torch.save(saved, path)


class _Trap:
    """An object that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _trap(path: Path) -> None:
    torch.save({"identity": {}, "state": _Trap(path.with_name("sprung"))}, path)


def _without_optimizer(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    saved["state"]["model"] = {k: v + 1 for k, v in saved["state"]["model"].items()}
    del saved["state"]["optimizer"]
    torch.save(saved, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_garble, "cannot be read"),
        (_trap, "cannot be read"),
        (_as_other, "of another trial"),
        (_without_optimizer, "does not fit"),
    ],
    ids=["cut", "trap", "other", "parts"],
)
def test_a_trial_with_an_unusable_checkpoint_starts_from_zero(
    spoil: Callable[[Path], None],
    message: str,
    runner_of: Runner,
    clean: dict[str, TrialRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runner_of()
    folder = _cut_off(runner, monkeypatch, KeyboardInterrupt())
    (file,) = folder.iterdir()
    spoil(file)
    with pytest.warns(HpoMabWarning, match=message) as caught:
        run = runner.run(score=False).run
    assert len(caught) == 1
    cut, again = run.trials
    assert "hpo_mab:resumed_at" not in again.attrs
    assert again.state == "complete"
    assert len(cut.curve) == 3
    assert timeless(again.curve) == timeless(clean["mab"].curve)
    assert list(folder.iterdir()) == []


def test_a_checkpoint_is_of_one_trial_of_one_definition(
    runner_of: Runner, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of()
    folder = _cut_off(runner, monkeypatch, KeyboardInterrupt())
    (file,) = folder.iterdir()
    study = open_study(storage, runner.study_name())
    (trial,) = study.trials
    space, workload = runner.objective.space, runner.objective.workload
    seed = trial_seed(0, 0)

    def found(
        slot: int = 0, *, twin: bool = False, seed: int = seed, params: Any = trial.params
    ) -> bool:
        configuration = space.at(params)
        own = TrialCheckpoint(
            Checkpoints(folder, seconds=1),
            study,
            (slot, "uniform" if twin else ""),
            identity=lambda: workload.identity(configuration, seed=seed),
        )
        return own.load() is not None

    assert found()
    assert not found(slot=1)
    assert not found(twin=True)
    for other in ({"seed": 1}, {"params": {"lr": 0.5}}):
        with pytest.warns(HpoMabWarning, match="of another trial"):
            assert not found(**other)  # type: ignore[arg-type]
    # A renamed file is still not accepted for another trial.
    for slot, twin, name in ((1, False, "-1.pt"), (0, True, "-0-uniform.pt")):
        shutil.copy(file, folder / file.name.replace("-0.pt", name))
        with pytest.warns(HpoMabWarning, match="of another trial"):
            assert not found(slot, twin=twin)


def test_without_cuda_a_checkpoint_does_not_depend_on_graphs(
    objectives: dict[str, TrainingObjective],
) -> None:
    workload = objectives["mab"].workload
    configuration, _ = objectives["mab"].space.corners()
    found = []
    for graph in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workload, "loop", dataclasses.replace(workload.loop, graph=graph))
            found.append(workload.identity(configuration, seed=0))
    assert found[0] == found[1]


def test_another_numpy_continues_no_trial(
    objectives: dict[str, TrainingObjective], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its generators, from which bandits draw, may give other numbers.
    configuration, _ = objectives["mab"].space.corners()
    before = objectives["mab"].workload.identity(configuration, seed=0)
    monkeypatch.setattr(np, "__version__", "3.0.0")
    assert objectives["mab"].workload.identity(configuration, seed=0) != before


def test_a_trial_whose_sampler_reports_numpys_numbers_or_none_continues(
    runner_of: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = {"reward_rate": np.float64(0.5), "concentration": None}
    monkeypatch.setattr(MABSampler, "statistics", lambda sampler: statistics)
    runner = runner_of()
    _cut_off(runner, monkeypatch, KeyboardInterrupt())
    assert runner.run(score=False).run.trials[-1].attrs["hpo_mab:resumed_at"] == 3


def test_a_trial_without_its_checkpoint_starts_from_zero(
    runner_of: Runner, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of()
    (file,) = _cut_off(runner, monkeypatch, KeyboardInterrupt()).iterdir()
    file.unlink()
    _, again = runner.run(score=False).run.trials
    assert "hpo_mab:resumed_at" not in again.attrs
    assert again.state == "complete"


@pytest.mark.parametrize("seconds", [0, 60])
def test_short_trials_write_nothing(seconds: float, runner_of: Runner, storage: Storage) -> None:
    runner = runner_of(checkpoint=seconds)
    assert runner.run(score=False).run.trials[0].state == "complete"
    assert not files_folder(storage, "checkpoints").exists()


def test_a_study_that_continues_without_checkpoints_leaves_no_file(
    runner_of: Runner, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _cut_off(runner_of(), monkeypatch, KeyboardInterrupt())
    assert len(list(folder.iterdir())) == 1
    again = runner_of(checkpoint=0).run(score=False).run.trials[-1]
    assert (again.state, "hpo_mab:resumed_at" in again.attrs) == ("complete", False)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("end", [optuna.TrialPruned(), ValueError("its own fault")])
def test_a_trial_that_is_not_tried_again_leaves_no_file(
    end: Exception, runner_of: Runner, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of()
    seen: list[int] = []
    save = TrialCheckpoint.save

    def count(self: TrialCheckpoint, state: Any) -> None:
        save(self, state)
        seen.append(len(list(files_folder(storage, "checkpoints").iterdir())))

    monkeypatch.setattr(TrialCheckpoint, "save", count)
    folder = _cut_off(runner, monkeypatch, end)
    assert seen[:3] == [1, 1, 1]
    assert list(folder.iterdir()) == []


def test_files_of_open_trials_and_of_other_studies_stay(
    runner_of: Runner, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of()
    folder = _cut_off(runner, monkeypatch, KeyboardInterrupt())
    (file,) = folder.iterdir()
    other = folder / "0123456789abcdef-0.pt"
    other.touch()
    # Files of a worker that was killed while writing: of this trial, and of a finished one.
    (folder / f"{file.name}.x1").touch()
    (folder / file.name.replace("-0.pt", "-7.pt.x2")).touch()
    study = open_study(storage, runner.study_name())
    assert Plan(study.trials).unsettled() == {(0, "")}
    checkpoints = Checkpoints(folder, seconds=1)
    checkpoints.sweep(study)
    assert set(folder.iterdir()) == {file, other, folder / f"{file.name}.x1"}
    runner.run(score=False)
    assert list(folder.iterdir()) == [other]


def test_a_file_has_the_rights_that_the_umask_leaves(
    runner_of: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o002)
    try:
        (file,) = _cut_off(runner_of(), monkeypatch, KeyboardInterrupt()).iterdir()
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o664


def test_files_that_may_not_be_removed_do_not_keep_others(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=storage.optuna)
    study.add_trial(optuna.create_trial(value=0.5))
    files = {tmp_path / f"{_study_key(study)}-{slot}.pt" for slot in (1, 2)}
    for file in files:
        file.touch()
    tried = set()

    def refuse(path: Path, **options: Any) -> None:
        tried.add(path)
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    Checkpoints(tmp_path, seconds=1).sweep(study)
    assert tried == files


@pytest.mark.parametrize("folder", ["file/folder", "x" * 300])
def test_a_folder_that_cannot_be_used_does_not_stop_a_trial(
    runner_of: Runner,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPO_MAB_CHECKPOINTS", str(tmp_path / folder))
    with pytest.warns(HpoMabWarning, match="cannot be (read|written)"):
        (trial,) = runner_of().run(score=False).run.trials
    assert trial.state == "complete"


def _promotion(
    *, slots: int = 1, trials: int = 8, total: str | None = None, **training: Any
) -> StudySpec:
    """Trials that may pause at evaluations 1, 2 and 4 of 6."""
    raw = _long("uniform", trials=trials, epochs=None, total=total).model_dump(mode="json")
    raw["search"] |= {"initial": 0}
    # On a stack dropout draws from torch's own generator: the ranking would differ from run to run.
    raw["model"]["dropout"] = 0.0
    raw["training"] |= {"slots": slots, "checkpoint": 60.0, **training}
    raw["pruner"] = {"kind": "promotion"}
    return make_spec(raw)


def _chains(run: StudyRun) -> dict[int, list[TrialRun]]:
    """The trials of each slot, in order."""
    chains: dict[int, list[TrialRun]] = {}
    for trial in run.trials:
        if trial.state != "fail":
            chains.setdefault(trial.slot, []).append(trial)
    return chains


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("slots", [1, 4])
def test_paused_trials_continue_and_nothing_is_trained_twice(
    storage: Storage, slots: int, schedule: str
) -> None:
    spec = _promotion(slots=slots, schedule=schedule)
    run = StudyRunner(spec, storage).run(score=False).run
    study = open_study(storage, run.name)
    chains = _chains(run)
    assert sorted(chains) == list(range(8))
    continued = [chain for chain in chains.values() if len(chain) > 1]
    assert continued
    for chain in chains.values():
        lengths = [len(trial.curve) for trial in chain]
        assert set(lengths) <= {1, 2, 4, 6}
        assert lengths == sorted(set(lengths))
        for before, after in itertools.pairwise(chain):
            assert before.state == "pruned"
            assert after.params == before.params
            assert after.attrs["hpo_mab:promotes"] == before.number
            assert after.attrs["hpo_mab:resumed_at"] == len(before.curve)
            assert after.curve[: len(before.curve)] == before.curve
            # Optuna has all reports of the configuration under one number.
            values = study.trials[after.number].intermediate_values
            assert values == {point.index: point.accuracy for point in after.curve}
    last = continued[-1][-1]
    again = replay(storage, run.name, last.number)
    assert again.is_identical if slots == 1 else again.slots == slots
    spent = sum(chain[-1].curve[-1].examples for chain in chains.values())
    assert run.examples == storage.curves.spent(study._study_id)[0] == spent
    assert run.saved_examples == 8 * run.trial_examples - spent
    assert Plan(run.trials).finished == 8


def test_the_rule_is_applied_to_the_end_and_a_budget_lengthens_the_others(
    storage: Storage,
) -> None:
    spec = _promotion()
    run = StudyRunner(spec, storage).run(score=False).run
    study = open_for_training(storage, run.name, spec)
    pruner = study.pruner
    assert isinstance(pruner, PromotionPruner)
    assert pruner.next_best(study) is None
    left = {trial.number for trial in pruner.continuable(study, every=True)}
    assert left
    run = StudyRunner(_promotion(total="100epochs"), storage).run(score=False).run
    assert [chain[-1].state for chain in _chains(run).values()] == ["complete"] * 8
    assert run.examples == 8 * run.trial_examples
    assert not list(files_folder(storage, "checkpoints").glob("*.pt*"))


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)
def test_at_a_constant_rate_a_total_budget_lengthens_the_best(
    storage: Storage, slots: int, device: str
) -> None:
    spec = _promotion(slots=slots, trials=4, total="12epochs", schedule="constant", device=device)
    run = StudyRunner(spec, storage).run(score=False).run
    chains = _chains(run)
    assert len(chains) == 4
    longer = [trial for trial in run.trials if len(trial.curve) > 6 and trial.state == "complete"]
    assert longer
    for trial in longer:
        before = next(t for t in run.trials if t.number == trial.attrs["hpo_mab:promotes"])
        assert before.state == "complete"
        assert trial.curve[: len(before.curve)] == before.curve
        assert trial.attrs["hpo_mab:resumed_at"] == len(before.curve)
        assert len(trial.curve) == 6 * trial.attrs["hpo_mab:length"]
        assert [p.steps for p in trial.curve] == [4 * p.index for p in trial.curve]
    spent = sum(chain[-1].curve[-1].examples for chain in chains.values())
    assert run.examples == spent
    assert 0 <= spent - 12 * (run.training_examples or 0) < run.trial_examples
    again = replay(storage, run.name, longer[-1].number)
    if slots > 1:
        assert again.slots == slots
    elif device == "cpu":
        assert again.is_identical
    assert run.saved_examples == sum(
        run.trial_examples - chain[-1].examples
        for chain in chains.values()
        if chain[-1].state == "pruned" and chain[-1].budgets == 1
    )


def test_while_others_run_what_is_left_goes_to_complete_trials(storage: Storage) -> None:
    raw = _promotion(trials=2, schedule="constant").model_dump(mode="json")
    # Trials that are never paused, and so are complete.
    raw["search"] |= {"initial": 2}
    spec = make_spec(raw)
    StudyRunner(spec, storage).run(score=False)
    name = study_names(storage)[0]
    study = open_for_training(storage, name, spec)
    for total, following, count in ((None, Next.DONE, 0), ("50epochs", None, 2)):
        StudyTarget(trials=2, total=total, epoch_examples=1149).save(study)
        taken: list[optuna.trial.Trial] = []
        assert claim(study, storage, taken, count=2, is_saved=lambda trial: True) is following
        assert len(taken) == count
        for one in taken:
            study.tell(one, state=optuna.trial.TrialState.FAIL)
            release(storage.optuna, one._trial_id)
    first, second = taken
    assert first.user_attrs["hpo_mab:slot"] != second.user_attrs["hpo_mab:slot"]
    assert first.user_attrs["hpo_mab:length"] == second.user_attrs["hpo_mab:length"] == 2


@pytest.mark.parametrize("slots", [1, 4])
def test_a_trial_that_is_cut_off_at_its_end_is_not_trained_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    spec = _promotion(slots=slots, trials=8, schedule="constant")
    finish, cut = TrialLoop._finish, []

    def cut_off(self: TrialLoop, *ends: End) -> None:
        if not cut and any(end.state == optuna.trial.TrialState.COMPLETE for end in ends):
            cut.extend(end.trial.number for end in ends)
            raise KeyboardInterrupt
        finish(self, *ends)

    with monkeypatch.context() as patch:
        patch.setattr(TrialLoop, "_finish", cut_off)
        assert StudyRunner(spec, storage).run(score=False).interrupted
    assert cut
    run = StudyRunner(spec, storage).run(score=False).run
    again = [t for t in run.trials if t.state == "complete" and t.own_examples == 0]
    assert {trial.slot for trial in again} == {run.trials[number].slot for number in cut}
    for trial in again:
        assert len(trial.curve) == 6
        assert trial.value == trial.curve[-1].accuracy


def test_without_checkpoints_complete_trials_do_not_continue(storage: Storage) -> None:
    spec = _promotion(trials=3, total="20epochs", schedule="constant", checkpoint=0.0)
    run = StudyRunner(spec, storage).run(score=False).run
    assert [chain[-1].state for chain in _chains(run).values()] == ["complete"] * 3
    assert {trial.budgets for trial in run.trials} == {1}


def test_a_lengthened_trial_that_is_cut_off_keeps_its_length(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _promotion(trials=3, total="12epochs", schedule="constant", checkpoint=1e-9)
    runner = StudyRunner(spec, storage)
    with monkeypatch.context() as patch:
        patch.setattr(TrialRecord, "add", _raising(KeyboardInterrupt(), at=8))
        assert runner.run(score=False).interrupted
    run = runner.run(score=False).run
    (cut,) = (trial for trial in run.trials if trial.state == "fail")
    again = run.trials[cut.number + 1]
    assert cut.attrs["hpo_mab:length"] == again.attrs["hpo_mab:length"]
    assert (cut.attrs["hpo_mab:resumed_at"], again.attrs["hpo_mab:resumed_at"]) == (6, 7)


def test_checkpoints_that_no_trial_can_use_are_removed(storage: Storage) -> None:
    raw = _promotion(trials=16).model_dump(mode="json")
    raw["pruner"] = {"kind": "promotion", "reduction_factor": 4}
    spec = make_spec(raw)
    run = StudyRunner(spec, storage).run(score=False).run
    study = open_for_training(storage, run.name, spec)
    pruner = study.pruner
    assert isinstance(pruner, PromotionPruner)
    kept = {f"-{trial.user_attrs['hpo_mab:slot']}.pt" for trial in pruner.worth_keeping(study)}
    files = [path.name for path in files_folder(storage, "checkpoints").glob("*.pt*")]
    assert {f"-{name.rpartition('-')[2]}" for name in files} <= kept
    paused = sum(chain[-1].state == "pruned" for chain in _chains(run).values())
    assert 0 < len(files) < paused


def test_a_continued_trial_that_is_cut_off_continues_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = StudyRunner(_promotion(checkpoint=1e-9), storage)
    whole = _chains(runner.run(score=False).run)
    add = TrialRecord.add

    def cut_off(self: TrialRecord, evaluation: Evaluation) -> None:
        if evaluation.index == 2 and "hpo_mab:promotes" in self._trial.user_attrs:
            raise KeyboardInterrupt
        add(self, evaluation)

    second = runner.study_name() + ".2"
    with monkeypatch.context() as patch:
        patch.setattr(TrialRecord, "add", cut_off)
        assert runner.run(second, score=False).interrupted
    run = runner.run(second, score=False).run
    (cut,) = (trial for trial in run.trials if trial.state == "fail")
    again = run.trials[cut.number + 1]
    assert cut.attrs["hpo_mab:promotes"] == again.attrs["hpo_mab:promotes"]
    assert (cut.attrs["hpo_mab:resumed_at"], again.attrs["hpo_mab:resumed_at"]) == (1, 1)
    for slot, chain in _chains(run).items():
        expected = [timeless(trial.curve) for trial in whole[slot]]
        assert [timeless(trial.curve) for trial in chain] == expected


def test_trials_in_slots_continue_where_the_record_of_examples_is_turned_off(
    storage: Storage,
) -> None:
    first = StudyRunner(_promotion(slots=4), storage).run(score=False).run
    spec = _promotion(slots=4, total="20epochs", examples=False)
    run = StudyRunner(spec, storage).run(score=False).run
    more = run.trials[len(first.trials) :]
    assert more
    assert all("hpo_mab:resumed_at" in trial.attrs for trial in more)


def test_without_checkpoints_paused_trials_start_from_zero(storage: Storage) -> None:
    run = StudyRunner(_promotion(checkpoint=0.0), storage).run(score=False).run
    assert any(len(chain) > 1 for chain in _chains(run).values())
    for chain in _chains(run).values():
        for before, after in itertools.pairwise(chain):
            assert "hpo_mab:resumed_at" not in after.attrs
            # The same seed: the same training.
            assert [p.accuracy for p in after.curve[: len(before.curve)]] == [
                p.accuracy for p in before.curve
            ]
    assert run.examples == sum(trial.curve[-1].examples for trial in run.trials)


def test_machines_of_different_time_zones_share_checkpoints(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="Heartbeat"):
        optuna.create_study(study_name="study", storage=storage.optuna).ask()
    keys = set()
    try:
        for zone in ("UTC0", "JST-9"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            other = Storage(str(storage.file))
            keys.add(_study_key(open_study(other, "study")))
            other.close()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert len(keys) == 1


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.filterwarnings("ignore:(The|A) checkpoint:hpo_mab.HpoMabWarning")
def test_a_complete_trial_continues_only_where_its_checkpoint_fits(
    storage: Storage, slots: int
) -> None:
    """One of slots fits only slots; a trial that was trained alone continues alone."""
    first = _promotion(slots=5 - slots, trials=4, total="12epochs", schedule="constant")
    before = StudyRunner(first, storage).run(score=False).run
    assert any(trial.state == "complete" for trial in before.trials)
    more = _promotion(slots=slots, trials=4, total="40epochs", schedule="constant")
    outcome = StudyRunner(more, storage).run(score=False)
    longer = [trial for trial in outcome.run.trials[len(before.trials) :] if trial.budgets > 1]
    if slots == 1:
        assert not longer
        assert any("continue only in slots" in reason for reason in outcome.notes)
    else:
        assert longer
        assert all("hpo_mab:resumed_at" in trial.attrs for trial in longer)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.filterwarnings("ignore:(The|A) checkpoint:hpo_mab.HpoMabWarning")
def test_a_complete_trial_is_not_repeated_where_its_checkpoint_is_broken(
    storage: Storage, slots: int
) -> None:
    first = _promotion(slots=slots, trials=4, total="12epochs", schedule="constant")
    before = StudyRunner(first, storage).run(score=False).run
    for file in files_folder(storage, "checkpoints").glob("*.pt"):
        file.write_bytes(b"broken")
    more = _promotion(slots=slots, trials=4, total="40epochs", schedule="constant")
    run = StudyRunner(more, storage).run(score=False).run
    given_up = [
        trial
        for trial in run.trials[len(before.trials) :]
        if "continues is gone" in trial.attrs.get("hpo_mab:reason", "")
    ]
    assert given_up
    assert {trial.state for trial in given_up} == {"pruned"}
    assert all(trial.own_examples == 0 for trial in given_up)
    assert all(trial.own_examples <= run.trial_examples for trial in run.trials)
    # The complete trials stay, and may continue where the checkpoint can be used.
    continued = {trial.attrs["hpo_mab:promotes"] for trial in given_up}
    assert not continued & Results(run.trials).numbers_promoted
    assert run.best is not None
    assert before.best is not None
    assert (run.best.value or 0) >= (before.best.value or 0)
