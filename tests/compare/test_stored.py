from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from hpo_mab._errors import ArgumentError
from hpo_mab.compare import stored_comparison
from hpo_mab.compare._stored import Selection
from hpo_mab.data import DataIdentity
from hpo_mab.storage import Definition, Storage


def _make(storage: Storage, arm: str, content: str, seed: int = 0) -> None:
    study = optuna.create_study(study_name=f"{arm}-{seed}", storage=storage.optuna)
    study.add_trial(optuna.create_trial(value=0.5))
    spec = {"data": {"name": "image_folder", "validation": 0.2}}
    numbers = {"seed": seed, "trial_examples": 100, "epoch_examples": 100}
    data = DataIdentity(classes=3, content=content)
    Definition(arm=arm, spec=spec, environment={}, data=data, **numbers).save(study)


def test_studies_of_other_files_are_not_compared(tmp_path: Path) -> None:
    url = str(tmp_path / "studies.db")
    storage = Storage(url)
    _make(storage, "mab", "one")
    _make(storage, "uniform", "one")
    # Of another seed, the parts of the same data are others.
    _make(storage, "uniform", "two", seed=1)
    assert len(stored_comparison(["*"], storages=[url]).runs) == 3
    _make(storage, "mab", "three", seed=1)
    with pytest.raises(ArgumentError, match="'uniform-1' and 'mab-1' differ in labels, files"):
        stored_comparison(["*"], storages=[url])
    storage.close()


@pytest.mark.parametrize(
    ("text", "pattern", "url", "arm"),
    [
        ("x", "x", None, None),
        ("arm=x", "x", None, "arm"),
        ("lr=0.1", "lr=0.1", None, None),
        ("arm=lr=0.1", "lr=0.1", None, "arm"),
        ("run#2", "run#2", None, None),
        ("none.db#x", "x", "none.db", None),
        ("sqlite:///a.db#run#2", "run#2", "sqlite:///a.db", None),
        ("arm=a#b.db#x", "x", "a#b.db", "arm"),
    ],
)
def test_names_come_before_syntax(
    text: str, pattern: str, url: str | None, arm: str | None
) -> None:
    found = Selection.parse(text, ["lr=0.1", "run#2"])
    assert found == Selection(pattern=pattern, url=url, arm=arm)
