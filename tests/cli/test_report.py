"""``hpo-mab report`` and ``evidence``, and the help of every command."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest
import typer

from hpo_mab.advantage import Evidence
from hpo_mab.cli._main import app
from hpo_mab.cli._output import print_result
from hpo_mab.compare import summarise
from hpo_mab.storage import Storage

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

    several = ("one.db#tiny-mab-seed0", "two.db#tiny-uniform-seed0")
    status, out, _ = cli("report", *several, "-o", "s.html")
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
        (("other-*",), ["Unknown study 'other-*'. Valid: tiny-mab-seed0"]),
        (("tiny-*", "--storage", "none.db"), ["none.db", "hpo-mab run"]),
        (("tiny-mab-seed0", "--reference", "unifrm"), ["Unknown reference 'unifrm'"]),
        (("none.json",), ["none.json cannot be read"]),
        (("record.json", "other.json"), ["A record is read alone", "other.json"]),
        (("none.db#tiny-*",), ["none.db", "hpo-mab run"]),
        (("one.db#tiny-*", "hpo_mab.db#tiny-*"), ["Name only one"]),
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
        refused = cli.refusal(command, "pairs.json", "-o", "pairs.json")
        assert "pairs.json is the record that is read" in refused
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
    assert "all of 'mab'" in cli.refusal("evidence", "tiny-mab-seed0", *at, "-o", "none.json")
    err = cli.refusal("evidence", "tiny-uniform-seed0", *at, "-o", "none.json")
    assert "There is no arm 'mab'; give --arm, one of uniform." in err
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
        ("worker", name, *at),
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


def test_more_tables_are_offered_without_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [made_up.study(arm, 0, trials=2, paired=0, pruned=0) for arm in ("mab", "uniform")]
    print_result(summarise(runs))
    assert "--verbose shows differences, cost" in capsys.readouterr().out
