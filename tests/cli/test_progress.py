"""What commands show while they run."""

from __future__ import annotations

import io
import logging
import math
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from hpo_mab import data
from hpo_mab.cli import _progress as module
from hpo_mab.cli._progress import StudyProgress, data_lines
from hpo_mab.pruners import PromotionPruner
from hpo_mab.search._target import StudyTarget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def end(
        self, study: optuna.Study, progress: StudyProgress, *, after: float = 0.0, **trial: Any
    ) -> None:
        """Add a trial that ends some seconds later, and show it."""
        self.now += after
        study.add_trial(create_trial(**{"value": 0.5, **trial}))
        progress.ended(study, study.trials[-1])


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is shown on a terminal of 80 columns."""
    shown = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        module, "console", lambda **_: Console(file=shown, force_terminal=True, width=80)
    )
    return shown


def _spending(study: optuna.Study, each: int, *, before: int = 0) -> Any:
    """Curves of trials that have spent equally many examples each."""

    def spent(study_id: int, *, after: int = -1, until: float = math.inf) -> tuple[int, float]:
        counted = sum(after < trial._trial_id <= until for trial in study.trials)
        return before * (after < 0) + each * counted, 0.0

    return SimpleNamespace(spent=spent)


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=20, label="study") as progress:
        for _ in range(20):
            pruned = {"value": 0.9, "state": TrialState.PRUNED}
            number = len(study.trials)
            trial = pruned if number % 4 == 3 else {"value": 0.01 * number}
            clock.end(study, progress, after=3, **trial)
    lines = capsys.readouterr().err.splitlines()
    # Every ten seconds at most, and at the end: not each of the twenty.
    assert len(lines) == 5
    assert lines[0] == ("study: 4/20 trials, 1 pruned, best 2.00%, 20 per minute, 48.0 s left")
    assert lines[-1] == "study: 20/20 trials, 5 pruned, best 18.00%"


def test_the_time_left_is_that_of_the_total_budget_where_it_ends_first(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(direction="maximize")
    StudyTarget(trials=400, total="20epochs", epoch_examples=100).save(study)
    # Every trial takes a twentieth of the budget; an earlier run has spent a tenth.
    curves = _spending(study, 100, before=200)
    with StudyProgress(trials=400, label="study", curves=curves) as progress:
        for _ in range(4):
            clock.end(study, progress, after=10)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "study: 4/400 trials, 0 pruned, best 50.00%, 6 per minute, 2 min 20 s left"


def test_while_trials_are_lengthened_the_time_left_is_that_of_the_budget(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    pruner = PromotionPruner(max_resource=8, unlimited=True)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    StudyTarget(trials=1, total="20epochs", epoch_examples=100).save(study)
    # Every trial takes a tenth of the budget.
    curves = _spending(study, 200)
    with StudyProgress(trials=1, label="study", curves=curves) as progress:
        for number in range(10):
            before = {"hpo_mab:promotes": number - 1} if number else {}
            clock.end(study, progress, after=4, user_attrs={"hpo_mab:slot": 0, **before})
    assert capsys.readouterr().err.splitlines() == [
        "study: 1/1 trials, 0 pruned, best 50.00%",
        "study: 1/1 trials, 0 pruned, best 50.00%, 24.0 s left",
        "study: 1/1 trials, 0 pruned, best 50.00%, 12.0 s left",
        "study: 1/1 trials, 0 pruned, best 50.00%",
    ]


def test_a_long_trial_shows_how_far_it_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=20, label="study") as progress:
        for second in range(1, 41):
            clock.now += 1
            progress.running({0: second / 80})
        clock.end(study, progress)
        clock.now += 9.9
        progress.running({1: 0.2})
        clock.now += 10
        progress.running({1: 0.6, 2: 0.1})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "study: no new trial has ended yet; trial 0 at 12%, 1 min 10 s left of it",
        "study: no new trial has ended yet; trial 0 at 25%, 1 min 0 s left of it",
        "study: no new trial has ended yet; trial 0 at 38%, 50.0 s left of it",
        "study: no new trial has ended yet; trial 0 at 50%, 40.0 s left of it",
        "study: 1/20 trials, 0 pruned, best 50.00%, 1.5 per minute, 12 min 40 s left; "
        "2 trials running, trial 1 at 60%, 10.0 s left of it",
    ]


def test_training_the_best_trial_again_shows_how_far_it_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=1, label="study") as progress:
        clock.end(study, progress, after=60)
        progress.testing({0: 0.1})
        clock.now += 20
        progress.testing({0: 0.5})
    assert capsys.readouterr().err.splitlines()[-1] == (
        "study: 1/1 trials, 0 pruned, best 50.00%; training trial 0 again for its test accuracy, "
        "50%, 25.0 s left of it"
    )


def test_short_trials_show_no_progress_of_their_own(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=20, label="study") as progress:
        for number in range(20):
            for share in (0.25, 0.5, 0.75, 1.0):
                clock.now += 1
                progress.running({number: share})
            clock.end(study, progress)
    assert "trial " not in capsys.readouterr().err


def test_a_long_trial_has_a_bar_of_its_own(clock: Clock, screen: io.StringIO) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=30, label="study") as progress:
        clock.now += 600
        progress.running({0: 0.4})
        clock.now += 600
        progress.running({0: 0.8})
        progress._live.refresh()
        during = screen.getvalue()
        clock.end(study, progress)
    assert "trial 0 at 80%, 5 min 0 s left of it" in during
    assert "trial 0" not in screen.getvalue()[len(during) :]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    clock: Clock, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=2, label="study") as progress:
        for _ in range(2):
            clock.end(study, progress, after=20)
    assert screen.getvalue().splitlines() == [
        "study: 1/2 trials, 0 pruned, best 50.00%, 3 per minute, 20.0 s left",
        "study: 2/2 trials, 0 pruned, best 50.00%",
    ]


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=1, label="study", quiet=True) as progress:
        clock.end(study, progress)
    assert capsys.readouterr().err == ""


def test_the_pace_does_not_count_a_first_trial_that_failed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=30, label="study") as progress:
        clock.end(study, progress, after=60, state=TrialState.FAIL, value=None)
        clock.end(study, progress, after=60)
    first, second = capsys.readouterr().err.splitlines()
    assert "per minute" not in first
    assert "1/30 trials" in second
    assert "0.5 per minute, 58 min 0 s left" in second


def test_the_pace_counts_all_trials_that_ended_with_the_first(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(value=0.5))  # Of an earlier run.
    with StudyProgress(trials=33, label="study") as progress:
        clock.now += 60
        for _ in range(16):
            study.add_trial(create_trial(value=0.5))
        for trial in study.trials[1:]:
            progress.ended(study, trial)
    first, *_ = capsys.readouterr().err.splitlines()
    assert "17/33 trials" in first
    assert "16 per minute, 1 min 0 s left" in first


def test_many_trials_that_end_within_a_second_are_read_a_few_times(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(direction="maximize")
    reads, read = [], study.get_trials

    def get_trials(**options: Any) -> Any:
        if not options["deepcopy"]:  # Not those of `study.trials`.
            reads.append(clock.now)
        return read(**options)

    monkeypatch.setattr(study, "get_trials", get_trials)
    with StudyProgress(trials=100, label="study") as progress:
        for _ in range(100):
            clock.end(study, progress, after=0.01)
    assert len(reads) <= 7
    # The last one, too, is shown.
    assert capsys.readouterr().err == "study: 100/100 trials, 0 pruned, best 50.00%\n"


def test_after_an_error_nothing_more_is_read(clock: Clock) -> None:
    study = optuna.create_study(direction="maximize")

    def fail(study: optuna.Study) -> None:
        with StudyProgress(trials=3, label="study") as progress:
            for _ in range(2):
                clock.end(study, progress)
            study.get_trials = _lost  # type: ignore[method-assign]
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail(study)


def test_the_live_display_ends_if_the_last_state_cannot_be_read(
    clock: Clock, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(direction="maximize")
    progress = StudyProgress(trials=3, label="study").__enter__()
    for _ in range(2):
        clock.end(study, progress)
    monkeypatch.setattr(study, "get_trials", _lost)
    with pytest.raises(AssertionError, match="read again"):
        progress.__exit__()
    assert progress._live is not None
    assert not progress._live.live.is_started


def _lost(**_: Any) -> Any:
    raise AssertionError("the database is read again")


def test_progress_of_a_data_set_that_is_slow_to_read_is_shown_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("hpo_mab.data")
    with data_lines(quiet=False):
        log.info("composition")
        log.warning("reading labels: 10 of 100")
        assert capsys.readouterr().err == "reading labels: 10 of 100\n"
    assert capsys.readouterr().err == "composition\n"


def test_what_was_loaded_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with data_lines(quiet=False):
        for seed in (0, 1):  # As a comparison loads them.
            data.load_splits("digits", validation=0.2, seed=seed)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "digits: 1,149 training, 288 validation, 360 test images, 10 classes, 8x8 pixels"
    )
    assert [line.partition(":")[0] for line in lines] == ["digits", "Training images by class"]
    assert lines[1].startswith("Training images by class: 0 1")
    with data_lines(quiet=True):
        data.load_splits("digits")
    data.load_splits("digits")
    assert capsys.readouterr().err == ""


def test_a_terminal_of_80_columns_shows_bar_rate_best_and_time_left(
    clock: Clock, screen: io.StringIO
) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=200, label="fashion_mnist-uniform-seed0") as progress:
        for _ in range(100):
            clock.end(study, progress, after=3, value=0.9)
    frame = screen.getvalue().rpartition("100/200")
    assert frame[0].rpartition("\r")[2].count("━") >= 8
    assert "trials, 0 pruned, best 90.00%, 20 per minute, 5 min 0 s left" in frame[2]
    assert "fashion_mnist-uniform-seed0" in screen.getvalue().splitlines()[0]


def test_the_bar_of_a_target_that_another_command_raises_is_not_full(
    clock: Clock, screen: io.StringIO
) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=2, label="study", curves=_spending(study, 10)) as progress:
        StudyTarget(trials=4, total=None, epoch_examples=10).save(study)
        for _ in range(2):
            clock.end(study, progress, after=10)
        assert progress._live is not None
        (task, _) = progress._live.tasks
        assert (task.completed, task.total) == (2, 4)


def test_a_target_that_another_command_raises_is_shown(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study = optuna.create_study(direction="maximize")
    with StudyProgress(trials=2, label="study", curves=_spending(study, 10)) as progress:
        StudyTarget(trials=5, total=None, epoch_examples=10).save(study)
        for _ in range(3):
            clock.end(study, progress, after=60, user_attrs={"hpo_mab:slot": len(study.trials)})
    assert "3/5 trials" in capsys.readouterr().err
