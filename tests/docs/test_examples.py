"""The README's and the documentation's examples run, and their commands exist."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import typer
from tools import refreshed

from hpo_mab.cli._main import app
from hpo_mab.compare import (
    answers,
    comparison_record,
    read_record,
    stored_comparison,
    summarise,
)
from hpo_mab.storage import Storage

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "studies/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Every ``hpo-mab`` command line in the page, as arguments."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    split = [part for line in words for part in _parts(line)]
    return [part[1:] for part in split if part[:1] == ["hpo-mab"]]


def _parts(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", "|", "&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _examples(language: str) -> list[Any]:
    """Examples without a test of their own."""
    own = (blocks(PAGES[0], language), blocks(ROOT / "docs/how-to/from-optuna.md", language))
    return [
        pytest.param(page, block, id=f"{_name(page)}-{position}")
        for page in PAGES
        for position, block in enumerate(blocks(page, language), start=1)
        if block not in itertools.chain(*own, [_reporters_example()])
    ]


def _reporters_example() -> str:
    found = blocks(ROOT / "docs/how-to/own-loop.md", "python")
    return next(block for block in found if "TrialReporter" in block)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(page: Path, block: str) -> None:
    """Run an example alone, as a reader does who copies it."""
    exec(compile(block, _name(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize(("page", "block"), _examples("python"))
def test_python_examples_run_alone(page: Path, block: str) -> None:
    run(page, block)


@pytest.mark.parametrize("position", range(len(blocks(ROOT / "README.md", "python"))))
def test_each_example_of_the_readme_runs_alone_and_prints(position: int, capsys: Any) -> None:
    block = blocks(ROOT / "README.md", "python")[position]
    exec(compile(block, f"README.md, example {position + 1}", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


def test_the_samplers_example_passes_the_contract_that_it_names(tmp_path: Path) -> None:
    page = ROOT / "docs/how-to/own-sampler.md"
    (sampler,), (tests,) = blocks(page, "python"), blocks(page, "py")
    (tmp_path / "hard_half.py").write_text(sampler)
    (tmp_path / "test_hard_half.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hard_half.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)


def test_the_reporters_example_stores_curves() -> None:
    run(ROOT / "docs/how-to/own-loop.md", _reporters_example())
    curves = stored_curves("own")
    # The learning rate is constant.
    assert [[point.averaged for point in curve] for curve in curves] == [[True] * 4] * 2


def test_moving_in_from_optuna_is_the_diff_that_the_page_shows() -> None:
    page = ROOT / "docs/how-to/from-optuna.md"
    for script in before_and_after(page, "python"):
        run(page, script)
    for study in ("own-uniform", "own-mab"):
        curves = stored_curves(study)
        assert all(point.averaged for curve in curves for point in curve)
        # Pairs that a pruner stopped would be a biased selection.
        assert [len(curve) for curve in curves[:10]] == [4] * 10
    assert_compared("own-uniform", "own-mab", pairs=10)


def before_and_after(page: Path, language: str) -> list[str]:
    """The script of a page, and what it was before the page's diff."""
    (script,) = blocks(page, language)
    (diff,) = blocks(page, "diff")
    after = script.splitlines()
    before: list[str] = []
    copied = 0
    for head, *lines in _hunks(diff):
        first, count = map(int, re.search(r"\+(\d+)(?:,(\d+))?", head).groups(default="1"))
        before += after[copied : first - 1]
        copied = first - 1 + count
        assert [line[1:] for line in lines if line[:1] != "-"] == after[first - 1 : copied]
        place = re.search(r"-(\d+)(?:,(\d+))?", head).groups(default="1")
        kept = [line[1:] for line in lines if line[:1] != "+"]
        assert [len(before) + 1, len(kept)] == [*map(int, place)]
        before += kept
    return ["\n".join([*before, *after[copied:], ""]), script]


def _hunks(diff: str) -> list[list[str]]:
    """Parts of a diff, each with its head."""
    parts: list[list[str]] = []
    for line in diff.splitlines():
        if line.startswith("@@"):
            parts.append([])
        parts[-1].append(line)
    return parts


def assert_compared(*studies: str, pairs: int) -> None:
    """The report and the dashboard have the studies of a page, uniform sampling and the bandit."""
    found = stored_comparison(["own-*"], storages=["studies.db"])
    (contrast,) = found.summarise().contrasts
    assert (contrast.arm, contrast.reference) == ("mab", "uniform")
    assert contrast.pairs >= pairs
    assert json.loads(comparison_record(found, summarise(found.runs)))["studies"]
    storage = Storage("studies.db")
    assert refreshed(storage) == ([*studies], "")
    storage.close()


@pytest.mark.filterwarnings("ignore")  # Lightning's.
def test_moving_in_from_lightning_is_the_diff_that_the_page_shows() -> None:
    pytest.importorskip("lightning", reason="needs Lightning (extra 'lightning')")
    page = ROOT / "docs/how-to/from-lightning.md"
    for script in before_and_after(page, "py"):
        run(page, script)
    curves = stored_curves("own-mab")
    assert [len(curve) for curve in curves] == [4] * 6
    # The learning rate is constant.
    assert all(point.averaged for curve in curves for point in curve)
    assert_compared("own-uniform", "own-mab", pairs=6)


@pytest.mark.usefixtures("stand_in_ray")
def test_moving_in_from_ray_tune_is_the_diff_that_the_page_shows() -> None:
    page = ROOT / "docs/how-to/from-ray-tune.md"
    for script in before_and_after(page, "py"):
        run(page, script)
    curves = stored_curves("own-mab")
    # Every third function is stopped at its second report, all others at their last.
    assert [len(curve) for curve in curves] == [2, 4, 4] * 4
    for curve in curves:
        assert all(point.averaged for point in curve)
    assert_compared("own-uniform", "own-mab", pairs=12)


@pytest.mark.ray
@pytest.mark.timeout(1200)  # Ray starts a process for each trial.
@pytest.mark.filterwarnings("ignore")  # Ray's.
def test_moving_in_from_ray_tune_runs_under_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray (extra 'ray')")
    pytest.importorskip(
        "ray.tune", reason="needs Ray Tune (pip install 'ray[tune]')", exc_type=ImportError
    )
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    page = ROOT / "docs/how-to/from-ray-tune.md"
    try:
        for script in before_and_after(page, "py"):
            run(page, script)
    finally:
        ray.shutdown()
    assert len(stored_curves("own-mab")) == 12
    assert_compared("own-uniform", "own-mab", pairs=6)


def stored_curves(study: str) -> list[Any]:
    storage = Storage("studies.db")
    trials = optuna.load_study(study_name=study, storage=storage.optuna).trials
    curves = [storage.curves.load([trial._trial_id])[trial._trial_id] for trial in trials]
    storage.close()
    return curves


@pytest.mark.filterwarnings("ignore")  # Accelerate's.
def test_the_accelerate_example_runs() -> None:
    pytest.importorskip("accelerate", reason="needs Accelerate")
    page = ROOT / "docs/how-to/own-loop.md"
    for block in blocks(page, "py"):
        run(page, block)


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=_name)
def test_commands_exist_with_their_options(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for arguments in commands(page):
        if arguments[0].startswith("-"):
            options = {name for parameter in group.params for name in parameter.opts}
            assert arguments[0] in options, arguments
            continue
        command = group.commands.get(arguments[0])
        assert command is not None, f"no such command: {shlex.join(arguments)}"
        command.make_context(arguments[0], arguments[1:])  # Raises on an unknown option.


def test_the_readme_shows_the_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install . && hpo-mab run" in readme
    assert 'pip install -e ".[test]" && pytest' in readme
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert any(line.split()[:1] == ["pytest"] for line in ci.splitlines())


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md"], ids=_name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    for target in [*links, *re.findall(r'<img src="([^"]+)"', text)]:
        if "://" not in target:
            assert (page.parent / target).exists(), f"{_name(page)} links to {target}"


def test_the_readmes_figures_are_those_of_the_records() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = {
        ("fashion_mnist/pruning.json", "mab_advantage", "learns"),
        ("fashion_mnist/pruning.json", "mab_advantage", "hyperparameters"),
        ("paper/small-cifar10.json", "mab_paper", "learns"),
        ("paper/small-cifar100.json", "mab", "learns"),
    }
    for path, arm, question in said:
        summary = read_record(ROOT / "studies" / path).summarise()
        (contrast,) = [one for one in summary.contrasts if one.arm == arm]
        line = next(str(one) for one in answers(contrast) if one.question == question)
        value, low, high = re.search(r"\((\S+) points, 95% interval (\S+) to (\S+),", line).groups()
        assert f"{value} points" in readme, line
        assert f"{low} to {high}" in readme, line


def test_the_readmes_figures_of_rungs_are_those_of_the_tables() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    _, _, said = readme.partition("## Earlier rungs on averaged weights")
    sets = json.loads((ROOT / "studies/rungs/tables.json").read_text(encoding="utf-8"))["sets"]

    def tau(name: str, kind: str) -> dict[str, float]:
        """Of uniform sampling, linear schedule and default window, at a quarter of the budget."""
        arm = {"sampler": "uniform", "schedule": "linear", "average": 0.2, "kind": kind}
        (row,) = [row for row in sets[name]["ranking"] if arm.items() <= row.items()]
        return {"single": row["kendall of one seed"][1], "mean": row["kendall"][1][0]}

    words = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "digits": "digits"}
    names = tuple(words)
    for kind in ("averaged", "raw"):
        one, two, three = (f"{tau(name, kind)['single']:.2f}" for name in names)
        assert f"{one}, {two} and {three}" in said, kind
    long = ("cifar10_8epochs", "cifar10_30epochs")
    one, two = (f"{tau(name, 'averaged')['mean']:.2f}" for name in long)
    assert f"tau is {one} and {two}" in said

    def ratio(name: str, pruner: str) -> list[float]:
        """Cost of a pruner on averaged weights, as a share of the baseline's."""
        arm = {"sampler": "uniform", "kind": "averaged", "pruner": pruner}
        (row,) = [row for row in sets[name]["replay"] if arm.items() <= row.items()]
        return row["ratio"]

    one, two, three = (f"{ratio(name, 'halving 2/2')[0]:.2f}" for name in names)
    costs = f"{one} times as much on Fashion-MNIST, {two} times on CIFAR-10 and {three} times"
    assert f"It costs {costs} on digits." in said


def test_what_the_page_of_checks_names_is_tested() -> None:
    page = (ROOT / "docs/reference/checked-against.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|hpo_mab)/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 15
    for path, test in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, (path, test)


def test_nothing_is_installed_from_an_index_that_does_not_have_it() -> None:
    sources = [*PAGES, ROOT / "pyproject.toml", *(ROOT / "hpo_mab").rglob("*.py")]
    for path in sources:
        found = re.search(r"pip install (?:-\S+ )*['\"]?hpo[_-]mab", path.read_text("utf-8"))
        assert found is None, (path, found)
