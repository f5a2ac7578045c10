"""A wrong argument causes a message of one line that names it and says what to do next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from hpo_mab.storage import Storage
from hpo_mab.storage._definition import StoredDefinition

Cli = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(name="stored", autouse=True)
def _stored(cli: Cli, tiny: str, tmp_path: Path) -> None:
    """A study not made by us, one of ours without trials, one with trials without curves."""
    storage = Storage(f"sqlite:///{tmp_path / 'hpo_mab.db'}")
    made = {
        name: optuna.create_study(
            study_name=name, storage=storage.optuna, direction="maximize", load_if_exists=True
        )
        for name in ("foreign", "empty", "bare")
    }
    for seed, name in enumerate(("empty", "bare")):
        StoredDefinition(
            arm="mab",
            seed=seed,
            trial_examples=1_000,
            epoch_examples=1_000,
            spec={"name": "tiny", "data": {"name": "digits"}},
            environment={},
        ).save(made[name])
    made["bare"].add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    storage.close()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("no database " * 500)
    (tmp_path / "broken.toml").write_text("[budget\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("report foreign", ["'foreign'", "has no definition", "hpo-mab dashboard"]),
        ("report empty", ["'empty'", "hpo-mab run"]),
        ("report empty bare", ["'empty', 'bare'", "hpo-mab run"]),
        ("report empty -o folder", ["folder is a folder", "give a file"]),
        ("compare tiny.toml --record folder", ["folder is a folder", "give a file"]),
        ("compare tiny.toml --record no/such/x.json", ["no/such/x.json cannot be written"]),
        ("compare tiny.toml --set compare.reference=x", ["reference must be 'uniform'", "'x'"]),
        ("copy empty --move --to :memory:", ["--to must be a file or a server", ":memory:"]),
        ("worker foreign", ["'foreign'", "hpo-mab dashboard"]),
        ("worker emty", ["'emty'", "'empty'"]),
        ("replay bare 0", ["Trial 0 of 'bare'", "trials that have one: none"]),
        ("run broken.toml", ["broken.toml", "line 1"]),
        (
            "run tiny.toml --pruner advantage --set pruner.evidence=none.json",
            ["none.json", "hpo-mab evidence"],
        ),
        ("run tiny.toml --workers 0", ["--workers", "at least 1", "0"]),
        ("run tiny.toml --workers many", ["--workers", "'auto'", "'many'"]),
        ("run tiny.toml --slots many", ["--slots", "'auto'", "'many'"]),
        ("run tiny.toml --workers 2 --ray auto", ["Ray needs a storage", "postgresql://"]),
        ("run tiny.toml --ray auto", ["--ray needs --workers N"]),
        ("run tiny.toml --gpus-per-worker 0.5", ["--gpus-per-worker needs --ray"]),
        ("run tiny.toml --workers 2 --storage sqlite://", ["in memory"]),
        ("evidence bare --margin 2", ["--margin must be in [0, 1], got 2"]),
        ("examples bare --top 0", ["--top must be at least 1, got 0"]),
        ("studies --trial 3", ["--trial needs the name of its study, got --trial 3"]),
        ("dashboard --storage text.db", ["text.db", "Name another file"]),
        ("dashboard --storage none.db", ["none.db", "hpo-mab run"]),
        ("dashboard --host 192.0.2.1", ["192.0.2.1", "127.0.0.1"]),
        ("dashboard --host=", ["--host must be an address of this machine", "got ''"]),
        ("run tiny.toml --epochs 1e308", ["must be above 0 and at most 1e+15, got 1e+308"]),
        (
            "compare tiny.toml --seeds 2000",
            ["compare.seeds must be less than or equal to 1000, got 2000"],
        ),
        (
            'compare tiny.toml --set compare.arms={a={},""={}}',
            ["compare.arms", "must have at least 1 character, got ''"],
        ),
        ("replay bare 0 --tolerance nan", ["--tolerance must be at least 0, got nan"]),
        ("run a\x1b.toml", [r"a\x1b.toml: no such file"]),
        ("studies \udcff", ["'\\udcff' holds characters that are not valid Unicode"]),
    ],
)
def test_one_line_names_it_and_the_next_step(cli: Cli, arguments: str, words: list[str]) -> None:
    status, out, err = cli(*arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for word in words:
        assert word in err


@pytest.mark.parametrize("option", ["--to", "--storage"])
def test_an_empty_storage_is_no_database_in_memory(cli: Cli, option: str) -> None:
    status, _, err = cli("copy", "empty", "--move", "--name", "other", option, "")
    assert (status, err.count("\n")) == (2, 1)
    assert "The storage URL is empty" in err
    assert "empty" in cli("studies", "--json")[1]


def test_a_folder_that_may_not_be_searched_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def denied(path: Path, **options: bool) -> object:
        if path.name == "closed.toml":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    status, _, err = cli("run", "closed.toml")
    assert (status, err.count("\n")) == (2, 1)
    assert "closed.toml: Permission denied" in err
