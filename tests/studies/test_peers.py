"""The study of peers: one task for all arms, its measurements and its tables."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from tools import load

from hpo_mab import models
from hpo_mab.search import StudyRunner, load_spec, make_spec
from hpo_mab.search._claim import claim
from hpo_mab.search._prepare import load_splits
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage, open_study
from hpo_mab.training import Budget
from hpo_mab.training._schedule import Schedule

PEERS = Path(__file__).parents[2] / "studies/peers"
MODULES = (
    "contract",
    "on_hpo_mab",
    "on_neps",
    "on_optuna",
    "on_ray_tune",
    "on_syne_tune",
    "tables",
    "usual",
)

#: A peer that needs no library: it logs two trials and waits to be ended.
SCRIPT = """
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, {peers!r})
from contract import Event, EventLog, Outcome, knobs, main, read_events

CONFIG = {{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "label_smoothing": 0.0}}


class Peer:
    def search(self, job):
        log = EventLog(job.folder)
        for trial, shares in (("0", 8), ("1", 3)):
            log.add(Event(trial=trial, at=time.time(), share=0, config=CONFIG))
            for share in range(1, shares + 1):
                at, accuracy = time.time(), share / 10
                log.add(Event(trial=trial, at=at, share=share, examples=4, accuracy=accuracy))
        if {crash}:
            raise OSError("shard 3 is gone")
        signal.pause()

    def outcome(self, job):
        events = tuple(read_events(job.folder))
        return Outcome(config=knobs(CONFIG), accuracy=0.8, known=1, events=events)


if __name__ == "__main__":
    main({{"fake": Peer()}})
"""


@pytest.fixture(name="peers", scope="module")
def _peers() -> Any:
    """The scripts' modules by name, for this file of tests."""
    sys.path.insert(0, str(PEERS))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(PEERS))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(name="command")
def _command(peers: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PEERS))
    return load("peers/run")


@pytest.fixture(name="job")
def _job(peers: Any, tmp_path: Path) -> Any:
    """Work on 256 random images of 8 by 8."""
    draws = torch.Generator().manual_seed(0)
    parts = {
        name: (torch.randn(size, 1, 8, 8, generator=draws), torch.arange(size) % 10)
        for name, size in (("train", 256), ("validation", 50), ("test", 50))
    }
    data = tmp_path / "data.pt"
    torch.save({**parts, "classes": 10}, data)
    folder = tmp_path / "arm"
    folder.mkdir()
    return peers["contract"].Job(
        arm="fake",
        task="digits",
        seed=0,
        deadline=time.time() + 0.05,
        device="cpu",
        workers=1,
        folder=str(folder),
        data=str(data),
        root="data",
    )


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10"])
def test_the_peers_have_the_studies_task_space_and_budget(peers: Any, name: str) -> None:
    contract = peers["contract"]
    task, spec = contract.TASKS[name], load_spec(name)
    assert (task.data, task.model) == (spec.data.name, spec.model.name)
    assert (task.epochs, contract.EVALUATIONS) == (spec.budget.epochs, spec.budget.evaluations)
    assert (task.batch_size, contract.WARMUP) == (spec.training.batch_size, spec.training.warmup)
    assert spec.training.schedule == "linear"
    given = spec.model_dump(mode="json")
    ranges = {**given["optimizer"], "label_smoothing": given["training"]["label_smoothing"]}
    for knob, one in contract.SPACE.items():
        found = ranges[knob]
        assert (found["low"], found["high"], bool(found.get("log"))) == (one.low, one.high, one.log)


def test_the_peers_train_and_validate_on_the_examples_of_the_study(
    peers: Any, tmp_path: Path
) -> None:
    path = tmp_path / "digits.pt"
    peers["usual"].prepare(peers["contract"].TASKS["digits"], path, root="data", seed=3)
    found = torch.load(path)
    splits = load_splits(load_spec("digits", {"seed": 3}))
    for name in ("train", "validation", "test"):
        assert torch.equal(found[name][1], getattr(splits, name).labels)


def test_every_arm_answers_the_contract(command: Any) -> None:
    assert len(command.ARMS) == 13
    for name, arm in command.ARMS.items():
        assert callable(arm.search), name
        assert callable(arm.outcome), name
        assert isinstance(arm.each_worker, bool), name
        assert arm.packages, name


def test_the_usual_training_has_the_products_steps_and_schedule(peers: Any, job: Any) -> None:
    usual, knobs = peers["usual"], dict.fromkeys(peers["contract"].SPACE, 0.1)
    training = usual.Training(job, knobs, seed=0)
    steps = Budget(epochs=8).num_steps(num_examples=256, batch_size=64)
    schedule = Schedule(steps=steps, warmup=0.15)
    rates = []
    training._optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    while training.share < 8:
        training.advance()
    assert rates == pytest.approx([0.1 * schedule.factor(s) for s in range(steps)])
    network = models.create("small_cnn", in_channels=1, num_classes=10, image_size=(8, 8))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in training.model.state_dict().items()} == shapes


def test_a_training_continues_from_its_checkpoint(peers: Any, job: Any, tmp_path: Path) -> None:
    usual, knobs = peers["usual"], dict.fromkeys(peers["contract"].SPACE, 0.1)
    given = {"trial": "7", "after": tmp_path / "a.pt"}
    usual.train_to(job, knobs, share=2, before=None, **given)
    usual.train_to(job, knobs, share=8, before=tmp_path / "a.pt", **given)
    events = peers["contract"].read_events(job.folder)
    assert [event.share for event in events] == [0, 1, 2, 0, 3, 4, 5, 6, 7, 8]
    # No accuracy is asked for between the rungs.
    assert [event.share for event in events if event.accuracy is not None] == [2, 8]
    assert sum(event.examples for event in events) == 8 * 256


def test_optuna_searches_until_its_time_is_over(
    peers: Any, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = peers["on_optuna"].ARMS["optuna_median_tensors"]
    monkeypatch.setattr(peers["contract"].Job, "seconds_left", 1e-3)  # One trial.
    arm.search(job)
    found = arm.outcome(job)
    assert found.known == 1
    assert found.config == found.events[0].config
    assert [event.share for event in found.events] == list(range(9))
    assert found.events[-1].accuracy == found.accuracy
    test = peers["usual"].retrain(job, found.config, seed=90_001)
    assert 0 <= test <= 1


def test_a_study_of_ours_is_read_as_events(peers: Any, job: Any) -> None:
    spec = make_spec(
        {
            **load_spec("digits").model_dump(mode="json"),
            "budget": {"epochs": 0.5, "evaluations": 8, "trials": 2},
        }
    )
    storage = Storage(str(Path(job.folder) / "studies.db"))
    run = StudyRunner(spec, storage).run("peers").run
    storage.close()
    found = peers["on_hpo_mab"].ARMS["hpo_mab_mab"].outcome(job)
    assert found.known == 2
    assert run.best is not None
    assert found.accuracy == run.best.value
    assert found.config["lr"] == run.best.params["lr"]
    assert sum(event.examples for event in found.events) == run.examples
    training = sum(event.training for event in found.events)
    assert training == pytest.approx(run.seconds)
    starts = [event for event in found.events if event.share == 0]
    assert [event.trial for event in starts] == ["0", "1"]


def test_an_arm_without_a_study_has_found_nothing(peers: Any, job: Any) -> None:
    found = peers["on_hpo_mab"].ARMS["hpo_mab_mab"].outcome(job)
    assert (found.config, found.known, found.events) == (None, 0, ())


def _fake(command: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *, crash: bool) -> None:
    script = folder / "fake.py"
    script.write_text(SCRIPT.format(peers=str(PEERS), crash=crash))
    arm = command.on_optuna.Optuna(pruner=None, each_worker=False)
    monkeypatch.setattr(command, "ARMS", {"fake": arm})
    monkeypatch.setattr(command, "_FILES", {"fake": str(script)})


def test_an_arm_is_ended_at_its_deadline_and_measured(
    command: Any, job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _fake(command, monkeypatch, tmp_path, crash=False)
    job = dataclasses.replace(job, deadline=math.inf)

    def until_logged(self: Any, until: float) -> None:
        while len(command.read_outcome.__globals__["read_events"](job.folder)) < 13:
            time.sleep(0.02)

    wait = command.Processes.wait
    monkeypatch.setattr(
        command.Processes,
        "wait",
        lambda self, until: (until_logged if math.isinf(until) else wait)(self, until),
    )
    found = command.run(job, minutes=1)
    assert (found["started"], found["finished"], found["stopped"]) == (2, 1, 1)
    assert found["examples"] == 11 * 4
    assert found["best"]["accuracy"] == 0.8
    assert len(found["test"]) == 2
    assert found["seconds_to_first_result"] <= found["seconds_to_first_finished"]
    ((_, spent, accuracy),) = found["finished_trials"]
    assert (spent, accuracy) == (8 * 4, 0.8)
    json.dumps(found)


def test_an_arm_that_crashes_is_no_result(
    command: Any, job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _fake(command, monkeypatch, tmp_path, crash=True)
    with pytest.raises(RuntimeError, match="shard 3 is gone"):
        command.run(dataclasses.replace(job, deadline=time.time() + 600), minutes=10)


def test_versions_of_arms_that_were_run_before_stay(command: Any) -> None:
    before = {"cpu": "a", "packages": {"optuna": "5.0", "torch": "2.9"}}
    now = {"cpu": "a", "packages": {"ray": "2.6", "torch": "2.9"}}
    packages = {"optuna": "5.0", "ray": "2.6", "torch": "2.9"}
    assert command.merged(before, now) == {"cpu": "a", "packages": packages}


def test_a_line_that_a_kill_has_cut_off_is_left_out(peers: Any, tmp_path: Path) -> None:
    contract = peers["contract"]
    log = contract.EventLog(tmp_path)
    log.add(contract.Event(trial="0", at=2.0, share=1, accuracy=0.5))
    (tmp_path / "events-1.jsonl").write_text(
        json.dumps(dataclasses.asdict(contract.Event(trial="1", at=1.0, share=0))) + '\n{"trial"'
    )
    assert [event.trial for event in contract.read_events(tmp_path)] == ["1", "0"]


def _run(arm: str, *finished: list[float | None], seed: int = 0, **more: Any) -> dict[str, Any]:
    common = {"examples": 800, "seconds_to_the_end": 60.0, "test": [], "memory": 2**30}
    counts = dict.fromkeys(("started", "finished", "stopped"), 1)
    firsts = {"seconds_to_first_result": 1.0, "seconds_to_first_finished": None}
    found = {"arm": arm, "seed": seed, "finished_trials": list(finished), "not_training": 0.25}
    return {**found, **common, **counts, **firsts, **more}


def test_incumbents_are_of_whole_trials_by_wall_clock_and_by_examples(
    peers: Any, command: Any
) -> None:
    tables, event = peers["tables"], peers["contract"].Event
    events = [
        event(trial="0", at=11.0, share=0),
        event(trial="0", at=12.0, share=4, examples=100, accuracy=0.99),
        event(trial="0", at=16.0, share=8, examples=100, accuracy=0.7),
        event(trial="1", at=13.5, share=8, examples=0, accuracy=None),
        event(trial="2", at=14.0, share=8, examples=200, accuracy=0.6),
        event(trial="3", at=17.0, share=8, examples=200, accuracy=0.65),
    ]
    finished = command.finished_trials(events, began=10.0)
    run = _run("optuna_median", *finished)
    seconds, accuracies = tables.incumbents(run, by="seconds")
    assert (seconds.tolist(), accuracies.tolist()) == ([4.0, 6.0], [0.6, 0.7])
    assert tables.incumbents(run, by="examples")[0].tolist() == [300.0, 400.0]
    assert tables.first_reached(run, 0.65, by="seconds") == 6.0
    assert tables.first_reached(run, 0.8, by="seconds") == math.inf
    read = tables.at(run, np.array([3.0, 4.0, 5.0, 9.0]), by="seconds")
    np.testing.assert_allclose(read, [math.nan, 0.6, 0.6, 0.7])


def test_tables_and_figure_of_a_record(peers: Any) -> None:
    tables = peers["tables"]
    runs = []
    for seed in range(3):
        own = [[10.0 + seed, 200, 0.8], [30.0, 400, 0.9]]
        runs.append(_run("hpo_mab_mab", *own, seed=seed, test=[0.9, 0.8]))
        runs.append(_run("optuna_median", [40.0, 800, 0.8], seed=seed, test=[0.8, 0.8]))
        runs.append(_run("ray_asha", [20.0, 800, 0.95], seed=seed))
    record = {"task": "digits", "minutes": 1.0, "device": "cpu", "workers": 2, "runs": runs}
    lines = tables.searches(record)
    assert len(lines) == 2 + 3
    assert "| 90.00% |" in lines[2]
    assert "60/60/60" in lines[2]
    ours = tables.contrasts(record)
    assert len(ours) == 2 + 2
    # A quarter of the wall clock to the accuracy of the first peer, never that of the second.
    assert "| +10.00 | 0.27 (" in ours[2]
    assert "| at least 3.00 (" in ours[3]
    # One seed has no interval.
    one = tables.contrasts({**record, "runs": runs[:3]})
    assert "| +10.00 | 0.25 | 0.25 | +5.00 |" in one[2]
    (_, _, fast, slow, _) = tables.reached(record, [80.0, 90.0])
    assert fast == "| `hpo_mab_mab` | 11 (10 to 12), 3 of 3 | 30 (30 to 30), 3 of 3 |"
    assert slow == "| `optuna_median` | 40 (40 to 40), 3 of 3 | -, 0 of 3 |"
    (_, _, first, second) = tables.shares(record)
    assert first == "| `hpo_mab_mab` | `optuna_median` | 0.18 (0.17 to 0.20), 3 of 3 | -, 0 of 3 |"
    assert second.endswith("| -, 0 of 3 | 0.33 (0.33 to 0.33), 3 of 3 |")
    drawn = tables.figure([record])
    assert {trace.name for trace in drawn.data} == {"hpo_mab_mab", "optuna_median", "ray_asha"}
    # An arm has the same line in every row, and one entry in the legend.
    other = {**record, "runs": [*reversed(runs), _run("hpo_mab_auto", [9.0, 200, 0.7])]}
    both = tables.figure([other, record]).data
    for arm in ("hpo_mab_mab", "hpo_mab_auto"):
        own = [trace for trace in both if trace.name == arm]
        assert len({(trace.line.color, trace.line.dash) for trace in own}) == 1
        assert [trace.showlegend for trace in own].count(True) == 1


def test_the_trials_that_a_kill_cuts_off_are_those_that_were_running(
    command: Any, peers: Any
) -> None:
    event, outcome = peers["contract"].Event, peers["contract"].Outcome
    events = (
        event(trial="ended", at=1.0, share=8, process=1),
        event(trial="running", at=2.0, share=0, process=2),
        event(trial="running", at=3.0, share=4, process=2),
        event(trial="stopped", at=4.0, share=2, process=3),
    )
    found = outcome(config=None, accuracy=None, known=0, events=events)
    assert command._running(found, {1, 2}) == {"running"}
    by_its_records = dataclasses.replace(found, running=("stopped",))
    assert command._running(by_its_records, {1, 2}) == {"stopped"}


def test_trials_that_run_by_a_librarys_records(peers: Any, job: Any) -> None:
    ours, optunas = peers["on_hpo_mab"].ARMS["hpo_mab_mab"], peers["on_optuna"].ARMS
    storage = Storage(str(Path(job.folder) / "studies.db"))
    StudyRunner(load_spec("digits", {"budget.trials": 1, "budget.epochs": 0.1}), storage).run(
        "peers"
    )
    assert ours.outcome(job).running == ()
    study = open_study(storage, "peers")
    StudyTarget(trials=2, total=None, epoch_examples=1).save(study)
    claim(study, storage, [], count=1)
    storage.close()
    assert ours.outcome(job).running == ("1",)
    study = optuna.create_study(study_name="peers", storage=peers["on_optuna"]._storage(job))
    study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    study.ask()
    assert optunas["optuna_median"].outcome(job).running == ("1",)


def test_each_trial_after_a_kill_is_classified(command: Any, peers: Any) -> None:
    event, config = peers["contract"].Event, {"lr": 0.1}
    own = [event(trial="0", at=1.0, share=0, config=config), event(trial="0", at=2.0, share=3)]
    again = event(trial="9", at=5.0, share=0, config=config)
    assert command._fate(own, []) == "lost"
    assert command._fate(own, [again, event(trial="9", at=6.0, share=4)]) == "continued"
    assert command._fate(own, [again, event(trial="9", at=6.0, share=1)]) == "started again"
    other = event(trial="8", at=5.0, share=0, config={"lr": 0.2})
    assert command._fate(own, [other, event(trial="8", at=6.0, share=4)]) == "lost"
