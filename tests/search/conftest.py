from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from small_studies import essence, tiny

from hpo_mab.data import ImageSplits
from hpo_mab.search import RunOutcome, StudyRunner, StudySpec, load_spec
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.storage import Storage, StudyRun


@pytest.fixture(scope="session")
def splits() -> ImageSplits:
    return load_splits(load_spec("digits"))


@pytest.fixture
def tiny_runner(storage: Storage, splits: ImageSplits) -> Callable[..., StudyRunner]:
    """Makes a runner of a tiny study in the test's storage."""

    def make(**sections: Any) -> StudyRunner:
        spec = tiny(**sections)
        return StudyRunner(spec, storage, objective=make_objective(spec, splits))

    return make


@pytest.fixture
def run_tiny(tiny_runner: Callable[..., StudyRunner]) -> Callable[..., StudyRun]:
    """Runs a tiny study in the test's storage to its end."""

    def run(**sections: Any) -> StudyRun:
        outcome = tiny_runner(**sections).run(score=False)
        assert not outcome.interrupted
        return outcome.run

    return run


@pytest.fixture
def ctrl_c_at(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, int], contextlib.AbstractContextManager[None]]:
    """Makes a context in which Ctrl-C interrupts a trial, given by number, at a step."""
    report = optuna.trial.Trial.report

    @contextlib.contextmanager
    def at(number: int, last: int) -> Iterator[None]:
        def interrupt(trial: optuna.trial.Trial, value: float, step: int) -> None:
            if (trial.number, step) == (number, last):
                raise KeyboardInterrupt
            report(trial, value, step)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.trial.Trial, "report", interrupt)
            yield

    return at


@pytest.fixture
def resumes(
    storage: Storage, ctrl_c_at: Callable[[int, int], contextlib.AbstractContextManager[None]]
) -> Callable[..., RunOutcome]:
    """Checks that a study interrupted in each place continues to the same; returns it whole.

    A place is a trial and a step. The study interrupted in the first is ``parts0``.
    """

    def chosen(outcome: RunOutcome) -> str | None:
        return outcome.choice and outcome.choice.sampler

    def check(spec: StudySpec, *places: tuple[int, int]) -> RunOutcome:
        whole = StudyRunner(spec, storage).run("whole", score=False)
        for at, place in enumerate(places):
            with ctrl_c_at(*place):
                assert StudyRunner(spec, storage).run(f"parts{at}", score=False).interrupted
            parts = StudyRunner(spec, storage).run(f"parts{at}", score=False)
            assert not parts.interrupted
            assert essence(parts.run) == essence(whole.run), place
            assert chosen(parts) == chosen(whole)
        return whole

    return check
