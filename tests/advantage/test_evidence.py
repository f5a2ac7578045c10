from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from made_up import accelerated

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Evidence, PairedCurves, acceleration, advantage, measure_evidence

_RESAMPLES = 300


def _measure(pairs: PairedCurves, margin: float = 0.1) -> Evidence:
    return measure_evidence(pairs, margin=margin, resamples=_RESAMPLES)


def test_rungs_move_to_the_earliest_equivalent_budget() -> None:
    found = _measure(accelerated(2.2))
    moved = {round(8 * r.budget): round(8 * r.decided_at) for r in found.rungs}
    # e(t) = 2.2 t: a rung at 2 is decided at 1, at 4 at 2, at 6 at 3.
    assert moved[1] == 1
    assert (moved[2], moved[4], moved[6]) == (1, 2, 3)
    for rung in found.rungs:
        if rung.moved:
            assert rung.equivalent >= rung.budget - 1e-9
            assert rung.fidelity is not None
            assert rung.fidelity.low >= -0.1
    assert found.moves
    assert found.pairs == 30


def test_it_has_the_advantage_and_acceleration_over_shares() -> None:
    pairs = accelerated(1.5)
    found = _measure(pairs)
    relative = dataclasses.replace(pairs, budgets=pairs.budgets / 8000)
    assert found.budgets == tuple(relative.budgets)
    assert found.advantage == tuple(advantage(relative, resamples=_RESAMPLES))
    assert found.acceleration == tuple(acceleration(relative, resamples=_RESAMPLES))


def test_the_fidelity_of_equally_good_arms_is_not_shown_to_differ() -> None:
    # Half of a trial's noise stays until its end: uniform's early accuracies agree with its own
    # final ones better than the bandit's do.
    rng = np.random.default_rng(0)
    worse = 0
    for _ in range(40):
        quality = np.linspace(0.3, 0.5, 22)[:, None]
        arms = [
            quality * np.array([0.6, 0.8, 1.0])
            + rng.normal(0, 0.03, (22, 1))
            + rng.normal(0, 0.01, (22, 3))
            for _ in range(2)
        ]
        pairs = PairedCurves(budgets=np.array([1.0, 2.0, 4.0]), arm=arms[0], reference=arms[1])
        worse += _measure(pairs).fidelity[1].below(-0.1)
    assert worse <= 2


def test_no_advantage_moves_nothing() -> None:
    found = _measure(accelerated(1.0))
    assert not found.moves
    assert {rung.fidelity for rung in found.rungs} == {None}
    assert all(rung.decided_at == rung.equivalent == rung.budget for rung in found.rungs)


def test_accuracy_without_fidelity_moves_nothing() -> None:
    found = _measure(accelerated(2.2, scramble=0.08))
    assert found.advantage[0].above(0.0)
    assert not found.moves
    refused = [rung.fidelity for rung in found.rungs if rung.fidelity is not None]
    assert refused
    assert all(fidelity.low < -0.1 for fidelity in refused)


def test_a_wider_margin_lets_more_rungs_move() -> None:
    pairs = accelerated(2.2, scramble=0.02)
    counts = [sum(r.moved for r in _measure(pairs, margin).rungs) for margin in (0.0, 0.3, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_a_rung_between_budgets_is_held_to_the_later_one() -> None:
    found = _measure(accelerated(2.2))
    assert found.rung(0.45) == found.rungs[3]
    assert found.rung(0.5) == found.rungs[3]
    assert found.rung(0.51) == found.rungs[4]
    assert found.rung(1.01) is None


def test_json_and_files_keep_what_decisions_need(tmp_path: Path) -> None:
    found = dataclasses.replace(
        _measure(accelerated(2.2)), source="pilot", data="digits", model="mlp"
    )
    again = Evidence.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert again.digest == found.digest
    assert [r.moved for r in again.rungs] == [r.moved for r in found.rungs]
    assert (again.source, again.data, again.model, again.pairs) == ("pilot", "digits", "mlp", 30)
    assert again.acceleration[0].value == pytest.approx(found.acceleration[0].value, abs=1e-6)
    assert again.acceleration[-1].censored == found.acceleration[-1].censored
    (tmp_path / "evidence.json").write_text(json.dumps(found.to_json()))
    assert Evidence.load(tmp_path / "evidence.json").digest == found.digest
    assert len(json.dumps(found.to_json())) < 400 * len(found.budgets)


def test_other_evidence_has_another_digest() -> None:
    found = _measure(accelerated(2.2))
    assert dataclasses.replace(found, pairs=31).digest != found.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "is not JSON"),
        ("[1]", "must hold a JSON object"),
        ("{}", "must have version 1, got None"),
        ('{"version": 2}', "must have version 1, got 2"),
        ('{"version": 1, "pairs": 3}', "cannot be read"),
    ],
)
def test_what_is_no_evidence_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=message):
        Evidence.load(path)


def test_few_pairs_and_bad_margins_are_refused() -> None:
    stopped = accelerated(1.0, pairs=5)
    stopped.arm[3:, -1] = np.nan
    with pytest.raises(ArgumentError, match="at least 4 pairs, got 3 that have ended"):
        _measure(stopped)
    with pytest.raises(ArgumentError, match="at least 4 pairs, got 3"):
        _measure(accelerated(2.0, pairs=3))
    with pytest.raises(ArgumentError, match=r"margin must be in \[0, 1\], got -0.1"):
        _measure(accelerated(2.0), margin=-0.1)
