"""The diffs of the page on extensions apply to the package, and what they add runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PAGE = (ROOT / "docs/how-to/extend.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = {
    title: _BLOCK.findall(text)
    for title, text in (part.split("\n", 1) for part in re.split(r"^## ", _PAGE, flags=re.M)[1:])
}

#: Runs the sections' commands and programs in one process, because each start takes seconds.
_RUN = """
import contextlib, io, json, sys
from hpo_mab.cli._main import app

printed = {}
for title, blocks in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for kind, text in blocks:
            if kind == "bash":
                for line in text.splitlines():
                    app(line.removeprefix("hpo-mab ").split(), standalone_mode=False)
            if kind == "py":
                exec(text, {})
    printed[title] = output.getvalue()
print(json.dumps(printed))
"""


def _run(*arguments: str, given: str, folder: Path) -> str:
    done = subprocess.run(
        arguments, cwd=folder, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(name="printed", scope="module")
def _printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the commands of each section print in a copy of the package with all diffs."""
    folder = tmp_path_factory.mktemp("extended")
    # With what is compiled; not what another process compiles just now.
    ignored = shutil.ignore_patterns("*.pyc.*")
    shutil.copytree(ROOT / "hpo_mab", folder / "hpo_mab", ignore=ignored)
    shutil.copytree(ROOT / "studies/digits", folder / "studies/digits")
    for blocks in SECTIONS.values():
        _run("git", "apply", "-", given=dict(blocks)["diff"], folder=folder)
    found = _run(sys.executable, "-c", _RUN, given=json.dumps(SECTIONS), folder=folder)
    printed: dict[str, str] = json.loads(found)
    return printed


@pytest.mark.parametrize("title", SECTIONS)
def test_an_extension_is_one_file_and_runs(title: str, printed: dict[str, str]) -> None:
    blocks = dict(SECTIONS[title])
    changed = [line for line in blocks["diff"].splitlines() if line.startswith("+++ ")]
    # The figure's field; its column in existing databases; and the sampler that reports it.
    assert len(changed) == (3 if title == "A stored statistic" else 1)
    commands = blocks["bash"].splitlines()
    assert printed[title].count("validation accuracy") >= len(commands) > 0
