from __future__ import annotations

import io

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from hpo_mab import data
from hpo_mab.cli import _progress as module
from hpo_mab.cli._progress import StudyProgress, shown_data


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=20, label="study") as progress:
        for _ in range(20):
            clock.now += 3
            pruned = len(study.trials) % 4 == 3
            study.add_trial(
                create_trial(value=0.9, state=TrialState.PRUNED)
                if pruned
                else create_trial(value=0.01 * len(study.trials))
            )
            progress(study, study.trials[-1])
    lines = capsys.readouterr().err.splitlines()
    # Every ten seconds at most, and at the end: not each of the twenty.
    assert len(lines) == 5
    assert lines[0] == ("study: 4/20 trials, 1 pruned, best 2.00%, 20 a minute, 48.0 s left")
    assert lines[-1] == "study: 20/20 trials, 5 pruned, best 18.00%"


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=1, label="study", quiet=True) as progress:
        study.add_trial(create_trial(value=0.5))
        progress(study, study.trials[-1])
    assert capsys.readouterr().err == ""


def test_what_was_loaded_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_data(quiet=False):
        for seed in (0, 1):  # As a comparison loads them.
            data.load_splits("digits", validation=0.2, seed=seed)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(
        "digits: 1,149 training, 288 validation, 360 test images, 10 classes"
    )
    assert [line.partition(":")[0] for line in lines] == ["digits", "Training images by class"]
    with shown_data(quiet=True):
        data.load_splits("digits")
    data.load_splits("digits")
    assert capsys.readouterr().err == ""


def test_a_terminal_of_80_columns_shows_bar_rate_best_and_time_left(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        module, "console", lambda **_: Console(file=screen, force_terminal=True, width=80)
    )
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=200, label="fashion_mnist-uniform-seed0") as progress:
        for _ in range(100):
            clock.now += 3
            study.add_trial(create_trial(value=0.9))
            progress(study, study.trials[-1])
    frame = screen.getvalue().rpartition("100/200")
    assert frame[0].rpartition("\r")[2].count("━") >= 8
    assert "trials, 0 pruned, best 90.00%, 20 a minute, 5 min 0 s left" in frame[2]
    assert "fashion_mnist-uniform-seed0" in screen.getvalue().splitlines()[0]
