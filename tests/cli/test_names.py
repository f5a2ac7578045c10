from __future__ import annotations

import re
from typing import Any

import pytest

Cli = Any

#: What rich, patterns and the syntax of ``report`` give a meaning to.
NAMES = ["[bold]x[/bold] [/]", "a run 2", "[a-z]*?:smile:", "-best"]


def test_each_name_that_run_accepts_is_shown_and_accepted_by_other_commands(
    cli: Cli, tiny: str
) -> None:
    for name in NAMES:
        status, out, err = cli("run", tiny, f"--name={name}", "--trials", "1")
        assert status == 0, (name, err)
        assert re.search(rf"^{re.escape(name)}: 1/1 trials", err, re.MULTILINE), err
        assert re.search(rf"^Study +{re.escape(name)} *$", out, re.MULTILINE), out
    out = cli.out("studies")
    for name in NAMES:
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), name
        assert cli("report", "--json", "--", name)[0] == 0, name
        assert cli("replay", "--", name, "0")[0] == 0, name
        assert cli("worker", "--", name)[0] == 0, name
    assert cli("copy", "--to", "a#copy.db", "--", "a run 2")[0] == 0
    for text in ("a#copy.db#a run 2", "arm=hpo_mab.db#-best", "arm=a run 2"):
        assert cli("report", "--json", text)[0] == 0, text


@pytest.mark.parametrize("command", [("run",), ("compare", "--seeds", "1")])
@pytest.mark.parametrize(
    "name", ["a\tb", "lr=0.1", "run#2", "best.json", pytest.param("n" * 513, id="long")]
)
def test_a_name_that_a_command_cannot_hold_is_refused(
    cli: Cli, tiny: str, command: tuple[str, ...], name: str
) -> None:
    status, out, err = cli(command[0], tiny, *command[1:], "--name", name)
    assert (status, out) == (2, "")
    bound = "printable, at most 512 characters, without = and #, and not end in .json"
    assert err == f"hpo-mab: the study's name (see --name) must be {bound}, got {name!r}.\n"


def test_a_comparison_of_any_name_is_shown(cli: Cli, tiny: str) -> None:
    given = ("--trials", "2", "--set", "name=[b]a", "--set", "compare.retrain=0")
    status, out, err = cli("compare", tiny, *given)
    assert status == 0, err
    assert "[b]a-uniform-seed0: 2/2 trials" in err
    status, out, err = cli("report", "[b]a-mab-seed0", "[b]a-uniform-seed0")
    assert (status, out.splitlines()[-1]) == (0, "2 studies in report.html")


@pytest.mark.filterwarnings("always::hpo_mab.HpoMabWarning")
@pytest.mark.usefixtures("study")
def test_a_foreign_study_does_not_hide_the_others(cli: Cli) -> None:
    import optuna

    from hpo_mab.storage import Storage

    storage = Storage("sqlite:///hpo_mab.db")
    optuna.create_study(study_name="tiny-foreign", storage=storage.optuna)
    storage.close()
    status, _, err = cli("report", "tiny-*", "--quiet")
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("hpo-mab: tiny-foreign: left out, because hpo-mab run has not made them.")
