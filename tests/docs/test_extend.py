"""The diffs of the page on extensions apply to the package, and what they add runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PAGE = (ROOT / "docs/how-to/extend.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = dict(section.split("\n", 1) for section in re.split(r"^## ", _PAGE, flags=re.M)[1:])


@pytest.mark.parametrize("title", SECTIONS)
def test_an_extension_is_one_file_and_runs(title: str, tmp_path: Path) -> None:
    blocks = _BLOCK.findall(SECTIONS[title])
    (diff,) = [text for kind, text in blocks if kind == "diff"]
    changed = [line for line in diff.splitlines() if line.startswith("+++ ")]
    # The figure's field; its column in existing databases; and the sampler that reports it.
    assert len(changed) == (3 if title == "A stored figure" else 1)
    # With what is compiled; not what another process compiles just now.
    ignored = shutil.ignore_patterns("*.pyc.*")
    shutil.copytree(ROOT / "hpo_mab", tmp_path / "hpo_mab", ignore=ignored)
    shutil.copytree(ROOT / "studies/digits", tmp_path / "studies/digits")

    def run(*arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            arguments, cwd=tmp_path, input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("git", "apply", "-", given=diff)
    for kind, text in blocks:
        for line in text.splitlines() if kind == "bash" else []:
            command = line.removeprefix("hpo-mab ").split()
            assert "validation accuracy" in run(sys.executable, "-m", "hpo_mab", *command)
        if kind == "py":
            run(sys.executable, "-c", text)
