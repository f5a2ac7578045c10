"""``hpo-mab report``, ``evidence`` and ``studies``, and networks that ``replay`` saves."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import optuna
import pytest
import torch
import typer

from hpo_mab._errors import ArgumentError
from hpo_mab.advantage import Evidence
from hpo_mab.cli._files import write_file
from hpo_mab.cli._main import app
from hpo_mab.cli._output import print_result
from hpo_mab.compare import summarise
from hpo_mab.data import Normalization
from hpo_mab.search import load_network, load_spec, load_splits
from hpo_mab.storage import Storage, read_run
from hpo_mab.training import Evaluation, Training, TrainingDiverged

Cli = Any


@pytest.fixture(name="stored")
def _stored(run_once: Callable[..., None], tiny: str, tmp_path: Path) -> Path:
    """Two databases with one arm each; records of both arms together in two others."""
    pairs = ("--set", "search.initial=4", "--set", "compare.retrain=0")
    run_once(
        ("compare", tiny, "--quiet", "--record", "record.json"),
        ("run", tiny, "--quiet", "--storage", "one.db"),
        ("run", tiny, "--quiet", "--storage", "two.db", "--sampler", "uniform"),
        # With as many pairs as evidence needs.
        ("compare", tiny, "--quiet", "--record", "pairs.json", "--storage", "pairs.db", *pairs),
    )
    return tmp_path


def test_a_report_of_one_or_several_databases_or_a_record(cli: Cli, stored: Path) -> None:
    verdict = json.loads((stored / "record.json").read_text())["verdict"][0]
    status, out, _ = cli("report", "tiny-*")
    assert (status, out.splitlines()[-1]) == (0, "2 studies in report.html")
    assert "mab against uniform on digits, 1 seed" in out
    assert "same configuration learns more" in out
    # The incumbents' re-trained accuracies are read from storage.
    assert verdict in (stored / "report.html").read_text()

    several = ("--storage", "one.db", "--storage", "two.db")
    status, out, _ = cli("report", "tiny-mab-seed0", "tiny-uniform-seed0", *several, "-o", "s.html")
    assert (status, out.splitlines()[-1]) == (0, "2 studies in s.html")
    page = (stored / "s.html").read_text()
    assert "tiny-mab-seed0" in page
    assert "tiny-uniform-seed0" in page
    # Nothing was re-trained in these databases.
    assert "better hyperparameters? cannot tell (not measured)." in page

    out = cli.out("report", "record.json", "--reference", "mab")
    assert "uniform against mab on digits, 1 seed" in out

    options = ("-o", "r.html", "--title", "From <file>", "--quiet")
    status, out, _ = cli("report", "record.json", *options)
    assert (status, out) == (0, "")
    page = (stored / "r.html").read_text()
    assert verdict in page
    assert "<h1>From &lt;file&gt;</h1>" in page

    status, out, _ = cli("report", "tiny-mab-seed0", "-o", "one.html")
    assert (status, out.splitlines()[-1]) == (0, "1 study in one.html")
    assert "there is nothing to compare" in (stored / "one.html").read_text()


def test_stored_studies_give_the_same_as_the_comparison_that_ran_them(
    cli: Cli, stored: Path
) -> None:
    ran = json.loads((stored / "record.json").read_text())
    out = cli.out("report", "tiny-*", "--json", "--record", "again.json")
    again = json.loads((stored / "again.json").read_text())
    assert json.loads(out) == again
    for part in ("summary", "verdict", "environment", "environments", "studies"):
        by_arm = (
            sorted(one[part], key=str) if part == "studies" else one[part] for one in (ran, again)
        )
        assert len({json.dumps(one, sort_keys=True) for one in by_arm}) == 1, part
    scores = [{entry["arm"]: entry for entry in one["retrained"]} for one in (ran, again)]
    assert scores[0] == scores[1] != {}


def test_arms_of_several_databases_can_be_named(cli: Cli, stored: Path) -> None:
    # The same study in two databases: names of studies do not distinguish them.
    chosen = ("old=one.db#tiny-mab-seed0", "new=hpo_mab.db#tiny-mab-*")
    out = cli.out("report", *chosen, "--reference", "old", "--json")
    record = json.loads(out)
    assert [study["arm"] for study in record["studies"]] == ["old", "new"]
    assert record["summary"]["reference"] == "old"
    (contrast,) = record["summary"]["contrasts"]
    assert (contrast["arm"], contrast["pairs"]) == ("new", 2)
    assert {row["advantage"]["value"] for row in contrast["paired"]} == {0.0}
    # Only the comparison's studies were trained again, so there are no scores to compare them with.
    assert contrast["retrained_gain"] is None

    out = cli.out("report", "two.db#tiny-*", "one.db#tiny-*", "--json")
    assert json.loads(out)["summary"]["reference"] == "uniform"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--set", "data.validation=0.3"), ["same data.validation", "0.2", "0.3"]),
        (("--epochs", "0.5"), ["same budget per trial", "1,152", "576"]),
    ],
)
def test_what_cannot_be_compared_is_refused(
    cli: Cli, stored: Path, change: tuple[str, str], named: list[str]
) -> None:
    other = ("--storage", "three.db", "--sampler", "uniform", "--trials", "1")
    assert cli("run", "tiny.toml", "--quiet", *other, *change)[0] == 0
    err = cli.refusal("report", "one.db#*", "three.db#*")
    for words in [*named, "'tiny-mab-seed0'", "'tiny-uniform-seed0'", "Name studies that agree"]:
        assert words in err


def test_mistakes_name_the_next_step(cli: Cli, stored: Path) -> None:
    for arguments, words in (
        (("tiny-mba-seed0",), ["Unknown study 'tiny-mba-seed0'", "'tiny-mab-seed0'"]),
        (("other-*",), ["matches 'other-*'", "hpo-mab studies"]),
        (("tiny-*", "--storage", "none.db"), ["none.db", "hpo-mab run"]),
        (("tiny-mab-seed0", "--reference", "unifrm"), ["Unknown arm 'unifrm'"]),
        (("none.json",), ["none.json cannot be read"]),
        (("record.json", "other.json"), ["A record is read alone", "other.json"]),
        (("none.db#tiny-*",), ["none.db", "hpo-mab run"]),
        (("tiny-*", "--storage", "one.db", "--storage", "hpo_mab.db"), ["Name only one"]),
        (("tiny-*", "-o", "no/such/x.html"), ["no/such/x.html cannot be written"]),
    ):
        status, out, err = cli("report", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), arguments
        for word in words:
            assert word in err
    (stored / "other.json").write_text('{"a": 1}')
    err = cli.refusal("report", "other.json")
    assert "no record of a comparison" in err
    assert "compare --record" in err


def test_the_version_is_that_of_the_package(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.out("--version") == f"hpo-mab {importlib.metadata.version('hpo_mab')}\n"
    # As from a checkout on PYTHONPATH.
    monkeypatch.setattr("hpo_mab._machine.version_of", lambda name: None)
    assert cli.out("--version") == "hpo-mab not installed\n"


def test_completion_and_help_for_every_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = cli.out("--show-completion", "bash")
    assert "complete -o default -F _hpo_mab_completion hpo-mab" in script
    _, listed, _ = cli("--help")
    commands = typer.main.get_command(app).commands
    assert len(commands) >= 7
    for command in commands:
        assert f" {command} " in listed
        out = cli.out(command, "--help")
        assert "Example" in out
        assert f"hpo-mab {command}" in out.split("Example")[1]


def test_evidence_of_stored_studies_and_of_their_record_prunes_another(
    cli: Cli, tiny: str, stored: Path
) -> None:
    at = ("--storage", "pairs.db")
    out = cli.out("evidence", "tiny-*", *at)
    assert out.startswith("4 pairs: tiny, 1 seed, mab/uniform.")
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["33.3%", "66.7%", "100%"]
    assert out.splitlines()[-1] == (
        "Next: hpo-mab run with --pruner advantage --set pruner.evidence=evidence.json"
    )
    first = Evidence.load("evidence.json")
    assert (first.pairs, first.data, first.model) == (4, "digits", "mlp")

    out = cli.out("evidence", "pairs.json", "-o", "again.json", "--json")
    assert json.loads(out) == json.loads((stored / "again.json").read_text())
    for command in ("evidence", "report"):
        status, _, err = cli(command, "pairs.json", "-o", "pairs.json")
        assert (status, "pairs.json is the record that is read" in err) == (2, True)
    for given in (
        ("report", "pairs.json", "-o", "out", "--record", "out"),
        ("compare", "digits", "--report", "out", "--record", "./out"),
        ("examples", "any", "--html", "out", "--csv", "out"),
    ):
        assert "out is given for two outputs" in cli.refusal(*given)
    # Records are rounded to six digits.
    again = Evidence.load("again.json")
    assert [one.value for one in again.advantage] == pytest.approx(
        [one.value for one in first.advantage], abs=1e-5
    )

    later = ("--pruner", "advantage", "--set", "pruner.evidence=evidence.json", "--seed", "1")
    assert cli("run", tiny, *later, "--quiet", "--storage", "later.db")[0] == 0
    storage = Storage("sqlite:///later.db")
    kept = storage.optuna.get_study_user_attrs(storage.optuna.get_all_studies()[0]._study_id)
    assert kept["hpo_mab:evidence"] == first.to_json()

    assert "mab, uniform" in cli.refusal(
        "evidence", "tiny-*", *at, "--arm", "bandit", "-o", "none.json"
    )
    assert "arm 'uniform'" in cli.refusal("evidence", "tiny-mab-seed0", *at, "-o", "none.json")
    assert not (stored / "none.json").exists()


def test_evidence_that_was_moved_breaks_no_study_that_has_a_copy(
    cli: Cli, tiny: str, stored: Path
) -> None:
    assert cli("evidence", "pairs.json")[0] == 0
    given = ("--pruner", "advantage", "--set", "pruner.evidence=evidence.json", "--seed", "1")
    at = ("--storage", "later.db", "--quiet")
    assert cli("run", tiny, *given, *at)[0] == 0
    Path("evidence.json").rename("moved.json")
    name = "tiny-mab-seed1"

    for command in (
        ("replay", name, "0", "--storage", "later.db"),
        ("worker", "--study", name, *at),
        ("report", name, *at),
        # From where it was, and from where it is.
        ("run", tiny, *given, *at, "--trials", "5"),
        ("run", tiny, *given, *at, "--trials", "6", "--set", "pruner.evidence=moved.json"),
    ):
        status, _, err = cli(*command)
        assert (status, err) == (0, ""), command
    (stored / "other.json").write_text((stored / "moved.json").read_text().replace("pairs", "p"))
    status, _, err = cli("run", tiny, *given, *at, "--set", "pruner.evidence=other.json")
    assert (status, "pruner.evidence" in err) == (2, True)
    # One without a copy needs the file, before anything is run.
    assert "evidence.json" in cli.refusal("run", tiny, *given, "--storage", "new.db", "--quiet")
    arms = (
        "--set",
        "compare.arms.late={ pruner = { kind = 'advantage', evidence = 'none.json' } }",
    )
    arms += ("--set", "compare.arms.uniform={ sampler = { kind = 'uniform' } }")
    assert "none.json" in cli.refusal("compare", tiny, *arms, "--storage", "new.db", "--quiet")
    storage = Storage("sqlite:///new.db")
    assert storage.optuna.get_all_studies() == []
    storage.close()


def test_studies_that_are_not_ours_keep_their_unit(tmp_path, cli):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    storage = optuna.storages.RDBStorage(url)
    for name, value in (("loss", 12.5), ("diverged", math.inf)):
        study = optuna.create_study(study_name=name, storage=storage)
        study.add_trial(optuna.create_trial(value=value))
    optuna.create_study(
        study_name="two", storage=storage, directions=["minimize", "maximize"]
    ).add_trial(optuna.create_trial(values=[1.0, 2.0]))
    _, out, _ = cli("studies", "--storage", url)
    assert "12.5 " in out
    assert "%" not in out
    _, out, _ = cli("studies", "--storage", url, "--json")
    rows = json.loads(out, parse_constant=pytest.fail)
    assert {row["study"]: row["best"] for row in rows} == {
        "loss": 12.5,
        "diverged": None,
        "two": None,
    }


def test_the_best_trials_network_is_saved_and_loaded(cli: Cli, tiny: str, tmp_path: Path) -> None:
    assert cli("run", tiny, "--trials", "3", "--quiet")[0] == 0
    name = "tiny-mab-seed0"
    out = cli.out("replay", name, "best", "--save", "best.pt", "--json")
    saved = torch.load("best.pt", weights_only=True)
    assert (saved["study"], saved["trial"]) == (name, json.loads(out)["trial"])
    storage = Storage(f"sqlite:///{tmp_path / 'hpo_mab.db'}")
    best = read_run(storage, name).best
    storage.close()
    assert best is not None
    assert (saved["trial"], saved["accuracy"]) == (best.number, best.value)
    splits = load_splits(load_spec(tiny))
    assert saved["classes"] == list(splits.train.classes)
    inputs = Normalization(saved["mean"], saved["std"])(splits.validation.images)
    with torch.no_grad():
        hits = load_network("best.pt")(inputs).argmax(1) == splits.validation.labels
    assert hits.float().mean().item() == pytest.approx(best.value)


_PARTS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def load():
    labels, generator = torch.arange(300) % 3, torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 5, generator=generator) + labels[:, None]
    return {"train": TensorDataset(inputs, labels)}

class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes, *, width: int):
        super().__init__(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))
"""


def test_an_own_network_is_saved_with_its_options(
    cli: Cli, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saved_parts.py").write_text(_PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["data.name=saved_parts:load", "model.name=saved_parts:Net"]
    own.append("model.width={ low = 3, high = 9 }")
    options = [part for each in own for part in ("--set", each)]
    assert cli("run", tiny, "--trials", "2", "--quiet", *options)[0] == 0
    name = "tiny-saved_parts:load-mab-seed0"
    assert cli("replay", name, "best", "--save", "best.pt")[0] == 0
    saved = torch.load("best.pt", weights_only=True)
    assert 3 <= saved["options"]["width"] <= 9
    assert "mean" not in saved
    network = load_network("best.pt")
    assert network[0].out_features == saved["options"]["width"]
    assert network(torch.zeros(1, 5)).shape == (1, 3)


def test_a_replay_that_diverges_saves_no_network(
    cli: Cli, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def diverge(self: Training) -> Evaluation:
        raise TrainingDiverged(3, "the loss is nan")

    monkeypatch.setattr(Training, "__next__", diverge)
    err = cli.refusal("replay", study, "best", "--save", "best.pt")
    assert "The replay has diverged, so there is no network to save." in err
    assert not (tmp_path / "best.pt").exists()


def test_what_cannot_be_saved_or_loaded_is_refused(
    cli: Cli, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = cli.refusal("replay", study, "0", "--save", "no/such/folder/best.pt")
    assert "is not a writable folder" in err
    Path("kept.pt").write_text("mine")
    with monkeypatch.context() as patch:
        # As for a read-only file; root may write every file.
        patch.setattr(
            os, "access", lambda path, mode: mode != os.W_OK or Path(path).name != "kept.pt"
        )
        err = cli.refusal("replay", study, "0", "--save", "kept.pt")
    assert "kept.pt is read-only; give another file." in err
    assert Path("kept.pt").read_text() == "mine"
    with pytest.raises(ArgumentError, match="no file of 'hpo-mab replay --save'"):
        load_network("kept.pt")
    with pytest.raises(FileNotFoundError):
        load_network("missing.pt")
    assert cli("replay", study, "0", "--save", "kept.pt")[0] == 0
    saved = torch.load("kept.pt", weights_only=True)
    torch.save({**saved, "options": {"gone": 1}}, "changed.pt")
    with pytest.raises(ArgumentError, match=r"Network 'mlp' here differs from the one in"):
        load_network("changed.pt")
    err = cli.refusal("replay", study, "first")
    assert "must be a trial's number or 'best', got 'first'" in err
    torch.save({"weights": {}}, "other.pt")
    with pytest.raises(ArgumentError, match="no file of 'hpo-mab replay --save'"):
        load_network("other.pt")


def test_more_tables_are_offered_without_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [made_up.study(arm, 0, trials=2, paired=0, pruned=0) for arm in ("mab", "uniform")]
    print_result(summarise(runs))
    assert "--verbose shows differences, cost" in capsys.readouterr().out


def test_a_database_is_not_overwritten(cli: Cli, study: str) -> None:
    err = cli.refusal("replay", study, "0", "--save", "hpo_mab.db")
    assert "hpo_mab.db is a database; give another file." in err


def test_a_write_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "good.pt"
    path.write_text("mine")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ArgumentError, match=r"good.pt cannot be written: No space left on"):
            write_file(path, "new")
    assert path.read_text() == "mine"
    with pytest.raises(ArgumentError, match=r"Not a directory. Give a file in an existing folder."):
        write_file(path / "below.pt", "new")
    write_file(path, "new")
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["good.pt"]


def test_a_file_that_is_replaced_keeps_its_rights(tmp_path: Path) -> None:
    path, other = tmp_path / "report.html", tmp_path / "other"
    path.write_text("mine")
    path.chmod(0o600)
    # What another user of the folder could prepare.
    (tmp_path / ".report.html.part").symlink_to(other)
    write_file(path, "new")
    assert (path.read_text(), other.exists()) == ("new", False)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_that_is_not_valid_unicode_is_written_with_its_code(tmp_path: Path) -> None:
    write_file(tmp_path / "report.md", "photos \udcff")
    assert (tmp_path / "report.md").read_text() == r"photos \udcff"


def test_a_trial_shows_why_it_was_pruned(cli: Cli, tiny: str) -> None:
    given = ("--trials", "6", "--pruner", "top_k", "--set", "pruner.k=1", "--quiet")
    assert cli("run", tiny, *given)[0] == 0
    status, out, err = cli("studies", "tiny-mab-seed0", "--trial", "2")
    assert status == 0, err
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["Trial"].startswith("2 of tiny-mab-seed0, pruned")
    assert lines["Parameters"].startswith("lr = ")
    assert lines["Evaluations"].startswith("1: ")
    value = lines["Evaluations"].removeprefix("1: ")
    assert lines["Why"] == (
        f"trials stop at evaluation 1, where this one had {value}; the best 1 are trained in full."
    )
    facts = json.loads(cli("studies", "tiny-mab-seed0", "--trial", "2", "--json")[1])
    assert facts["pruned_because"]["top_k"] == 1
    assert facts["why"] == lines["Why"]
    assert "Why" not in cli("studies", "tiny-mab-seed0", "--trial", "0")[1]
    assert "9" in cli.refusal("studies", "tiny-mab-seed0", "--trial", "9")
    assert "pruned" in cli("studies", "tiny-mab-seed0")[1]
    assert cli("studies", "--trial", "0")[0] == 2


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"hpo_mab:interrupted": True}, "it was interrupted."),
        ({"hpo_mab:lost": True}, "its worker was lost."),
        ({"hpo_mab:lost": True, "hpo_mab:reason": "no space"}, "no space"),
        ({}, None),
    ],
)
def test_a_trial_shows_why_it_failed(cli: Cli, attrs: dict[str, Any], why: str | None) -> None:
    storage = Storage("hpo_mab.db")
    study = optuna.create_study(study_name="own", storage=storage.optuna)
    failed = optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attrs)
    study.add_trial(failed)
    storage.close()
    assert json.loads(cli("studies", "own", "--trial", "0", "--json")[1])["why"] == why


def test_a_path_with_spaces_in_the_environment_is_one_storage(
    cli: Cli, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_MAB_STORAGE", str(tmp_path / "my studies.db"))
    assert cli("run", tiny, "--trials", "1", "--quiet")[0] == 0
    status, out, _ = cli("report", "tiny-*")
    assert (status, out.splitlines()[-1]) == (0, "1 study in report.html")
