from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(name="stored")
def _stored(cli: Cli, tiny: str, tmp_path: Path) -> Path:
    """Two databases with one arm each; a record of both arms together in a third."""
    assert cli("compare", tiny, "--quiet", "--record", "record.json")[0] == 0
    assert cli("run", tiny, "--quiet", "--storage", "one.db")[0] == 0
    assert cli("run", tiny, "--quiet", "--storage", "two.db", "--sampler", "uniform")[0] == 0
    return tmp_path


def test_a_report_of_one_or_several_databases_or_a_record(cli: Cli, stored: Path) -> None:
    verdict = json.loads((stored / "record.json").read_text())["verdict"][0]
    status, out, _ = cli("report", "tiny-*")
    assert (status, out) == (0, "2 studies in report.html\n")
    # The incumbents' re-trained accuracies are read from storage.
    assert verdict in (stored / "report.html").read_text()

    several = ("--storage", "one.db", "--storage", "two.db")
    status, out, _ = cli("report", "tiny-mab-seed0", "tiny-uniform-seed0", *several, "-o", "s.html")
    assert (status, out) == (0, "2 studies in s.html\n")
    page = (stored / "s.html").read_text()
    assert "tiny-mab-seed0" in page
    assert "tiny-uniform-seed0" in page
    assert "re-trained test accuracy" not in page.split("<h2>Results</h2>")[0]

    status, out, _ = cli("report", "record.json", "-o", "r.html", "--title", "From <file>")
    assert status == 0
    page = (stored / "r.html").read_text()
    assert verdict in page
    assert "<h1>From &lt;file&gt;</h1>" in page

    status, out, _ = cli("report", "tiny-mab-seed0", "-o", "one.html")
    assert (status, out) == (0, "1 study in one.html\n")
    assert "there is nothing to compare" in (stored / "one.html").read_text()


def test_mistakes_name_the_next_step(cli: Cli, stored: Path) -> None:
    for arguments, words in (
        (("tiny-mba-seed0",), ["Unknown study 'tiny-mba-seed0'", "'tiny-mab-seed0'"]),
        (("other-*",), ["matches 'other-*'", "hpo-mab studies"]),
        (("tiny-*", "--storage", "none.db"), ["none.db", "hpo-mab run"]),
        (("tiny-mab-seed0", "--reference", "unifrm"), ["Unknown arm 'unifrm'"]),
        (("none.json",), ["none.json cannot be read"]),
        (("tiny-*", "--storage", "one.db", "--storage", "hpo_mab.db"), ["Name only one"]),
        (("tiny-*", "-o", "no/such/x.html"), ["no/such/x.html cannot be written"]),
    ):
        status, out, err = cli("report", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), arguments
        for word in words:
            assert word in err
    (stored / "other.json").write_text('{"a": 1}')
    status, _, err = cli("report", "other.json")
    assert status == 2
    assert "no record of a comparison" in err
    assert "compare --record" in err


def test_completion_and_help_for_every_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    status, script, _ = cli("--show-completion", "bash")
    assert status == 0
    assert "complete -o default -F _hpo_mab_completion hpo-mab" in script
    _, listed, _ = cli("--help")
    for command in ("run", "compare", "report", "studies", "dashboard"):
        assert f" {command} " in listed
        status, out, _ = cli(command, "--help")
        assert status == 0
        assert "Example" in out
        assert f"hpo-mab {command}" in out.split("Example")[1]
