from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hpo_mab.cli import main


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Cli:
    """Runs ``hpo-mab`` in this process; returns exit status and output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["hpo-mab", *arguments])
        self._monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        self._monkeypatch.setattr(sys, "path", [*sys.path])
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            signal.signal(signal.SIGINT, handler)
        out, err = self._capsys.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    def out(self, *arguments: str) -> str:
        """What a command prints that must succeed."""
        status, out, err = self(*arguments)
        assert status == 0, err
        return out

    def refusal(self, *arguments: str) -> str:
        """The error of a command that must be refused."""
        status, _, err = self(*arguments)
        assert status == 2, err
        return err


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``hpo-mab`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return Cli(monkeypatch, capsys)


TINY = """
name = "tiny"
[budget]
epochs = 1
evaluations = 3
trials = 4
[model]
name = "mlp"
[optimizer]
name = "sgd"
lr = { low = 0.01, high = 1.0, log = true }
[training]
batch_size = 64
[search]
initial = 2
[compare]
retrain = 1
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(TINY)
    return "tiny.toml"


@pytest.fixture
def study(cli: Cli, tiny: str) -> str:
    """Name of a stored study of one trial."""
    assert cli("run", tiny, "--trials", "1", "--quiet") == (0, "", "")
    return "tiny-mab-seed0"


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "files"


@pytest.fixture
def run_once(cli: Cli, tmp_path: Path, _made: Path) -> Callable[..., None]:
    """Runs commands in the first test of a file; the other tests get copies of their files."""

    def run(*commands: tuple[str, ...]) -> None:
        if not _made.exists():
            for command in commands:
                cli.out(*command)
            shutil.copytree(tmp_path, _made)
        shutil.copytree(_made, tmp_path, dirs_exist_ok=True)

    return run
