"""The tables of recorded curves: its replays decide as Optuna's pruners do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import optuna
import pytest
from optuna.pruners import MedianPruner, SuccessiveHalvingPruner
from simulation import simulate

Load = Callable[[str], ModuleType]

RUNGS = Path(__file__).parents[2] / "studies/rungs"


@pytest.fixture(name="tables", scope="module")
def _tables(load: Load) -> ModuleType:
    return load("rungs/tables")


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
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    studies = curves(ties=ties)
    used = tables.halving(studies, first=first, factor=factor)
    pruner = SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    for one, study in zip(used, studies, strict=True):
        np.testing.assert_allclose(one / 8, simulate(study, pruner).cost)
    assert (used < 8).any()


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "with ties"])
def test_the_median_pruner_is_replayed_exactly(tables: ModuleType, ties: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
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


def test_the_picture_is_drawn_from_the_tables(load: Load) -> None:
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


def test_the_recorded_configurations_are_drawn_again(load: Load) -> None:
    recorded = json.loads((RUNGS / "digits.json").read_text(encoding="utf-8"))["configurations"]
    for point, known in zip(load("shared").configurations(24, seed=0), recorded, strict=True):
        # Another NumPy may round an exponential otherwise.
        assert point == pytest.approx(known, rel=1e-12)
