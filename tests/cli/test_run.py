"""``hpo-mab run``: what it prints, continues and refuses."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from tools import next_commands, photo

from hpo_mab import data
from hpo_mab._attributes import INTERRUPTED_KEY, SLOT_KEY, TWIN_KEY
from hpo_mab.cli import _output as module
from hpo_mab.cli._options import _arguments
from hpo_mab.search import StudyRunner, load_spec
from hpo_mab.search._target import StudyTarget
from hpo_mab.storage import Storage, open_study

Cli = Any


def test_a_study_whose_trials_all_diverge_at_once_has_a_summary(cli: Cli, tiny: str) -> None:
    out = cli.out("run", tiny, "--trials", "2", "--set", "optimizer.lr=1e38")
    assert "0 complete, 2 pruned (2 diverged), 0 failed" in out
    assert "no complete trial: all diverged. Lower the learning rate" in out
    for command in (["report", "tiny-mab-seed0"], ["replay", "tiny-mab-seed0", "0"]):
        status, _, err = cli(*command)
        assert (status, "Traceback" in err) == (2, False), (command, err)
    err = cli.refusal("replay", "tiny-mab-seed0", "best")
    assert "has no best trial: none is complete" in err


def test_run_then_continue_then_another(cli: Cli, tiny: str) -> None:
    status, out, err = cli("run", tiny)
    assert status == 0
    assert err.startswith("digits: 1,149 training, 288 validation, 360 test images, 10 classes")
    assert "tiny-mab-seed0: 4/4 trials" in err
    for words in (
        "% validation accuracy",
        "on the test set",
        "lr = ",
        "examples",
        "hpo-mab compare",
    ):
        assert words in out

    status, out, err = cli("run", tiny, "--trials", "6", "--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["trials"]["complete"] + facts["trials"]["pruned"] == 6
    assert facts["study"] == "tiny-mab-seed0"
    assert err == ""

    status, out, _ = cli("run", tiny, "--name", "another", "--trials", "1", "--json")
    assert json.loads(out)["study"] == "another"
    out = cli.out("studies")
    assert "tiny-mab-seed0 " in out
    assert "another " in out


def test_a_study_whose_budget_is_spent_continues_with_a_larger_one(cli: Cli, tiny: str) -> None:
    out = cli.out("run", tiny, "--budget", "1.5epochs")
    assert "Trials   2 complete" in out
    assert "saved nothing" in out
    why = "continue the study; raise --budget if it is spent"
    assert f"hpo-mab run {tiny} --trials 8 --budget 1.5epochs   # {why}" in out
    # Where the trials were what ended it, more of them are needed. It had a higher limit before.
    out = cli.out("run", tiny, "--budget", "1h", "--trials", "1")
    assert f"hpo-mab run {tiny} --trials 4 --budget 1h   # {why}" in out


def test_suggested_commands_keep_every_digit() -> None:
    option = SimpleNamespace(param_type_name="option", opts=["--epochs"])
    assert list(_arguments(option, 1 / 3)) == ["--epochs", "0.3333333333333333"]
    assert list(_arguments(option, 2.0)) == ["--epochs", "2"]
    assert list(_arguments(option, "v1.0")) == ["--epochs", "v1.0"]


def test_at_a_constant_rate_a_larger_budget_lengthens_the_best(cli: Cli, tiny: str) -> None:
    more = ("--pruner", "promotion", "--trials", "2", "--set", "search.initial=0")
    settings = ("--set", "training.schedule=constant", "--set", "optimizer.lr=0.05")
    command = ("run", tiny, *more, *settings)
    out = cli.out(*command, "--budget", "6epochs")
    assert re.search(r"validation accuracy, trial \d+, \d budgets long", out)
    assert re.search(r"hpo-mab run .* --trials 4 --budget 6epochs .*# continue the study", out)
    out = cli.out(*command, "--budget", "12epochs", "--json")
    facts = json.loads(out)
    assert facts["examples"] >= 12 * facts["trial_examples"]
    assert facts["best"]["budgets"] > 1
    # Lengthened trials count once.
    assert sum(facts["trials"].values()) == 2
    out = cli.out("studies", facts["study"])
    assert re.search(r"^\d+ +complete, see trial \d+ ", out, flags=re.MULTILINE)
    out = cli.out("report", facts["study"], "--output", "report.html", "--quiet")
    assert f"trial {facts['best']['trial']}, {facts['best']['budgets']} budgets long." in (
        Path("report.html").read_text(encoding="utf-8")
    )
    out = cli.out("confirm", facts["study"], "--trainings", "1")
    assert re.search(rf"{facts['best']['trial']}, {facts['best']['budgets']} budgets long", out)


def test_options_override_the_file(cli: Cli, tiny: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'other.db'}"
    arguments = ("--sampler", "uniform", "--seed", "5", "--storage", storage, "--trials", "1")
    out = cli.out("run", tiny, *arguments, "--set", "optimizer.lr=0.125", "--json")
    facts = json.loads(out)
    assert (facts["study"], facts["sampler"]) == ("tiny-uniform-seed5", "uniform")
    assert facts["best"]["params"] == {}
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "hpo_mab.db").exists()


def test_the_trials_of_a_study_are_listed(cli: Cli, tiny: str) -> None:
    more = ("--trials", "3", "--pruner", "none", "--quiet")
    assert cli("run", tiny, *more)[0] == 0
    status, out, _ = cli("studies", "tiny-mab-seed0")
    head, *rows = out.splitlines()[:4]
    assert (status, head.split()) == (
        0,
        ["Trial", "State", "Accuracy", "Evaluations", "Parameters"],
    )
    assert [row.split()[0:2] for row in rows] == [[str(n), "complete"] for n in range(3)]
    assert all(row.split()[2].endswith("%") and row.split()[3] == "3" for row in rows)
    assert all("lr = " in row for row in rows)
    listed = json.loads(cli("studies", "tiny-mab-seed0", "--json")[1])
    assert [trial["trial"] for trial in listed] == [0, 1, 2]
    assert 0 < listed[0]["value"] <= 1


def test_fewer_trials_than_are_stored_are_the_target_except_in_a_comparison(
    cli: Cli, tiny: str
) -> None:
    def target() -> int | None:
        storage = Storage("hpo_mab.db")
        found = StudyTarget.load(open_study(storage, "tiny-mab-seed0")).trials
        storage.close()
        return found

    assert cli("run", tiny, "--trials", "4", "--quiet") == (0, "", "")
    few = ("--seeds", "1", "--set", "compare.retrain=0")
    assert cli("compare", tiny, "--trials", "2", *few, "--quiet")[0] == 0
    assert target() == 4
    facts = json.loads(cli.out("run", tiny, "--trials", "2", "--json"))
    assert facts["trials"]["complete"] + facts["trials"]["pruned"] == 4
    assert target() == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "digit"), ["Unknown data set 'digit'", "'digits'"]),
        (("--set", "optimizer"), ["KEY=VALUE", "'optimizer'"]),
        (("--storage", "sqlite:////no/such/folder/x.db"), ["Cannot open storage"]),
        (("--storage", "postgresql://me:pw@127.0.0.1:1/db"), ["Cannot open storage", "me:***@"]),
        (("--device", "gpu"), ["Unknown device 'gpu'"]),
        (("--set", "sampler.memory=-1"), ["memory", "-1"]),
        (("--set", "training.batch_size=[32, 64]"), ["batch_size", "{ choices = [32, 64] }"]),
        (("--set", "training.batch_size=100000"), ["batch_size", "100000"]),
        (("--sampler", "nowhere:X"), ["sampler 'nowhere:X' cannot be imported"]),
        (
            ("--pruner", "broken:P"),
            ["cannot be imported: SystemExit: usage: broken (broken.py, line 2)."],
        ),
        (("--set", "model.name=nowhere:Net"), ["model 'nowhere:Net' cannot be imported"]),
        (("--data", "nowhere:load"), ["data set 'nowhere:load' cannot be imported"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_mistake_is_one_line_before_anything_is_done(
    cli: Cli, tiny: str, tmp_path: Path, command: str, arguments: tuple[str, ...], words: list[str]
) -> None:
    (tmp_path / "broken.py").write_text("\nraise SystemExit('usage: broken')")
    status, out, err = cli(command, tiny, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for word in words:
        assert word in err
    assert {path.name for path in tmp_path.iterdir()} <= {tiny, "broken.py", "__pycache__"}


def test_nothing_is_imported_from_the_current_folder_unless_a_definition_names_it(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    cli.out("run", tiny, "--trials", "1", "--quiet")
    assert "" not in sys.path


def test_missing_data_without_network_is_one_line(
    cli: Cli, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request
    from urllib.error import URLError

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    err = cli.refusal("run", tiny, "--data", "mnist", "--data-root", str(tmp_path / "none"))
    assert err.count("\n") == 1
    assert str(tmp_path / "none") in err
    assert not (tmp_path / "hpo_mab.db").exists()


def test_a_study_is_named_after_other_data(cli: Cli, tiny: str, tmp_path: Path) -> None:
    for number in range(40):
        photo(tmp_path / "photos" / ("one", "two")[number % 2] / f"{number}.png", number)
    given = ("--trials", "1", "--set", "data.size=8", "--batch-size", "8", "--json")
    assert cli("run", tiny, "--trials", "1", "--quiet")[0] == 0
    status, out, err = cli("run", tiny, "--data", "image_folder", "--data-root", "photos", *given)
    assert status == 0, err
    assert json.loads(out)["study"] == "tiny-image_folder-photos-mab-seed0"
    # A name of the user's choice stays, and that of a definition named after its data does not.
    assert load_spec("digits", {"data.name": "mnist"}).name == "mnist"
    assert load_spec("digits", {"data.name": "mnist", "name": "own"}).name == "own"
    assert load_spec("digits", {"data.root": "elsewhere"}).name == "digits"


def test_a_key_that_is_set_counts_more_than_the_environment(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_MAB_DATA", "elsewhere")
    folder = ("run", tiny, "--data", "image_folder", "--trials", "1")
    err = cli.refusal(*folder, "--set", "data.root=folder_set")
    assert "folder_set" in err
    assert "elsewhere" not in err
    given = ("--set", "data.root=folder_set", "--data-root", "folder_typed")
    err = cli.refusal(*folder, *given)
    assert "folder_typed" in err
    assert "folder_set" not in err


def test_printed_commands_name_the_root_that_replaced_that_of_the_environment(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", tiny, "--trials", "1", "--set", "data.root=here")
    assert "--data-root" not in cli.out(*command)
    monkeypatch.setenv("HPO_MAB_DATA", "elsewhere")
    commands = {words[0]: words for words in next_commands(cli.out(*command))}
    for name in ("compare", "confirm", "replay", "run"):
        assert commands[name][commands[name].index("--data-root") + 1] == "here"
    assert "--data-root" not in cli.out("run", tiny, "--trials", "1", "--name", "other")


def test_printed_commands_have_root_and_device_of_this_run_if_the_study_has_others(
    cli: Cli, tiny: str
) -> None:
    command = ("run", tiny, "--trials", "1")
    assert cli(*command, "--data-root", "first", "--device", "cpu", "--quiet")[0] == 0
    commands = {words[0]: words for words in next_commands(cli.out(*command))}
    for name in ("compare", "confirm", "replay", "run"):
        assert commands[name][commands[name].index("--data-root") + 1] == "data"
        assert commands[name][commands[name].index("--device") + 1] == "auto"


def test_the_summary_names_a_sampler_of_the_best_trials_own(cli: Cli, tiny: str) -> None:
    # The first trials of a race are uniform.
    command = ("run", tiny, "--sampler", "auto", "--trials", "1")
    assert "validation accuracy, trial 0, batch sampler uniform" in " ".join(
        cli.out(*command).split()
    )
    assert json.loads(cli.out(*command, "--json"))["best"]["sampler"] == "uniform"


def test_a_name_is_refused_before_the_data_are_touched(
    cli: Cli, tiny: str, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the data were loaded")

    monkeypatch.setattr(data, "load_splits", touched)
    for command in ("run", "compare"):
        err = cli.refusal(command, tiny, "--epochs", "3")
        assert f"'{study}' exists with another definition: budget.epochs is 1" in err


def test_the_summary_says_what_was_spent_and_saved(cli: Cli, tiny: str) -> None:
    # Each trial but the first is held against one that ended better, and stops at its first rung.
    given = ("--set", "search.initial=1", "--pruner", "successive_halving", "--trials", "6")
    out = cli.out("run", tiny, *given, "--json")
    facts = json.loads(out)
    assert facts["trials"]["pruned"] > 0
    assert 0 < facts["evaluation_seconds"] < facts["wall_seconds"]
    assert 0 < facts["seconds"] < facts["wall_seconds"]
    whole = facts["seconds"] + facts["seconds_saved_by_pruning"]
    share = facts["seconds_saved_by_pruning"] / whole
    saved = facts["examples_saved_by_pruning"]
    assert saved == sum(facts["trials"].values()) * facts["trial_examples"] - facts["examples"]
    assert 0 < share < 1
    out = cli.out("run", tiny, *given)
    words = " ".join(out.split())
    assert re.search(r"Time [\d.]+ s of training and [\d.]+ s of evaluation, all trials", words)
    assert f"saved {saved:,} training examples (" in words
    assert f" of training ({share:.0%}), against the same trials unpruned" in words
    for evaluation, warned in ((1.5, True), (0.5, False)):
        facts |= {"seconds": 1.0, "evaluation_seconds": evaluation}
        shown = " ".join(text for _, text in module._summary_rows(facts))
        assert ("Evaluation took longer than training" in shown) is warned
    assert "It is not shown" not in shown
    tau = {"value": 0.1, "low": -0.25, "high": 0.5}
    facts |= {"weak_rung": {"step": 1, "full": 4, "tau": tau, "trials": 10}}
    shown = " ".join(text for _, text in module._summary_rows(facts))
    began = "The first rung is evaluation 1 of 4. It is not shown that accuracies there rank the"
    assert f"{began} first 10 trials" in shown
    assert "(Kendall's tau 0.10, 80% interval -0.25 to 0.50)" in shown


def test_studies_counts_as_the_plan_does(cli: Cli, tiny: str) -> None:
    assert cli("run", tiny, "--trials", "2", "--quiet")[0] == 0
    storage = Storage("sqlite:///hpo_mab.db")
    study = optuna.load_study(study_name="tiny-mab-seed0", storage=storage.optuna)
    # As Ctrl-C leaves a trial, and as the pilot makes a twin.
    study.add_trial(
        create_trial(state=TrialState.FAIL, user_attrs={SLOT_KEY: 2, INTERRUPTED_KEY: True})
    )
    study.add_trial(create_trial(value=0.5, user_attrs={SLOT_KEY: 0, TWIN_KEY: 0}))
    optuna.create_study(study_name="foreign", storage=storage.optuna).add_trial(
        create_trial(value=1.0)
    )
    storage.close()
    out = cli.out("studies", "--json")
    assert {row["study"]: row["trials"] for row in json.loads(out)} == {
        "tiny-mab-seed0": 2,
        "foreign": 1,
    }


def test_a_suggested_option_replaces_an_assignment(cli: Cli, tiny: str) -> None:
    out = cli.out("run", tiny, "--set", "budget.trials=2", "--pruner", "none")
    assert f"hpo-mab run {tiny} --trials 4 --pruner none --set budget.trials=2   # continue" in out
    command = ("run", tiny, "--trials", "3", "--set", "budget.trials=2", "--pruner", "none")
    _, out, _ = cli(*command, "--json")
    assert json.loads(out)["trials"]["complete"] == 3


def test_trials_of_a_race_say_why_they_are_not_lengthened(cli: Cli, tiny: str) -> None:
    settings = ("--pruner", "promotion", "--set", "training.schedule=constant", "--trials", "1")
    _, out, _ = cli("run", tiny, *settings, "--sampler", "auto", "--budget", "1epochs")
    assert "no trial continues beyond its budget: sampler 'auto'" in " ".join(out.split())


def test_a_race_that_the_budget_ended_is_not_over(cli: Cli, tiny: str) -> None:
    out = cli.out("run", tiny, "--sampler", "auto", "--trials", "30", "--budget", "1epochs")
    assert "auto has not chosen yet: the race is not over" in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "purpose"),
    [
        (("--sampler", "uniform"), "the same study with the bandit and without pruning"),
        ((), "the same study with uniform sampling and without pruning"),
        (("--pruner", "none"), "the same study with uniform sampling"),
    ],
)
def test_what_is_compared_next_is_what_compare_runs(
    options: tuple[str, ...], purpose: str, cli: Cli, tiny: str
) -> None:
    unpruned = ("--set", "compare.unpruned=true", "--trials", "1")
    _, out, _ = cli("run", tiny, *unpruned, *options)
    assert re.search(rf"# {purpose}$", out, flags=re.MULTILINE)


_PRINTS = """
from torch import nn

print("a module")

def net(input_shape, num_classes):
    print("a network")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize("command", ["run", "compare", "confirm", "replay", "examples"])
def test_json_is_one_document_whatever_the_users_code_prints(
    cli: Cli, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "printing.py").write_text(_PRINTS)
    monkeypatch.syspath_prepend(tmp_path)
    given = [tiny, "--trials", "2", "--model", "printing:net"]
    if command not in ("run", "compare"):
        assert cli("run", *given, "--quiet")[0] == 0
        given = ["tiny-mab-seed0", *(["0"] if command == "replay" else [])]
    monkeypatch.delitem(sys.modules, "printing", raising=False)
    status, out, err = cli(command, *given, "--json")
    assert status == 0, err
    assert json.loads(out)
    assert "a module" in err
    # Examples are listed without a network.
    assert ("a network" in err) is (command != "examples")


@pytest.mark.parametrize(("command", "words"), [("run", "Best"), ("compare", "Verdict")])
def test_a_study_in_memory_has_no_next_commands_and_no_files(
    cli: Cli,
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    words: str,
) -> None:
    # Pages of a comparison, which nobody could open, are no files.
    monkeypatch.setattr("hpo_mab.dashboard._publish.publish_comparison", None)
    given = ("--storage", ":memory:", "--trials", "2", "--model", "small_cnn")
    out = cli.out(command, tiny, *given)
    assert words in out
    assert "hpo-mab" not in out
    assert [path.name for path in tmp_path.iterdir()] == [tiny]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_ctrl_c_while_the_best_is_scored_says_what_is_kept(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupt(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(StudyRunner, "train_again", interrupt)
    for storage, stored in ((":memory:", False), ("studies.db", True)):
        status, out, err = cli(command, tiny, "--trials", "2", "--storage", storage)
        assert status == 130
        assert "Interrupted." in out + err
        assert ("Finished trials are stored" in out + err) is stored
        if command == "run":
            assert "Trials   2 complete" in out
            assert ("# continue the study" in out) is stored


def test_a_definition_may_begin_with_a_byte_order_mark(cli: Cli, tiny: str, tmp_path: Path) -> None:
    text = (tmp_path / tiny).read_text(encoding="utf-8")
    (tmp_path / tiny).write_text(text, encoding="utf-8-sig")
    assert cli("run", tiny, "--quiet", "--trials", "2").status == 0


def test_names_of_studies_are_whole_in_narrow_terminals(cli: Cli, tiny: str) -> None:
    name = "photographs_of_domestic_animals_" * 4
    assert cli("run", tiny, "--quiet", "--trials", "2", "--name", name).status == 0
    first, *rest = cli.out("studies").splitlines()[1:]
    assert first.split()[0] + "".join(rest).strip() == name


def test_names_print_in_any_encoding(cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli("run", tiny, "--trials", "2", "--name", "ünï").status == 0
        stdout.flush()
        assert rb"'\xfcn\xef'" in stdout.buffer.getvalue()
