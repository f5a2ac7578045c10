"""What the command line costs before it does anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "numpy", "optuna", "plotly", "pydantic", "rich", "sklearn", "torch")


@pytest.mark.parametrize(
    "code",
    [
        "import hpo_mab",
        "import sys; sys.argv[1:] = ['--help']; from hpo_mab.cli import main; main()",
    ],
    ids=["import", "help"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    look = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    script = f"import atexit; atexit.register(lambda: exec({look!r}, {{}}))\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    if "--help" in code:
        assert "compare" in done.stdout


def test_a_mistake_in_a_definition_is_told_before_torch_is_imported() -> None:
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
