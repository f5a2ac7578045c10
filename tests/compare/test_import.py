import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["hpo_mab.advantage", "hpo_mab.compare", "hpo_mab.compare.figures"]
)
def test_import_is_light(module):
    heavy = ["matplotlib", "optuna", "pandas", "plotly", "rich", "scipy", "sklearn", "torch"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
