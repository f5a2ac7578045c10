from __future__ import annotations

import shlex
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


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Runs ``hpo-mab`` in an empty folder; returns exit status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["hpo-mab", *arguments])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        monkeypatch.setattr(sys, "path", [*sys.path])
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            signal.signal(signal.SIGINT, handler)
        out, err = capsys.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return run


def next_commands(out: str) -> list[list[str]]:
    """Arguments of each ``hpo-mab`` command that an output ends with."""
    lines = out.partition("\nNext:\n")[2].splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each[:1] == ["hpo-mab"]]


@pytest.fixture(name="next_commands")
def _next_commands() -> Callable[[str], list[list[str]]]:
    return next_commands


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
