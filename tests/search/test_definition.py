"""Definitions from files, overrides, and mistakes in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, FloatDistribution

from hpo_mab._errors import ArgumentError, SpecError
from hpo_mab._stored_settings import TotalBudget
from hpo_mab.search import load_spec, make_spec
from hpo_mab.search._load import builtin_names
from hpo_mab.search._portfolio import parse_portfolio

GOOD = """
name = "mine"
[data]
name = "digits"
[model]
name = "small_cnn"
[budget]
epochs = 2
[optimizer]
name = "sgd"
lr = { low = 0.01, high = 1.0, log = true }
[sampler]
kind = "mab"
"""


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return make


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "digits", "fashion_mnist"])
def test_definitions_that_come_with_the_package_are_valid(name: str) -> None:
    assert name in builtin_names()
    spec = load_spec(name)
    assert spec.name == spec.data.name == name
    assert isinstance(spec.optimizer.parsed_options("optimizer")["lr"], BaseDistribution)


def test_overrides_replace_the_file(write) -> None:  # type: ignore[no-untyped-def]
    spec = load_spec(write(GOOD), {"optimizer.lr": 0.1, "budget.trials": 7, "seed": 3})
    assert spec.optimizer.options["lr"] == 0.1
    assert (spec.budget.trials, spec.seed) == (7, 3)
    assert spec.optimizer.parsed_options("optimizer")["lr"] == 0.1


def test_overriding_the_unit_of_the_budget_drops_the_other_unit(write) -> None:  # type: ignore[no-untyped-def]
    spec = load_spec(write(GOOD), {"budget.steps": 50})
    assert (spec.budget.steps, spec.budget.epochs) == (50, None)


def test_another_sampler_keeps_only_the_knobs_it_has(write) -> None:  # type: ignore[no-untyped-def]
    spec = load_spec(write(GOOD + "loss_decay = 0.9\n"), {"sampler.kind": "uniform"})
    assert spec.sampler.kind == "uniform"
    assert spec.sampler.options == {}


def test_another_search_keeps_only_the_options_it_has(write) -> None:  # type: ignore[no-untyped-def]
    searched = write(GOOD + "\n[search]\nn_startup_trials = 5\n")
    assert load_spec(searched, {"search.sampler": "tpe"}).search.options == {"n_startup_trials": 5}
    spec = load_spec(searched, {"search.sampler": "random"})
    assert (spec.search.sampler, spec.search.options) == ("random", {})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", True, "a valid integer, got True"),
        ("budget.trials", "5", "a valid integer, got '5'"),
        ("budget.trials", 0, "budget.trials must be greater than or equal to 1, got 0"),
        ("budget.epochs", True, "a valid number, got True"),
        ("data.download", 1, "a valid boolean, got 1"),
        ("training.examples", "yes", "a valid boolean, got 'yes'"),
        ("budget.epochs", "many", "budget.epochs must be a valid number, got 'many'"),
        ("compare.seeds", 0, "compare.seeds must be greater than or equal to 1, got 0"),
        ("training", 3, "training must be a section, got 3"),
        ("training.slots", True, "slots"),
        ("training.slots", 0, "slots must be greater than or equal to 1 or be 'auto', got 0"),
        ("training.keep", "x", "must be 'trained' or 'better', got 'x'"),
        ("seed", 2**40, "seed must be less than 4294967296, got 1099511627776"),
        ("optimizer.lr", "1e-3", "optimizer.lr must be a number, got '1e-3'"),
        ("optimizer.lr", [0.1, 0.2], r"optimizer.lr must be a number, got \[0.1, 0.2\]"),
        ("model", {"name": "mlp", "depth": 2.5}, "model.depth must be an integer, got 2.5"),
        ("sampler.floor", "0.1", "sampler.floor must be a number, got '0.1'"),
        (
            "sampler.memory",
            {"choices": [20, "all"]},
            r"sampler.memory must be .* 'auto' or None \('none' in a definition\), got 'all'",
        ),
        (
            "sampler.prior",
            2.0,
            "sampler.prior must be a list of 2 values, each a number or a range, .* got 2.0",
        ),
        (
            "sampler.prior",
            {"low": 1, "high": 3},
            r"sampler.prior must be a list of 2 values, .* as in \[1, 2\], got 1",
        ),
    ],
)
def test_a_value_is_not_taken_for_one_of_another_type(write, key, value, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SpecError, match=words):
        load_spec(write(GOOD), {key: value})


def test_a_wrong_reward_is_found_in_the_definition(write) -> None:  # type: ignore[no-untyped-def]
    for value in ("above_averag", {"choices": ["above_average", "above_averag"]}):
        with pytest.raises(SpecError, match=r"'above_averag'\. Did you mean 'above_average'\?"):
            load_spec(write(GOOD), {"sampler.reward": value})
    # Of other samplers it is another option.
    with pytest.raises(SpecError, match="option of sampler 'uniform' 'reward'"):
        load_spec(write(GOOD), {"sampler.kind": "uniform", "sampler.reward": "x"})


@pytest.mark.parametrize(
    "key", ["data.name", "model.name", "optimizer.name", "sampler.kind", "pruner.kind"]
)
@pytest.mark.parametrize("value", [["sgd", "adam"], {"choices": ["sgd", "adam"]}, 3, True])
def test_what_a_section_names_is_set_to_text_alone(write, key, value) -> None:  # type: ignore[no-untyped-def]
    rest = "; it cannot be a range" if isinstance(value, dict) else ", got"
    with pytest.raises(SpecError, match=f"{key} must be a valid string{rest}"):
        load_spec(write(GOOD), {key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('name = "digits"', 'name = "digit"'), ["Unknown data set 'digit'", "'digits'"]),
        (('name = "small_cnn"', 'name = "smal_cnn"'), ["'smal_cnn'", "'small_cnn'"]),
        (('kind = "mab"', 'kind = "mba"'), ["Unknown sampler 'mba'", "'mab'"]),
        (('kind = "mab"', 'kind = "mab"\nlos_decay = 0.9'), ["los_decay", "'loss_decay'"]),
        (('name = "sgd"', 'name = "sgdm"'), ["'sgdm'", "'sgd'"]),
        (('name = "sgd"', 'name = "sgd"\nmomentom = 0.9'), ["'momentom'", "'momentum'"]),
        (("low = 0.01", "low = 2.0"), ["optimizer.lr", "low", "2.0", "1.0"]),
        (("epochs = 2", "epochs = 0"), ["budget.epochs", "greater than 0, got 0"]),
        (("epochs = 2", "epochs = 2\nsteps = 3"), ["budget", "exactly one", "epochs and steps"]),
        (("epochs = 2", ""), ["exactly one", "none"]),
        (("epochs = 2", 'epochs = 2\ntotal = "5 parsecs"'), ["total budget", "5 parsecs"]),
        (("[model]", "[modle]"), ["'modle'", "'model'"]),
        (("epochs = 2", "epochs = 2\ntrails = 3"), ["[budget]", "'trails'", "'trials'"]),
        (('kind = "mab"', 'kind = "mab"\n[pruner]\nkind = "medain"'), ["'medain'", "'median'"]),
        (('kind = "mab"', 'kind = "mab"\n[search]\nsampler = "tpa"'), ["'tpa'", "'tpe'"]),
        (('kind = "mab"', 'kind = "mab"\n[training]\nbatch_size = 0'), ["batch_size", "got 0"]),
        (
            ('kind = "mab"', 'kind = "mab"\n[training]\nslots = "many"'),
            ["training.slots must be a valid integer or be 'auto', got 'many'."],
        ),
        (
            ('kind = "mab"', 'kind = "auto"\nportfolio = "uniform"'),
            ["sampler.portfolio must be a valid list, got 'uniform'."],
        ),
        (
            ('kind = "mab"', 'kind = "auto"\nportfolio = [1]'),
            ["sampler.portfolio.0 must be a valid string or be a section, got 1."],
        ),
        (("high = 1.0", "high = inf"), ["optimizer.lr", "high, a finite number, got inf"]),
        (('kind = "mab"', 'kind = "mab"\nreward = 2024-06-01'), ["sampler.reward", "write it as"]),
        (('kind = "mab"', 'kind = "mab"\nfloor = inf'), ["sampler.floor", "finite", "got inf"]),
        (("low = 0.01", "low = nan"), ["optimizer.lr", "low, a finite number, got nan"]),
        (("lr = {", "lr = = {"), ["not valid TOML", "line 11"]),
        (
            ('kind = "mab"', 'kind = "mab"\n[compare.arms.fast]\nsamplr = { kind = "uniform" }'),
            ["[compare.arms.fast]", "'samplr'", "Did you mean 'sampler'"],
        ),
        (
            ('kind = "mab"', 'kind = "mab"\n[compare]\nretrain_epochs = inf'),
            ["compare.retrain_epochs", "finite"],
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_key(write, change, words) -> None:  # type: ignore[no-untyped-def]
    assert change[0] in GOOD
    path = write(GOOD.replace(*change, 1))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_value_is_no_section(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SpecError, match=r"'name\.lr' cannot be set: 'name' is not a section"):
        load_spec(write(GOOD), {"name.lr": 1})


def test_a_missing_file_offers_what_there_is() -> None:
    with pytest.raises(SpecError, match=r"nowhere\.toml: no such file.*digits"):
        load_spec("nowhere.toml")
    with pytest.raises(SpecError, match="Did you mean 'cifar10'"):
        load_spec("cifar11")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
def test_a_definition_may_come_from_a_pipe(write) -> None:  # type: ignore[no-untyped-def]
    # As a shell writes <(command).
    read_end, write_end = os.pipe()
    os.write(write_end, GOOD.encode())
    os.close(write_end)
    assert load_spec(f"/dev/fd/{read_end}") == load_spec(write(GOOD))
    os.close(read_end)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_data_do_not_hide_a_definition_of_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load_spec("digits").data.name == "digits"


def test_a_folder_is_no_definition(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is a folder; name the definition"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("45s", 45, "seconds"),
        ("30m", 1800, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("200 epochs", 200, "epochs"),
        ("1000examples", 1000, "examples"),
    ],
)
def test_amounts_with_units_are_read(text: str, amount: float, unit: str) -> None:
    assert TotalBudget.parse(text) == TotalBudget(amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "30", "0m", "m30", "-5s", "10 parsecs", "nan s", 3600])
def test_other_texts_are_refused_with_the_text(text: str) -> None:
    with pytest.raises(ArgumentError, match="total budget") as caught:
        TotalBudget.parse(text)
    assert repr(text) in str(caught.value)


def test_the_share_counts_its_own_unit_only() -> None:
    spent = {"seconds": 30.0, "examples": 500, "epoch_examples": 100}
    assert TotalBudget.parse("60s").share_spent(**spent) == 0.5
    assert TotalBudget.parse("20epochs").share_spent(**spent) == 0.25
    assert TotalBudget.parse("400examples").share_spent(**spent) == 1.25


def test_a_range_without_fractions_is_refused_before_data_are_loaded() -> None:
    average = {"low": 0, "high": 1}
    with pytest.raises(SpecError, match=r"training\.average: a range of integers from 0 to 1"):
        make_spec({"name": "own", "budget": {"epochs": 1}, "training": {"average": average}})


def test_overrides_do_not_depend_on_their_order(write) -> None:  # type: ignore[no-untyped-def]
    sections = {"budget.trials": 50, "budget": {"epochs": 2}}
    spec = load_spec(write(GOOD), sections)
    assert (spec.budget.trials, spec.budget.epochs) == (50, 2)
    for given in (
        {"sampler.memory": 5, "sampler.kind": "uniform"},
        {"sampler.kind": "uniform", "sampler.memory": 5},
    ):
        with pytest.raises(SpecError, match="'memory'"):
            load_spec(write(GOOD), given)
    with pytest.raises(SpecError, match=r"budget\.epochs and budget\.steps cannot both be set"):
        load_spec(write(GOOD), {"budget.epochs": 4, "budget.steps": 100})


def test_a_folder_of_images_may_move(write) -> None:  # type: ignore[no-untyped-def]
    text = GOOD.replace('name = "digits"', 'name = "image_folder"\nroot = "photos"\nsize = 8')
    assert load_spec(write(text), {"data.root": "elsewhere/photos2"}).name == "mine"
    assert load_spec(write(text), {"data": {"name": "digits"}}).name == "mine-digits"
    given = {"data.name": "image_folder", "data.root": "photos", "data.size": 8}
    assert load_spec(write(GOOD), given).name == "mine-image_folder-photos"


def test_none_unsets_the_keys_that_are_not_set_by_default(write) -> None:  # type: ignore[no-untyped-def]
    nullable = ("data.exclude", "budget.total", "sampler.evidence", "sampler.portfolio")
    unset = dict.fromkeys((*nullable, "compare.retrain_epochs"), "none")
    assert load_spec(write(GOOD), unset) == load_spec(write(GOOD))
    # Each default is that of the kind.
    auto = {"sampler.kind": "auto"}
    assert load_spec(write(GOOD), unset | auto) == load_spec(write(GOOD), auto)
    # A pruner has that name.
    assert load_spec(write(GOOD), {"pruner.kind": "none"}).pruner.kind == "none"


_RANGE = FloatDistribution(0.1, 0.5)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optimizer", {"lr": _RANGE}),
        ("training", {"batch_size": _RANGE}),
        ("training", {"warmup": _RANGE}),
        ("training", {"label_smoothing": _RANGE}),
        ("training", {"average": _RANGE}),
        ("sampler", {"kind": "auto", "portfolio": ["uniform", {"kind": "mab", "floor": _RANGE}]}),
    ],
)
def test_a_distribution_is_no_value_of_a_definition(section: str, values: dict[str, Any]) -> None:
    *_, key = values
    own = {"name": "own", "budget": {"epochs": 1}}
    changes = [{section: values}]
    if section == "sampler":
        changes.append({"compare": {"arms": {"a": {section: values}}}})
    for change in changes:
        words = rf"{section}\.{key} must be .*, and a range as a table"
        with pytest.raises(SpecError, match=words):
            make_spec({**own, **change})


def test_a_name_is_no_definition_in_python() -> None:
    with pytest.raises(SpecError, match="must be a mapping, got 'digits'; load_spec reads a file"):
        make_spec("digits")  # type: ignore[arg-type]


def test_none_is_written_in_an_entry_of_a_portfolio_as_elsewhere() -> None:
    found = parse_portfolio(["uniform", {"name": "paper", "kind": "mab", "memory": "none"}])
    assert found["paper"].options == {"memory": None}
