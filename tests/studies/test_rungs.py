"""The tables of recorded curves and signals: replays decide as Optuna's pruners do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from optuna.pruners import MedianPruner, SuccessiveHalvingPruner
from scipy import stats
from simulation import simulate
from tools import load
from torch.nn import functional as F

from hpo_mab import samplers
from hpo_mab.training import create_optimizer, evaluate

RUNGS = Path(__file__).parents[2] / "studies/rungs"
PRUNERS = ("hyperband", "advantage")


@pytest.fixture(name="tables", scope="module")
def _tables() -> ModuleType:
    return load("rungs/tables")


@pytest.fixture(name="signals", scope="module")
def _signals() -> ModuleType:
    return load("rungs/signals")


def curves(*, ties: bool) -> np.ndarray:
    """Four studies of thirty trials with eight noisy evaluations."""
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(4, 30, 1))
    found = ends * np.linspace(0.3, 1.0, 8) + 0.3 * rng.normal(size=(4, 30, 8))
    return np.round(found, 1 if ties else 6)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "with ties"])
@pytest.mark.parametrize(("first", "factor"), [(1, 2), (1, 3), (2, 2), (3, 4)])
def test_successive_halving_is_replayed_exactly(
    tables: ModuleType, first: int, factor: int, ties: bool
) -> None:
    studies = curves(ties=ties)
    used = tables.halving(studies, first=first, factor=factor)
    pruner = SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    for one, study in zip(used, studies, strict=True):
        np.testing.assert_allclose(one / 8, simulate(study, pruner).cost)
    assert (used < 8).any()


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "with ties"])
def test_the_median_pruner_is_replayed_exactly(tables: ModuleType, ties: bool) -> None:
    studies = curves(ties=ties)
    used = tables.median(studies, warmup=2)
    for one, study in zip(used, studies, strict=True):
        cost = simulate(study, MedianPruner(n_warmup_steps=2)).cost
        np.testing.assert_allclose(one / 8, cost)
    assert (used < 8).any()


def test_a_trial_with_averaged_weights_reports_the_trained_ones_last(tables: ModuleType) -> None:
    document = json.loads((RUNGS / "digits.json").read_text())
    for arm, kinds in tables.read_arms(document):
        same = np.array_equal(kinds["raw"][..., -1], kinds["averaged"][..., -1])
        assert same is (arm["schedule"] == "linear")
        assert not np.array_equal(kinds["raw"][..., :-1], kinds["averaged"][..., :-1])


def test_the_picture_is_drawn_from_the_tables() -> None:
    figure = load("rungs/figure")
    tables = json.loads(figure.TABLES.read_text(encoding="utf-8"))
    drawn = figure.draw(tables)
    assert [trace.name for trace in drawn.data if trace.showlegend] == [
        "trained weights",
        "averaged weights",
    ]
    averaged = [trace for trace in drawn.data if trace.name == "averaged weights"]
    for name, trace in zip(figure.SETS, averaged, strict=True):
        (row,) = [
            row
            for row in tables["sets"][name]["ranking"]
            if (row["sampler"], row["schedule"], row["average"], row["kind"])
            == ("uniform", "linear", 0.2, "averaged")
        ]
        assert list(trace.y) == [value for value, _, _ in row["kendall"]]
        assert list(trace.x) == pytest.approx([at / 8 for at in range(1, 8)], abs=0.01)
    picture = figure.PICTURE.read_text(encoding="utf-8")
    for words in (*figure.SETS.values(), "trained weights", "averaged weights"):
        assert words in picture
    for page in (RUNGS / "README.md", RUNGS.parents[1] / "README.md"):
        assert figure.PICTURE.name in page.read_text(encoding="utf-8")


def test_the_recorded_configurations_are_drawn_again() -> None:
    recorded = json.loads((RUNGS / "digits.json").read_text(encoding="utf-8"))["configurations"]
    for point, known in zip(load("shared").configurations(24, seed=0), recorded, strict=True):
        # Another NumPy may round an exponential otherwise.
        assert point == pytest.approx(known, rel=1e-12)


POINT = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "label_smoothing": 0.1}


def test_annealed_copies_leave_the_training_as_it_is(
    signals: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = signals.Trainer("digits", root=RUNGS, epochs=1.0)
    found = trainer.signals(POINT, seed=0)
    assert [len(found[kind]) for kind in ("averaged", "trained", "annealed 5%")] == [8, 8, 3]
    assert found["averaged"][-1] == found["trained"][-1]
    assert found["annealed 5%"] != [found["trained"][at - 1] for at in signals.RUNGS]
    monkeypatch.setattr(signals, "COPIES", {})
    alone = trainer.signals(POINT, seed=0)
    assert alone == {kind: found[kind] for kind in ("averaged", "trained")}


def test_the_learning_rate_of_an_annealed_copy_falls_to_zero(signals: ModuleType) -> None:
    trainer = signals.Trainer("digits", root=RUNGS, epochs=1.0)
    network = trainer.recorder.network(0)
    optimizer = create_optimizer("sgd", network.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = trainer.batches.fetch(torch.arange(64))
    F.cross_entropy(network(inputs), targets).backward()
    optimizer.step()
    found = trainer.anneal(network, optimizer, seed=3, steps=4, smoothing=0.0)
    assert optimizer.param_groups[0]["lr"] == 0.1

    network, optimizer = copy.deepcopy((network, optimizer))
    sampler = samplers.create("uniform", trainer.recorder.labels, batch_size=64, seed=1003)
    for factor in (1.0, 0.75, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        inputs, targets = trainer.batches.fetch(sampler.draw())
        optimizer.zero_grad()
        sampler.update(F.cross_entropy(network(inputs), targets, reduction="none")).backward()
        optimizer.step()
    assert found == pytest.approx(evaluate(network, trainer.validation), abs=1e-4)


def recorded_rows(*, seeds: int) -> list[dict[str, object]]:
    """Trainings whose annealed copies rank as their ends do; the last seed is incomplete."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for number in range(24):
            end = [number / 24, 1 - number / 24]
            noise = [[round(x, 3), round(2 - x, 3)] for x in rng.uniform(size=7)]
            rows.append({"configuration": number, "seed": seed, "averaged": [*noise, end]})
            rows[-1] |= {"trained": [*noise, end], "annealed 2%": [end] * 3}
            rows[-1]["annealed 5%"] = [[1 - x for x in end]] * 3
    return rows[:-1]


def test_signals_are_ranked_by_accuracy_and_by_falling_loss(signals: ModuleType) -> None:
    values, final, _ = signals.read_signals(recorded_rows(seeds=3))
    assert final.shape == (2, 24)
    rows = {row["signal"]: row for row in signals.ranking(values, final)}
    for measure in ("accuracy", "loss"):
        assert [value for value, _, _ in rows[f"annealed 2%, {measure}"]["kendall"]] == [1.0] * 3
        assert [value for value, _, _ in rows[f"annealed 5%, {measure}"]["kendall"]] == [-1.0] * 3
        assert rows[f"annealed 2%, {measure}"]["regret"][0][0] == 0.0
    for (gain, _, _), (own, _, _) in zip(
        rows["annealed 2%, loss"]["kendall less reference's"],
        rows[signals.REFERENCE]["kendall"],
        strict=True,
    ):
        assert gain == pytest.approx(1.0 - own, abs=2e-3)


def test_the_steps_of_annealed_copies_are_part_of_the_cost(signals: ModuleType) -> None:
    values, final, _ = signals.read_signals(recorded_rows(seeds=3))
    same = values["annealed 2%, accuracy"]
    names = ("averaged, accuracy", "annealed 2%, accuracy")
    free, paid = (next(iter(signals.replay({name: same}, final, replays=20))) for name in names)
    assert free["regret"] == paid["regret"]
    # Each trial pays for a copy at an eighth, half of them or more for a second.
    assert 0.02 * 1.4 < paid["cost"][0] - free["cost"][0] < 0.02 * 3


def test_the_recorded_table_of_signals_follows_from_its_rows(signals: ModuleType) -> None:
    document = json.loads((RUNGS / "signals.json").read_text(encoding="utf-8"))
    for one in document["sets"].values():
        values, final, loss = signals.read_signals(one["rows"])
        assert one["seeds"] == len(final)
        tau = signals.fidelity(-loss.mean(axis=0), final.mean(axis=0), resamples=100)
        assert tau.value == pytest.approx(one["kendall of the final loss"][0], abs=6e-4)
        for row in one["ranking"]:
            early = values[row["signal"]].mean(axis=0)
            for rung, (known, _, _) in enumerate(row["kendall"]):
                tau = signals.fidelity(early[:, rung], final.mean(axis=0), resamples=100)
                assert tau.value == pytest.approx(known, abs=6e-4)


def _text() -> str:
    """All pages of the study."""
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted(RUNGS.glob("*.md")))


def test_the_tables_of_signals_follow_from_the_record(signals: ModuleType) -> None:
    document = json.loads((RUNGS / "signals.json").read_text(encoding="utf-8"))
    text = _text()
    assert signals.ranking_table(document) in text
    assert signals.replay_table(document) in text


def test_the_table_of_schedules_follows_from_the_record() -> None:
    sets = json.loads((RUNGS / "tables.json").read_text(encoding="utf-8"))["sets"]
    text = _text()
    titles = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "digits"}
    titles |= {f"cifar10_{n}epochs": f"CIFAR-10, {n} epochs" for n in (8, 30)}
    for name, title in titles.items():
        rows = {
            (row["sampler"], row["schedule"], row["average"]): row
            for row in sets[name]["schedules"]
        }
        linear, constant = (rows["uniform", kind, 0.2] for kind in ("linear", "constant"))
        values = [one[key] for key in ("median", "best") for one in (linear, constant)]
        mean, low, high = constant["minus linear"]
        shown = " | ".join(f"{value:g}" for value in values)
        assert f"| {title} | {shown} | {mean:.2f} [{low:.2f}, {high:.2f}] |\n" in text


def test_the_figures_of_a_constant_rate_follow_from_the_records() -> None:
    text = " ".join(_text().split())
    arms = [f"{sampler}_{pruner}" for sampler in ("uniform", "mab") for pruner in PRUNERS]
    found = []
    for name in ("cifar10", "digits", "fashion_mnist"):
        record = json.loads((RUNGS / f"whole-{name}.json").read_text(encoding="utf-8"))
        scores = {(s["arm"], s["seed"]): np.mean(s["retrained"]) for s in record["studies"]}
        gains = [
            100 * np.mean([scores[f"{a}_constant", s] - scores[f"{a}_averaged", s] for a in arms])
            for s in sorted({seed for _, seed in scores})
        ]
        mean, half = np.mean(gains), stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1)
        # A mean of -0.003 is written as 0.00.
        found.append((round(mean, 2) + 0.0, f"[{mean - half:.2f}, {mean + half:.2f}]"))
    (one, first), (two, second), (three, third) = found
    assert f"{one:+.2f} points of test accuracy {first} over those of the same arms" in text
    assert f"on digits it is {two:.2f} {second}, on Fashion-MNIST {three:+.2f} {third}" in text


def test_the_best_configurations_of_both_schedules_follow_from_the_records() -> None:
    text = " ".join(_text().split())
    said = []
    for name in ("cifar10", "cifar10_8epochs", "cifar10_30epochs"):
        record = json.loads((RUNGS / f"{name}.json").read_text(encoding="utf-8"))
        best = {}
        for arm in record["arms"]:
            if (arm["sampler"], arm["average"]) == ("uniform", 0.2):
                kind = "raw" if arm["schedule"] == "linear" else "averaged"
                for seed in {row["seed"] for row in arm["curves"]}:
                    ends = [row[kind][-1] for row in arm["curves"] if row["seed"] == seed]
                    best[arm["schedule"], seed] = 100 * np.mean(sorted(ends)[-3:])
        seeds = sorted(seed for schedule, seed in best if schedule == "constant")
        said.append([f"{best['constant', s] - best['linear', s]:+.2f}" for s in seeds])
    two, eight, thirty = (f"{', '.join(few)} and {last}" for *few, last in said)
    assert f"{two} points by seed at 2 epochs, {eight} at 8 epochs, and {thirty} at 30" in text


@pytest.mark.filterwarnings("ignore:AdvantagePruner decides:hpo_mab.HpoMabWarning")
def test_rungs_move_earlier_where_an_eighth_ranks_trials(tables: ModuleType) -> None:
    ends = np.random.default_rng(0).normal(size=(2, 24, 1))
    # Without noise an interval would have no width, which counts as unknown.
    noise = np.random.default_rng(2).normal(size=(2, 24, 8))
    ranked = ends * np.linspace(0.5, 1.0, 8) + 0.05 * noise
    unranked = np.random.default_rng(1).normal(size=ranked.shape)
    unranked[..., 1:] = ranked[..., 1:]
    shares = []
    for curves in (ranked, unranked):
        rows = {row["rule"]: row for row in tables.earlier_rungs(curves, replays=8, seed=0)}
        assert rows["stays"]["first rung"] == {2: 1.0}
        assert rows["always"]["first rung"] == {1: 1.0}
        assert rows["always"]["cost"][0] < rows["stays"]["cost"][0]
        shares.append(rows["80% above 0.6"]["first rung"].get(1, 0.0))
    assert shares[0] > 0.5 > shares[1]


def test_the_table_of_earlier_rungs_follows_from_the_record() -> None:
    text = _text()
    sets = json.loads((RUNGS / "tables.json").read_text(encoding="utf-8"))["sets"]
    names = ("fashion_mnist", "cifar10", "digits", "cifar10_8epochs", "cifar10_30epochs")
    checked = 0
    for sampler in ("uniform", "mab"):
        for place, one in enumerate(sets["cifar10"]["earlier rungs"][sampler]):
            cells = [f"{sampler}, {one['rule']}"]
            for name in names:
                rows = sets[name]["earlier rungs"].get(sampler)
                cells.append("-" if rows is None else _earlier_cell(rows[place]))
            if one["rule"] != "stays":
                assert f"| {' | '.join(cells)} |\n" in text
                checked += 1
    assert checked == 10


def _earlier_cell(row: dict[str, Any]) -> str:
    value, low, high = ("-" if one is None else f"{one:.2f}" for one in row["ratio"])
    ratio = "not reached" if value == "-" else f"{value} [{low}, {high}]"
    return f"{row['first rung'].get('1', 0):.0%}; {ratio}; {row['less'][0]:+.2f}"


@pytest.mark.parametrize(
    "name", ["digits", "fashion_mnist", "cifar10", "cifar10_8epochs", "cifar10_30epochs"]
)
def test_the_tables_of_longer_trials_follow_from_the_records(name: str) -> None:
    longer = load("rungs/longer")
    text = _text()
    record = json.loads((RUNGS / f"longer-{name}.json").read_text(encoding="utf-8"))
    assert longer.table(record) in text
    # Every study spent its budget of 20 trials, and at most one trial more.
    assert all(20 <= one["epochs"] / record["epochs"] < 21.1 for one in record["studies"])
