"""A user's own modules, named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampler", "nowhere:X"], "sampler 'nowhere:X' cannot be imported"),
        (
            ["--pruner", "broken:P"],
            "cannot be imported: SystemExit: usage: broken (broken.py, line 2).",
        ),
        (["--set", "model.name=nowhere:Net"], "model 'nowhere:Net' cannot be imported"),
        (["--data", "nowhere:load"], "data set 'nowhere:load' cannot be imported"),
    ],
)
def test_a_failed_import_is_one_line_before_anything_is_done(
    cli: Callable[..., Any], tiny: str, tmp_path: Path, arguments: list[str], words: str
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("\nraise SystemExit('usage: broken')")
    before = set(tmp_path.iterdir())
    for command in ("run", "compare"):
        result = cli(command, tiny, *arguments)
        assert result.status == 2
        assert words.format(broken) in result.err
        assert len(result.err.splitlines()) == 1
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before
