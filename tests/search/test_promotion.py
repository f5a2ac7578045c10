"""Studies under the pruner 'top_k': all stopped at one share, then the best trained in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo_mab._attributes import WORKER_KEY
from hpo_mab._errors import SpecError
from hpo_mab.search import StudyRunner, StudySpec, Target
from hpo_mab.search._claim import claim
from hpo_mab.search._plan import Next
from hpo_mab.search._study import open_with_parts
from hpo_mab.storage import Storage, StudyRun

Make = Callable[..., StudySpec]

_TOP = {
    "budget": {"epochs": 1, "evaluations": 3, "trials": 9},
    "sampler": {"kind": "uniform"},
    "pruner": {"kind": "top_k", "after": 0.3, "k": 2},
}


def _essence(run: StudyRun) -> list[tuple[Any, ...]]:
    return [
        (t.slot, t.state, dict(t.params), t.value, [e.accuracy for e in t.curve])
        for t in run.trials
        if t.state != "fail"
    ]


def test_the_best_of_the_stopped_are_trained_to_the_end(storage: Storage, tiny: Make) -> None:
    run = StudyRunner(tiny(**_TOP), storage).run(score=False).run
    initial, stopped, promoted = run.trials[:2], run.trials[2:7], run.trials[7:]
    assert [trial.slot for trial in run.trials] == list(range(9))
    assert [trial.state for trial in initial] == ["complete"] * 2
    assert [(trial.state, len(trial.curve)) for trial in stopped] == [("pruned", 1)] * 5
    assert [(trial.state, len(trial.curve)) for trial in promoted] == [("complete", 3)] * 2
    ranked = sorted(stopped, key=lambda trial: -trial.curve[0].accuracy)
    assert [trial.attrs["hpo_mab:promotes"] for trial in promoted] == [t.number for t in ranked[:2]]
    assert [trial.params for trial in promoted] == [t.params for t in ranked[:2]]
    # All that was spent counts: nine starts, and the rest of four trainings.
    first, full = stopped[0].examples, promoted[0].examples
    assert run.examples == 4 * full + 5 * first
    assert full == run.trial_examples > 2 * first


def test_a_pilots_twins_do_not_bring_promotions_forward(storage: Storage, tiny: Make) -> None:
    spec = tiny(
        **{**_TOP, "sampler": {"kind": "auto"}, "budget": {**_TOP["budget"], "trials": 10}},
        search={"initial": 4},
    )
    run = StudyRunner(spec, storage).run(score=False).run
    asked = [trial for trial in run.trials if "hpo_mab:twin_of" not in trial.attrs]
    promoted = [trial for trial in asked if "hpo_mab:promotes" in trial.attrs]
    assert (len(run.trials), len(asked), len(promoted)) == (14, 10, 2)
    assert [trial.state for trial in asked] == ["complete"] * 4 + ["pruned"] * 4 + ["complete"] * 2


@pytest.mark.parametrize("where", [(3, 1), (7, 2), (8, 3)])
def test_interrupted_it_goes_on_to_the_same_end(
    storage: Storage, tiny: Make, monkeypatch: pytest.MonkeyPatch, where: tuple[int, int]
) -> None:
    spec = tiny(**_TOP)
    whole = StudyRunner(spec, storage).run("whole", score=False).run
    report = optuna.trial.Trial.report

    def interrupt(trial: optuna.trial.Trial, value: float, step: int) -> None:
        if (trial.number, step) == where:
            raise KeyboardInterrupt
        report(trial, value, step)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "report", interrupt)
        assert StudyRunner(spec, storage).run("parts", score=False).interrupted
    assert _essence(StudyRunner(spec, storage).run("parts", score=False).run) == _essence(whole)


def _claim(study: optuna.Study, storage: Storage) -> optuna.trial.Trial:
    """A trial that a worker on a machine that nobody here can see runs from now on."""
    trial = claim(study, storage)
    assert isinstance(trial, optuna.trial.Trial)
    storage.optuna.set_trial_system_attr(trial._trial_id, WORKER_KEY, "0123456789abcdef:4242:7")
    return trial


def test_workers_wait_until_the_best_are_known(storage: Storage, tiny: Make) -> None:
    spec = tiny(**_TOP)
    run = StudyRunner(spec, storage).run(score=False).run
    study = open_with_parts(storage, run.name, spec)
    # Three more trials: two of them are promotions, and one more is stopped before.
    Target(trials=12, total=None, epoch_examples=100).save(study)
    first = _claim(study, storage)
    assert "hpo_mab:promotes" not in first.user_attrs
    assert claim(study, storage) is Next.WAIT
    first.suggest_float("lr", 0.01, 1.0, log=True)
    first.report(0.99, 1)
    study.tell(first, state=TrialState.PRUNED)
    second = _claim(study, storage)
    assert second.user_attrs["hpo_mab:promotes"] == first.number
    # A promotion that runs keeps nobody waiting, and the next one is of another configuration.
    third = _claim(study, storage)
    taken = {trial.attrs.get("hpo_mab:promotes") for trial in run.trials} | {first.number}
    assert third.user_attrs["hpo_mab:promotes"] not in taken
    assert claim(study, storage) is Next.WAIT


def test_a_definition_that_cannot_work_is_refused(tiny: Make) -> None:
    few = {**_TOP, "budget": {"epochs": 1, "evaluations": 3, "trials": 5}}
    with pytest.raises(SpecError, match=r"budget.trials must be at least 6 .* got 5"):
        tiny(**few)
    timed = {**_TOP, "budget": {"epochs": 1, "trials": 9, "total": "5m"}}
    with pytest.raises(SpecError, match=r"budget.total cannot be used with pruner 'top_k'"):
        tiny(**timed)
    arm = {"arms": {"top": {"pruner": _TOP["pruner"]}}}
    with pytest.raises(SpecError, match=r"compare.arms.top: budget.trials must be at least 6"):
        tiny(budget=few["budget"], sampler=_TOP["sampler"], compare=arm)
