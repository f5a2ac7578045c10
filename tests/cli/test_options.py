"""Completions in the shell, and the list of commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from hpo_mab import samplers
from hpo_mab.cli import _options
from hpo_mab.search._pruners import PRUNERS
from hpo_mab.storage import Storage


class _Line:
    """The command line so far."""

    def __init__(self, storage: object) -> None:
        self.params = {"storage": storage}


def test_names_are_those_that_the_package_takes() -> None:
    found = _options._names("hpo_mab.samplers", "available", "auto")()
    assert found == ["auto", *samplers.available()]
    assert _options._names("hpo_mab.search._pruners", "PRUNERS")() == list(PRUNERS)


def test_studies_are_those_of_the_database_named(tmp_path: Path) -> None:
    one, none = (f"sqlite:///{tmp_path / name}.db" for name in ("one", "none"))
    storage = Storage(one)
    optuna.create_study(study_name="first", storage=storage.optuna)
    storage.close()
    assert _options.study_names(_Line(one)) == ["first"]  # type: ignore[arg-type]
    # A missing database offers no names; that is no error while a user types.
    assert _options.study_names(_Line(none)) == []  # type: ignore[arg-type]


#: The call by which a shell completes a line, with the script that was installed for it.
_DRIVEN = {
    "bash": "source ~/.bash_completions/hpo-mab.sh; COMP_WORDS=(hpo-mab run --sampler g); "
    "COMP_CWORD=3; _hpo_mab_completion hpo-mab; echo ${COMPREPLY[@]}",
    "fish": 'complete -C "hpo-mab run --sampler g"',
    # Completion needs a terminal, so the test looks at what the script would show.
    "zsh": "compdef() { :; }; _arguments() { :; }; source ~/.zfunc/_hpo-mab; words=(hpo-mab run "
    '--sampler g); _describe() { echo "${(P)4}"; }; _hpo_mab_completion; env '
    '_TYPER_COMPLETE_ARGS="hpo-mab run --sampler g" _HPO_MAB_COMPLETE=complete_zsh hpo-mab',
}


@pytest.mark.parametrize("shell", sorted(_DRIVEN))
def test_the_shell_completes_with_what_is_installed(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    home = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    home.pop("XDG_CONFIG_HOME", None)
    subprocess.run(
        ["hpo-mab", "--install-completion", shell], env=home, check=True, capture_output=True
    )
    done = subprocess.run(
        [shell, "-c", _DRIVEN[shell]], env=home, capture_output=True, text=True, check=False
    )
    assert "gradnorm" in done.stdout, done.stderr
    assert "uniform" not in done.stdout


HEAVY = ("matplotlib", "numpy", "optuna", "plotly", "pydantic", "rich", "sklearn", "torch")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; from hpo_mab.cli import main; main()"
    look = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    script = f"import atexit; atexit.register(lambda: exec({look!r}, {{}}))\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "compare" in done.stdout


def test_the_first_trial_waits_for_nothing_slow_that_it_does_not_need(tmp_path: Path) -> None:
    # The dashboard's package loads BoTorch if it is installed, scikit-learn pandas, and torch's
    # optimisers its compiler.
    code = (
        "import sys; from hpo_mab.cli import main; from hpo_mab.search import StudyRunner\n"
        "StudyRunner.run = lambda *args, **options: sys.exit(str(SLOW & sys.modules.keys()))\n"
        "SLOW = {'optuna_dashboard', 'plotly', 'sklearn', 'scipy.stats', 'pandas', 'torchvision',\n"
        "    'torch._dynamo'}\n"
        "for command in ('run', 'compare'):\n"
        "    sys.argv = ['hpo-mab', command, '--quiet']\n"
        "    try: main()\n"
        "    except SystemExit as end: print(command, end.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.splitlines() == ["run set()", "compare set()"]


def test_a_mistake_in_a_definition_is_reported_before_torch_is_imported() -> None:
    code = (
        "import sys; from hpo_mab.cli import main\n"
        "sys.argv = ['hpo-mab', 'run', '--set', 'training.nosuch=1']\n"
        "try: main()\n"
        "finally: print('pydantic' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240
    )
    assert "Unknown key in [training] 'nosuch'" in done.stderr
    assert done.stdout.strip() == "True False"


def test_the_list_of_commands_is_whole_at_80_columns(
    cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = cli("--help")
    assert status == 0
    assert "package.module:Name" in out
    commands = out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) >= 10
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)
