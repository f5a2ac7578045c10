"""Ctrl-C twice during a long trial, at a terminal and between processes, with real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
import torch
from small_studies import tiny
from tools import PATIENCE, count, until
from torch.utils.data import TensorDataset

from hpo_mab._interrupts import stoppable
from hpo_mab.cli._options import silence_optuna
from hpo_mab.data import ImageData, ImageSplits, split
from hpo_mab.search import StudyRunner, TrainingObjective
from hpo_mab.search._prepare import check_corners
from hpo_mab.search._stack_loop import StackLoop
from hpo_mab.search._stacks import Stacks
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.storage import Storage, read_run
from hpo_mab.training import Budget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and terminals")

#: Exit status of the command, or SIGINT if Python had begun to end; a shell shows 130 for both.
INTERRUPTED = (130, -signal.SIGINT)

DEFINITION = """
name = "long"
[budget]
epochs = {epochs}
evaluations = 2
trials = 1
[model]
name = "mlp"
[optimizer]
name = "sgd"
[training]
batch_size = 64
[sampler]
kind = "uniform"
"""

# A new terminal, whose Ctrl-C reaches its foreground processes only.
AT_A_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "hpo_mab", *sys.argv[1:]])
"""


def _running(folder: Path) -> int:
    """Number of running trials that have begun to train."""
    begun = "trials JOIN trial_heartbeats USING (trial_id) WHERE state = 'RUNNING'"
    return count(folder / "hpo_mab.db", begun)


class _Terminal:
    """``hpo-mab`` on its own pseudo-terminal, with a keyboard."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._hands, screen = os.openpty()
        command = [sys.executable, "-c", AT_A_TERMINAL, *arguments]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=screen, stdout=screen, stderr=screen
        )
        os.close(screen)
        self.said = ""
        # A process that writes to a terminal blocks if nothing reads from it.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def press_ctrl_c(self) -> None:
        os.write(self._hands, b"\x03")

    def ends_within(self, seconds: float) -> bool:
        return until(lambda: self.process.poll() is not None, seconds)

    def processes(self) -> list[int]:
        """Living processes of the session, and its children, which have sessions of their own."""
        leader, found = self.process.pid, []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                state, parent, session = fields[0], int(fields[1]), int(fields[3])
                if state not in "ZX" and leader in (parent, session):
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        os.close(self._hands)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # The last process that could write has ended.
            while part := os.read(self._hands, 65536):
                self.said += part.decode(errors="replace")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., _Terminal]]:
    opened: list[_Terminal] = []

    def open_one(*arguments: str) -> _Terminal:
        opened.append(_Terminal(tmp_path, *arguments))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def _make(folder: Path, *, epochs: int) -> None:
    (folder / "long.toml").write_text(DEFINITION.format(epochs=epochs))


def _is_tried_again(folder: Path) -> None:
    """The next worker repeats the trial, which is marked as interrupted."""
    from hpo_mab.search._claim import claim
    from hpo_mab.storage import open_study

    storage = Storage(f"sqlite:///{folder / 'hpo_mab.db'}")
    study = open_study(storage, "long-uniform-seed0")
    before = read_run(storage, study.study_name).trials
    taken: list[Any] = []
    claim(study, storage, taken, count=1)
    after = read_run(storage, study.study_name).trials
    storage.close()
    marks = json.dumps([trial.attrs for trial in before])
    assert [trial.slot for trial in before] == [0]
    assert [(t.slot, t.state) for t in after] == [(0, "fail"), (0, "running")], marks
    assert after[0].attrs.get("hpo_mab:interrupted") or after[0].attrs.get("hpo_mab:lost")
    assert len(taken) == 1


def test_ctrl_c_twice_at_a_terminal_ends_a_long_trial_in_seconds(
    tmp_path: Path, terminal: Callable[..., _Terminal]
) -> None:
    _make(tmp_path, epochs=100_000)
    mine = terminal("run", "long.toml")
    assert until(lambda: _running(tmp_path)), mine.said
    mine.press_ctrl_c()
    time.sleep(0.2)
    mine.press_ctrl_c()
    assert mine.ends_within(PATIENCE), mine.said
    assert mine.process.returncode in INTERRUPTED, mine.said
    assert until(lambda: not mine.processes())
    assert "Traceback" not in mine.said
    _is_tried_again(tmp_path)


def test_a_connection_left_half_reset_prints_no_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    silence_optuna()
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.QueuePool)
    connection = engine.raw_connection()
    monkeypatch.setattr(engine.dialect, "do_rollback", interrupt)
    with pytest.raises(KeyboardInterrupt):
        connection.close()
    assert not caplog.records
    engine.dispose()


def test_ctrl_c_while_the_interpreter_ends_prints_no_traceback(tmp_path: Path) -> None:
    # The last thing that an interpreter does, and here the slowest.
    code = (
        "import atexit, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(600)))\n"
        "from hpo_mab.cli import main\n"
        "main()"
    )
    ending = subprocess.Popen(
        [sys.executable, "-c", code, "--help"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ending.stdout is not None
    assert any(line == "ending\n" for line in ending.stdout)
    ending.send_signal(signal.SIGINT)
    _, errors = ending.communicate(timeout=PATIENCE)
    assert ending.returncode == -signal.SIGINT
    assert errors == ""


def test_ctrl_c_after_ctrl_c_was_caught_prints_no_traceback(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from hpo_mab.cli import _main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "_main._end_at_once_on_ctrl_c = lambda: signal.raise_signal(signal.SIGINT)\n"
        "_main.main()"
    )
    command = [sys.executable, "-c", code, "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == ""


def _objective(
    network: Callable[[], torch.nn.Module] = lambda: torch.nn.Linear(3, 2), data: Any = None
) -> TrainingObjective:
    part = TensorDataset(torch.randn(40, 3), torch.tensor([0, 1] * 20))
    return TrainingObjective(
        model=network,
        data=data or (part, part),
        budget=Budget(steps=4),
        optimizer={"name": "sgd", "lr": {"low": 0.01, "high": 0.1}},
        batch_size=10,
    )


def _images() -> ImageSplits:
    pixels = torch.zeros(60, 1, 4, 4, dtype=torch.uint8)
    images = ImageData(images=pixels, labels=torch.arange(60) % 2, classes=("a", "b"))
    return split(images, images, validation=0.5)


@pytest.mark.usefixtures("python_handler")
@pytest.mark.parametrize(
    ("number", "statement"),
    [*((signal.SIGINT, statement) for statement in range(1, 60, 9)), (signal.SIGTERM, 28)],
)
def test_ctrl_c_within_a_transaction_leaves_no_lock_and_loses_no_trial(
    storage: Storage, study: optuna.Study, number: signal.Signals, statement: int
) -> None:
    """In the gap before the transaction ends, an interrupt would leave its lock held."""
    objective = _objective()
    count = 0

    @sa.event.listens_for(storage.optuna.engine, "after_cursor_execute")
    def press(*_: object) -> None:
        nonlocal count
        count += 1
        if count == statement:
            signal.raise_signal(number)

    with stoppable():
        assert TrialLoop(study, storage, objective).run()
    assert count >= statement
    assert all(trial.state.is_finished() for trial in study.trials)
    assert not TrialLoop(study, storage, objective).run()
    ended = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert sorted(trial.user_attrs["hpo_mab:slot"] for trial in ended) == [0, 1, 2]


@pytest.mark.usefixtures("python_handler")
@pytest.mark.parametrize("slots", [1, 2])
def test_ctrl_c_while_a_network_is_made_is_raised_at_once(
    storage: Storage, study: optuna.Study, slots: int
) -> None:
    made = 0

    def network() -> torch.nn.Module:
        nonlocal made
        signal.raise_signal(signal.SIGINT)
        made += 1
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))

    objective = _objective(network, _images())
    if slots == 1:
        loop = TrialLoop(study, storage, objective)
    else:
        loop = StackLoop(study, storage, objective, slots=slots)
    assert loop.run()
    assert made == 0
    assert all(trial.state.is_finished() for trial in study.trials)


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_that_a_network_catches_ends_the_start() -> None:
    def network() -> torch.nn.Module:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))

    objective = _objective(network, _images())
    with pytest.raises(KeyboardInterrupt):
        check_corners(objective)


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_before_a_storage_error_ends_the_study(
    storage: Storage, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        raise sa.exc.OperationalError("INSERT", {}, Exception("database is locked"))

    monkeypatch.setattr("hpo_mab.search._trial_record.TrialRecord.add", refuse)
    # Without the interrupt, this would be the end of the loop's patience.
    monkeypatch.setattr(Storage, "wait_until_back", lambda *_, **__: False)
    assert TrialLoop(study, storage, _objective()).run()
    assert len(study.trials) == 1


@pytest.mark.usefixtures("python_handler")
def test_ctrl_c_while_stacking_is_given_up_is_not_lost(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny(budget={"epochs": 0.1, "evaluations": 2, "trials": 4}, training={"slots": 2})

    def fail(_: object) -> None:
        raise RuntimeError("the network has a layer that no stack can train")

    monkeypatch.setattr(Stacks, "advance", fail)
    presses = iter([signal.SIGINT])
    monkeypatch.setattr(Stacks, "clear", lambda _: [signal.raise_signal(one) for one in presses])
    outcome = StudyRunner(spec, storage).run("stacked")
    assert outcome.interrupted
    assert not any(trial.state == "complete" for trial in outcome.run.trials)
