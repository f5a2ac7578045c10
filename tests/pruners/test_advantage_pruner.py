from __future__ import annotations

import json
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from made_up import accelerated
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_mab import HpoMabWarning
from hpo_mab._attributes import EVIDENCE_KEY
from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Estimate, Evidence, PairedCurves, Rung, measure_evidence
from hpo_mab.pruners import (
    AdvantagePruner,
    RungFidelity,
    _evidence,
    why_pruned,
)
from hpo_mab.pruners._evidence import EvidenceKeeper, pairs_of_trials


def _study(pruner: BasePruner, direction: str = "maximize", **options: Any) -> optuna.Study:
    return optuna.create_study(direction=direction, pruner=pruner, **options)


def _run(study: optuna.Study, *curve: float, steps: list[int] | None = None, **attrs: Any) -> int:
    """One trial that reports a curve until it is pruned; returns the step where it ended."""
    trial = study.ask()
    for key, value in attrs.items():
        trial.set_user_attr(f"hpo_mab:{key}", value)
    for step, value in zip(steps or range(1, len(curve) + 1), curve, strict=True):
        trial.report(value, step=step)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, curve[-1])
    return (steps or [len(curve)])[-1]


def _run_all(study: optuna.Study, *values: float) -> list[int]:
    """Trials of one value at all of eight steps; returns the steps where they ended."""
    return [_run(study, *[value] * 8) for value in values]


def _run_freely(study: optuna.Study, curve: np.ndarray, **attrs: Any) -> None:
    """One trial that the pruner could not stop."""
    trial = study.ask()
    for key, value in attrs.items():
        trial.set_user_attr(f"hpo_mab:{key}", value)
    for step, value in enumerate(curve, start=1):
        trial.report(float(value), step=step)
    study.tell(trial, float(curve[-1]))


def _random_history(seed: int) -> list[tuple[list[float], list[int]]]:
    """Trials with ties, NaNs and steps that skip rungs."""
    rng = np.random.default_rng(seed)
    history = []
    for _ in range(40):
        length = int(rng.integers(1, 17))
        steps = np.sort(rng.choice(np.arange(1, 20), length, replace=False))
        values = np.round(rng.normal(size=length), 1)
        values[rng.random(length) < 0.03] = np.nan
        history.append((values.tolist(), steps.tolist()))
    return history


def _known(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, n=12)


def evidence(factor: float) -> Evidence:
    """Evidence over 8 steps of an acceleration that keeps fidelity; 1 moves nothing."""
    budgets = [step / 8 for step in range(1, 9)]
    rungs = []
    for budget in budgets:
        early = next(one for one in budgets if one * factor >= budget or one == budget)
        rungs.append(
            Rung(
                budget=budget,
                decided_at=early,
                equivalent=early * factor,
                fidelity=_known(0.0) if early < budget else None,
            )
        )
    return Evidence(
        budgets=tuple(budgets),
        advantage=(_known(factor - 1.0),) * 8,
        acceleration=(_known(factor),) * 8,
        fidelity=(_known(0.0),) * 8,
        rungs=tuple(rungs),
        pairs=12,
        margin=0.1,
        source="test",
    )


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(
    "settings",
    [
        {"min_resource": 1, "reduction_factor": 2},
        {"min_resource": 1, "reduction_factor": 4},
        {"min_resource": 2, "reduction_factor": 3},
    ],
)
@pytest.mark.parametrize("contrary", [False, True])
def test_without_moving_evidence_every_decision_is_successive_halvings(
    settings: dict[str, int], direction: str, contrary: bool
) -> None:
    given = evidence(1.0) if contrary else None
    ends: set[TrialState] = set()
    for seed in range(6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours = _study(AdvantagePruner(evidence=given, **settings), direction)
            theirs = _study(SuccessiveHalvingPruner(**settings), direction)
            decisions = [
                (_run(ours, *values, steps=steps), _run(theirs, *values, steps=steps))
                for values, steps in _random_history(seed)
            ]
        assert [own for own, _ in decisions] == [other for _, other in decisions]
        ends |= {trial.state for trial in theirs.trials}
        ours_warned = [one for one in caught if issubclass(one.category, HpoMabWarning)]
        assert len(ours_warned) == 1
        assert ("moves no rung" if contrary else "no evidence") in str(ours_warned[0].message)
    assert ends >= {TrialState.PRUNED, TrialState.COMPLETE}


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_rungs_are_shared_by_processes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'pruned.db'}"
    pruner = AdvantagePruner(min_resource=1, reduction_factor=2)
    first = _study(pruner, study_name="s", storage=url)
    assert not first.ask().should_prune()
    assert _run(first, 1.0, 1.0) == 2
    second = optuna.load_study(
        study_name="s", storage=url, pruner=pickle.loads(pickle.dumps(pruner))
    )
    assert _run(second, 0.5, 0.5) == 1
    assert _run(second, 2.0, 2.0) == 2


def test_a_rung_is_decided_where_the_bandit_is_as_far() -> None:
    known = evidence(2.2)
    study = _study(AdvantagePruner(evidence=known, max_resource=8, min_resource=4))
    assert _run_all(study, 0.5, 0.6, 0.7, 0.8, 0.1) == [8, 8, 8, 8, 2]
    because = study.trials[-1].user_attrs["hpo_mab:pruned_because"]
    assert because == {
        "rung": 0,
        "step": 2,
        "value": 0.1,
        "threshold": 0.7,
        "competitors": 5,
        "uniform_step": 4,
        "equivalent_step": pytest.approx(4.4),
        "evidence": known.digest,
    }


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("bad", [math.inf, None])
def test_values_that_say_nothing_leave_the_evidence(direction: str, bad: float | None) -> None:
    reference = _study(optuna.pruners.NopPruner(), direction)
    trials = []
    for number in range(12):
        values = {step: 0.1 * number + 0.01 * step for step in range(1, 9)}
        if bad is None:
            # Steps that begin at 0: none is the last.
            values = {step - 1: value for step, value in values.items()}
        elif number == 3:
            values[2] = bad
        for sampler in ("mab", "uniform"):
            attrs = {"hpo_mab:slot": number, "hpo_mab:sampler": sampler}
            trials.append(
                optuna.create_trial(value=0.5, intermediate_values=values, user_attrs=attrs)
            )
    pairs = pairs_of_trials(trials, full=8, direction=reference.direction)
    assert len(pairs) == 12
    assert pairs.ended == (0 if bad is None else 12)
    assert not np.isinf(pairs.difference).any()


@pytest.mark.parametrize("direction", [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE])
def test_negative_values_give_the_evidence_of_the_same_curves_from_zero(
    direction: StudyDirection,
) -> None:
    curves = accelerated(2.2)
    sides = {"mab": curves.arm, "uniform": curves.reference}
    sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0

    def shifted(by: float) -> PairedCurves:
        trials = [
            optuna.create_trial(
                value=0.0,
                intermediate_values={
                    step: sign * (value + by) for step, value in enumerate(curve.tolist(), start=1)
                },
                user_attrs={"hpo_mab:slot": slot, "hpo_mab:sampler": sampler},
            )
            for sampler, side in sides.items()
            for slot, curve in enumerate(side)
        ]
        return pairs_of_trials(trials, full=8, direction=direction)

    # As of a mean squared error.
    negative, from_zero = shifted(-5.0), shifted(-min(side.min() for side in sides.values()))
    assert negative.arm == pytest.approx(from_zero.arm)
    assert negative.reference == pytest.approx(from_zero.reference)
    assert measure_evidence(negative, margin=0.2).moves


def test_trials_of_a_slot_with_other_parameters_are_no_pair() -> None:
    ranges = {"lr": FloatDistribution(0.0, 1.0), "sampler.floor": FloatDistribution(0.0, 1.0)}

    def trial(sampler: str, slot: int, lr: float, **more: float) -> FrozenTrial:
        params = {"lr": lr, **more}
        return optuna.create_trial(
            value=0.5,
            params=params,
            distributions={name: ranges[name] for name in params},
            intermediate_values={1: 0.4, 2: 0.5},
            user_attrs={
                "hpo_mab:slot": slot,
                "hpo_mab:sampler": sampler,
                "hpo_mab:paired": slot < 4,
            },
        )

    trials = [
        *(trial("mab", slot, 0.1, **{"sampler.floor": 0.2}) for slot in range(6)),
        *(trial("uniform", slot, 0.2 if slot == 1 else 0.1) for slot in range(6)),
    ]
    # Of the four that no pruner can stop three are left, which are too few.
    assert len(pairs_of_trials(trials, full=2)) == 5


@pytest.mark.parametrize("later", [{}, {"hpo_mab:paired": False}])
def test_trials_that_a_pruner_can_stop_are_in_no_pair_where_others_are(
    later: dict[str, Any],
) -> None:
    def trial(sampler: str, slot: int, **more: Any) -> FrozenTrial:
        attrs = {"hpo_mab:slot": slot, "hpo_mab:sampler": sampler, **more}
        return optuna.create_trial(
            value=0.5, intermediate_values={1: 0.4, 2: 0.5}, user_attrs=attrs
        )

    uniform = [trial("uniform", slot) for slot in range(8)]
    open_ones = [trial("mab", slot, **later) for slot in range(8)]
    safe = [
        *(trial("mab", slot, **{"hpo_mab:paired": True}) for slot in range(3)),
        trial("mab", 3, **{"hpo_mab:twin_of": 3}),
    ]
    assert len(pairs_of_trials(open_ones, uniform, full=2)) == 8
    assert len(pairs_of_trials([*safe, *open_ones[4:]], uniform, full=2)) == 4
    # Three pairs would be too few for evidence.
    assert len(pairs_of_trials([*safe[1:], *open_ones[4:]], uniform, full=2)) == 7
    # The first four have no uniform partner.
    assert len(pairs_of_trials([*safe, *open_ones[4:]], uniform[4:], full=2)) == 4


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
@pytest.mark.parametrize("mark", ["interrupted", "lost"])
def test_a_retry_counts_in_place_of_the_attempt_that_was_cut_off(mark: str) -> None:
    study = _study(AdvantagePruner(max_resource=8, min_resource=2))
    for value in (0.3, 0.5):
        cut = study.ask()
        for step in (1, 2, 3):
            cut.report(value, step=step)
            assert not cut.should_prune()
        cut.set_user_attr(f"hpo_mab:{mark}", True)
        study.tell(cut, state=TrialState.FAIL)
        assert _run_all(study, value) == [8]
    assert _run_all(study, 0.4) == [2]
    because = study.trials[-1].user_attrs["hpo_mab:pruned_because"]
    assert (because["threshold"], because["competitors"]) == (0.5, 3)


def test_the_same_trial_without_evidence_continues_to_the_rung() -> None:
    study = _study(AdvantagePruner(max_resource=8, min_resource=4))
    with pytest.warns(HpoMabWarning, match="AdvantagePruner decides"):
        ends = _run_all(study, 0.5, 0.6, 0.7, 0.8, 0.1)
    assert ends == [8, 8, 8, 8, 4]
    because = study.trials[-1].user_attrs["hpo_mab:pruned_because"]
    assert (because["step"], because["uniform_step"], because["evidence"]) == (4, 4, None)
    assert because["equivalent_step"] == 4


def test_uniform_trials_are_compared_at_uniform_rungs() -> None:
    study = _study(AdvantagePruner(evidence=evidence(2.2), max_resource=8, min_resource=4))
    _run_all(study, 0.5, 0.6, 0.7, 0.8)
    assert _run(study, *[0.1] * 8, sampler="uniform") == 4
    assert _run(study, *[0.1] * 8, sampler="mab") == 2


def test_a_moved_rung_compares_what_earlier_trials_had_there() -> None:
    study = _study(AdvantagePruner(max_resource=8, min_resource=4))
    with pytest.warns(HpoMabWarning, match="AdvantagePruner decides"):
        # Promoted at step 4 with 0.9; at step 2 it had 0.2 only.
        assert _run(study, 0.1, 0.2, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9) == 8
    study.pruner = AdvantagePruner(evidence=evidence(2.2), max_resource=8, min_resource=4)
    # 0.3 loses against 0.9, which was reached with twice the budget, but beats 0.2.
    assert _run(study, 0.1, 0.3, 0.3, 0.3) == 4


def test_where_a_rung_moves_back_trials_stopped_before_it_count_as_losers() -> None:
    study = _study(AdvantagePruner(evidence=evidence(2.2), max_resource=8, min_resource=4))
    assert _run_all(study, 0.8, 0.14, 0.13, 0.12, 0.11) == [8, 2, 2, 2, 2]
    study.pruner = AdvantagePruner(evidence=evidence(1.0), max_resource=8, min_resource=4)
    with pytest.warns(HpoMabWarning, match="AdvantagePruner decides"):
        # Sixth of its rung: the best three continue, and only one was better.
        assert _run_all(study, 0.5) == [8]


def test_twins_in_the_study_become_evidence_that_is_stored() -> None:
    curves = accelerated(2.2)
    study = _study(AdvantagePruner(max_resource=8, min_resource=4, margin=0.2))
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for slot in range(30):
        _run_freely(study, curves.arm[slot], slot=slot)
        _run_freely(study, curves.reference[slot], slot=slot, sampler="uniform", twin_of=slot)
    assert EVIDENCE_KEY not in study.user_attrs
    _run(study, 0.1, 0.1, slot=30)
    stored = Evidence.from_json(study.user_attrs[EVIDENCE_KEY])
    assert stored.pairs == 30
    assert stored.moves
    assert stored.source == "pilot"


def _uniform_and_bandit(storage: optuna.storages.BaseStorage, curves: PairedCurves) -> optuna.Study:
    studies = []
    for name, side in (("bandit", curves.arm), ("uniform", curves.reference)):
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
        for curve in side:
            _run_freely(study, curve)
        studies.append(study)
    return studies[0]


@pytest.mark.parametrize(("factor", "moves"), [(2.2, True), (1.0, False)])
def test_a_uniform_study_in_the_same_storage_is_a_reference(factor: float, moves: bool) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = _uniform_and_bandit(storage, accelerated(factor))
    study.pruner = AdvantagePruner(reference="uniform", max_resource=8, min_resource=4, margin=0.2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends = _run_all(study, 0.5, 0.6, 0.7, 0.1)
    assert ends[-1] == (2 if moves else 4)
    assert len(caught) == (0 if moves else 1)
    stored = Evidence.from_json(study.user_attrs[EVIDENCE_KEY])
    assert (stored.pairs, stored.moves, stored.source) == (30, moves, "study uniform")


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
@pytest.mark.parametrize(
    ("options", "margin", "end"),
    [({}, 0.2, 2), ({"margin": 0.3}, 0.3, 2), ({"reference": "empty"}, 0.2, 4)],
)
def test_stored_evidence_of_another_margin_or_reference_is_not_used(
    options: dict[str, Any], margin: float, end: int
) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = _uniform_and_bandit(storage, accelerated(2.2))
    optuna.create_study(study_name="empty", storage=storage)
    usual = {"reference": "uniform", "margin": 0.2, "max_resource": 8, "min_resource": 4}
    study.pruner = AdvantagePruner(**usual)
    _run_all(study, 0.5, 0.6, 0.7)
    study.pruner = AdvantagePruner(**{**usual, **options})
    assert _run_all(study, 0.1) == [end]
    assert Evidence.from_json(study.user_attrs[EVIDENCE_KEY]).margin == margin


def test_rungs_move_back_when_the_evidence_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_evidence, "_TRIALS_BETWEEN_UPDATES", 1)
    storage = optuna.storages.InMemoryStorage()
    study = _uniform_and_bandit(storage, accelerated(2.2))
    study.pruner = AdvantagePruner(reference="uniform", max_resource=8, min_resource=4, margin=0.2)
    _run_all(study, 0.5, 0.6, 0.7)
    assert _run_all(study, 0.1) == [2]
    behind = accelerated(0.5, pairs=40)
    # From now on both studies' trials of one number are pairs with the opposite evidence.
    uniform = optuna.load_study(study_name="uniform", storage=storage)
    for _ in range(len(study.trials) - len(uniform.trials)):
        uniform.tell(uniform.ask(), state=TrialState.FAIL)
    for one, other in zip(behind.arm, behind.reference, strict=True):
        _run_freely(study, one)
        _run_freely(uniform, other)
    with pytest.warns(HpoMabWarning, match="70 pairs"):
        assert _run_all(study, 0.1) == [4]


def test_an_unknown_reference_is_an_error_that_names_it() -> None:
    study = _study(AdvantagePruner(reference="nowhere", max_resource=8))
    with pytest.raises(ArgumentError, match=r"reference must name a study.*'nowhere'"):
        _run(study, 0.1)


def test_evidence_of_another_network_is_not_used() -> None:
    import dataclasses

    other = dataclasses.replace(evidence(2.2), data="cifar10", model="resnet18")
    study = _study(AdvantagePruner(evidence=other, min_resource=4))
    spec = {"data": {"name": "cifar10"}, "model": {"name": "mlp"}, "budget": {"evaluations": 8}}
    study.set_user_attr("hpo_mab:definition", {"spec": spec})
    with pytest.warns(HpoMabWarning) as caught:
        ends = _run_all(study, 0.5, 0.1)
    assert ends == [8, 4]
    assert "network 'resnet18', this study is of 'mlp'" in str(caught[0].message)
    assert EVIDENCE_KEY not in study.user_attrs


def test_evidence_comes_from_a_file_and_goes_to_the_study(tmp_path: Path) -> None:
    known = evidence(2.2)
    (tmp_path / "evidence.json").write_text(json.dumps(known.to_json()))
    study = _study(AdvantagePruner(evidence=tmp_path / "evidence.json", max_resource=8))
    _run(study, 0.5)
    assert study.user_attrs[EVIDENCE_KEY] == known.to_json()
    again = _study(AdvantagePruner(evidence=study.user_attrs[EVIDENCE_KEY], max_resource=8))
    _run(again, 0.5)
    assert again.user_attrs[EVIDENCE_KEY] == known.to_json()


def test_workers_that_join_later_use_the_stored_evidence() -> None:
    storage = optuna.storages.InMemoryStorage()
    first = _study(
        AdvantagePruner(evidence=evidence(2.2), max_resource=8, min_resource=4),
        storage=storage,
        study_name="s",
    )
    _run_all(first, 0.5, 0.6, 0.7)
    pruner = AdvantagePruner(min_resource=4)  # The length is that of the longest trial.
    second = optuna.load_study(study_name="s", storage=storage, pruner=pruner)
    assert _run_all(second, 0.1) == [2]


class _Counting(optuna.storages.InMemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def get_all_trials(self, *args: Any, **options: Any) -> Any:
        self.reads.append("trials")
        return super().get_all_trials(*args, **options)

    def get_study_user_attrs(self, study_id: int) -> Any:
        self.reads.append("attrs")
        return super().get_study_user_attrs(study_id)


def test_the_database_is_read_no_more_often_than_by_successive_halving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_evidence, "_TRIALS_BETWEEN_UPDATES", 1000)

    def reads(pruner: BasePruner) -> list[str]:
        storage = _Counting()
        study = _study(pruner, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
        rng = np.random.default_rng(0)
        for _ in range(30):
            _run(study, *rng.random(8))
        return storage.reads

    # Evidence that moves only the last rung leaves the same decisions to be made.
    ours = reads(AdvantagePruner(evidence=evidence(1.2), max_resource=8))
    theirs = reads(SuccessiveHalvingPruner(min_resource=1, reduction_factor=2))
    assert ours.count("attrs") - theirs.count("attrs") <= 2
    assert ours.count("trials") - theirs.count("trials") <= 1


def test_a_pruner_that_serves_two_studies_keeps_their_evidence_apart() -> None:
    pruner = AdvantagePruner(max_resource=8, min_resource=4)
    known = _study(pruner)
    known.set_user_attr(EVIDENCE_KEY, evidence(2.2).to_json())
    _run_all(known, 0.5, 0.6, 0.7, 0.8)
    assert _run_all(known, 0.1) == [2]
    fresh = _study(pruner)
    with pytest.warns(HpoMabWarning, match="no evidence"):
        ends = _run_all(fresh, 0.8, 0.1)
    assert ends == [8, 4]
    assert EVIDENCE_KEY not in fresh.user_attrs
    # In between, nothing has changed for the first.
    assert _run_all(known, 0.1) == [2]


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_a_value_that_is_not_a_number_is_the_reason() -> None:
    study = _study(AdvantagePruner(max_resource=8, min_resource=2))
    assert _run(study, 0.5, math.nan, 0.5) == 2
    because = study.trials[-1].user_attrs["hpo_mab:pruned_because"]
    assert (because["rung"], because["step"], because["value"]) == (0, 2, None)


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_choices_may_be_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_evidence, "_TRIALS_BETWEEN_UPDATES", 1)
    study = _study(AdvantagePruner(min_resource=4))
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    widths = CategoricalDistribution(("[64, 64]", "[128]"))
    widths.choices = ([64, 64], [128])  # type: ignore[assignment] - Optuna takes them, and warns.
    curves = accelerated(2.2, pairs=12)
    for slot in range(12):
        for side, more in (("arm", {}), ("reference", {"hpo_mab:sampler": "uniform"})):
            curve = {step: float(v) for step, v in enumerate(getattr(curves, side)[slot], start=1)}
            study.add_trial(
                optuna.create_trial(
                    value=curve[8],
                    params={"widths": widths.choices[slot % 2]},
                    distributions={"widths": widths},
                    user_attrs={"hpo_mab:slot": slot, **more},
                    intermediate_values=curve,
                )
            )
    _run_all(study, 0.1)
    assert Evidence.from_json(study.user_attrs[EVIDENCE_KEY]).pairs == 12


def test_integers_of_numpy_are_integers() -> None:
    pruner = AdvantagePruner(
        min_resource=np.int64(2), reduction_factor=np.int32(3), max_resource=np.int64(9)
    )
    assert pruner.uniform_step(0) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_resource": "first"}, "min_resource must be an integer of at least 1, got 'first'"),
        ({"min_resource": 0}, "min_resource must be an integer of at least 1, got 0"),
        ({"reduction_factor": 1}, "reduction_factor must be an integer of at least 2, got 1"),
        ({"max_resource": 0}, "max_resource"),
        ({"margin": 1.5}, r"margin must be in \[0, 1\], got 1.5"),
        ({"evidence": {}}, "evidence must have version 1, got None"),
        ({"evidence": "no/such.json"}, "'no/such.json' cannot be read"),
        ({"evidence": {}, "reference": "x"}, "not both"),
    ],
)
def test_arguments_outside_their_bound_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        AdvantagePruner(**options)


# Fidelity measured in the study.


def _ranked(*shares: float, trials: int = 10, last: float = 1.0) -> np.ndarray:
    """Curves [trials, 8] of which the value at a step has a share of the final value's ranking."""
    rng = np.random.default_rng(0)
    final = np.linspace(0.2, 0.8, trials)
    noise = rng.permutation(final)
    columns = [share * final + (1 - share) * noise for share in shares]
    return np.stack([*columns, *[last * final] * (8 - len(shares))], axis=1)


def _first_trials(
    study: optuna.Study, curves: np.ndarray, **attrs: Any
) -> list[optuna.trial.FrozenTrial]:
    """Trials that the pruner could not stop."""
    for curve in curves:
        _run_freely(study, curve, **{"paired": True, **attrs})
    return study.trials


#: Early evaluations whose ranking is all noise, up to the second and up to the fifth.
_NOISE = {2: (0.0, 0.0), 5: (0.0,) * 5}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(
    ("noisy", "options", "ends"),
    [
        ((), {}, [8, 2]),
        (_NOISE[2], {}, [8, 3]),
        (_NOISE[5], {}, [8, 4]),
        (_NOISE[2], {"fidelity": False}, [8, 2]),
        (_NOISE[2], {"min_resource": 5}, [8, 5]),
    ],
)
@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_the_first_rung_lies_later_where_the_first_trials_are_not_ranked(
    noisy: tuple[float, ...], options: dict[str, Any], ends: list[int], direction: str
) -> None:
    study = _study(AdvantagePruner(**{"min_resource": 2, "max_resource": 8, **options}), direction)
    _first_trials(study, _ranked(*noisy))
    good, bad = (0.9, 0.1) if direction == "maximize" else (0.1, 0.9)
    assert _run_all(study, good, bad) == ends


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_a_trial_pruned_at_a_rung_that_was_moved_later_has_the_reason() -> None:
    study = _study(AdvantagePruner(min_resource=2, max_resource=8))
    _first_trials(study, _ranked(*_NOISE[2]))
    _run_all(study, 0.9, 0.1)
    known = RungFidelity.from_json(study.user_attrs["hpo_mab:fidelity"])
    assert (known.trials, known.steps, known.first_rung(2)) == (10, (1, 2, 3, 4), 3)
    because = study.trials[-1].user_attrs["hpo_mab:pruned_because"]
    tau = [round(known.at(2).low, 3), round(known.at(2).high, 3)]
    assert because["fidelity"] == {"step": 2, "tau": tau, "trials": 10}
    assert (because["step"], because["uniform_step"]) == (3, 2)
    sentence = why_pruned(study.trials[-1].user_attrs)
    assert sentence.endswith(
        "The first rung was moved later from evaluation 2: Kendall's tau between values there and "
        "final values of the first 10 complete trials is "
        f"{tau[0]:.2f} to {tau[1]:.2f} (80% interval)."
    )


@pytest.mark.parametrize(
    "attrs", [{"paired": False}, {"twin_of": 1}], ids=["may be pruned", "twins"]
)
def test_only_trials_that_no_pruner_could_stop_count_in_the_ranking(
    attrs: dict[str, Any],
) -> None:
    study = _study(optuna.pruners.NopPruner())
    trials = _first_trials(study, _ranked(*_NOISE[2]), slot=0, **attrs)
    assert RungFidelity.measure(trials, full=8) is None


@pytest.mark.parametrize(("low", "first"), [(0.19, 4), (0.21, 2)])
def test_a_rung_decides_where_tau_lies_above_a_fifth(low: float, first: int) -> None:
    taus = [Estimate(value=0.6, low=end, high=0.9, n=10) for end in (low, 0.1, 0.21)]
    found = RungFidelity(full=8, steps=(2, 3, 4), tau=tuple(taus), trials=10)
    assert found.first_rung(2) == first
    trials = _first_trials(_study(optuna.pruners.NopPruner()), _ranked(*_NOISE[2]))
    measured = RungFidelity.measure(trials, full=8)
    assert measured is not None
    assert {tau.confidence for tau in measured.tau} == {0.8}


def test_fidelity_needs_eight_trials_and_is_measured_again_with_more() -> None:
    study = _study(optuna.pruners.NopPruner())
    trials = _first_trials(study, _ranked(*_NOISE[2]))
    assert RungFidelity.measure(trials[:7], full=8) is None
    eight = RungFidelity.measure(trials[:8], full=8)
    assert eight is not None
    assert eight.trials == 8
    assert RungFidelity.measure(trials[:8], full=8, known=eight) is eight
    more = RungFidelity.measure(trials, full=8, known=eight)
    assert more is not None
    assert (more.trials, RungFidelity.from_json(more.to_json())) == (10, more)


def test_fidelity_does_not_depend_on_the_order_in_which_slots_were_trained() -> None:
    study = _study(optuna.pruners.NopPruner())
    for slot, curve in enumerate(_ranked(*_NOISE[2])):
        _run_freely(study, curve, paired=True, slot=slot)
    # The first was lost, and repeated after the others.
    late = [*study.trials[1:], study.trials[0]]
    assert RungFidelity.measure(late, full=8) == RungFidelity.measure(study.trials, full=8)


def test_evidence_moves_no_rung_that_fidelity_has_moved() -> None:
    study = _study(AdvantagePruner(evidence=evidence(2.2), max_resource=8, min_resource=2))
    _first_trials(study, _ranked(*_NOISE[2]))
    assert _run_all(study, 0.9, 0.1) == [8, 3]


def test_an_open_race_has_no_evidence_in_a_loop_of_ones_own() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("hpo_mab:race", {})
    curve = {1: 0.5, 2: 0.6}
    for slot in range(6):
        for sampler, gain in (("uniform", 0.0), ("mab", 0.1), ("trimmed", -0.1)):
            attrs = {"hpo_mab:slot": slot, "hpo_mab:sampler": sampler}
            if sampler != "uniform":
                attrs["hpo_mab:twin_of"] = slot
            values = {step: value + gain for step, value in curve.items()}
            study.add_trial(
                optuna.create_trial(value=values[2], intermediate_values=values, user_attrs=attrs)
            )
    keeper = EvidenceKeeper()
    keeper.read_once(study)
    assert keeper.full == 2
    assert keeper.evidence is None
    assert "hpo_mab:evidence" not in study.user_attrs


def test_uniform_trials_after_a_race_are_pruned_without_a_warning() -> None:
    study = _study(AdvantagePruner(max_resource=8, min_resource=4))
    study.set_user_attr("hpo_mab:race", {})
    for slot, (value, end) in enumerate([(0.5, 8), (0.1, 4), (0.2, 4)]):
        if slot == 2:
            study.set_user_attr("hpo_mab:choice", {"sampler": "uniform"})
        # A warning would be an error.
        assert _run(study, *[value] * 8, slot=slot, sampler="uniform") == end


def test_a_trial_that_ended_before_its_budget_has_no_full_length() -> None:
    study = _study(optuna.pruners.NopPruner())
    for end in (3, 8):
        _run(study, *[0.5] * end, budget=80, examples=10 * end)
        keeper = EvidenceKeeper()
        keeper.read_once(study)
        assert keeper.full == (8 if end == 8 else None)
