from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo_mab.advantage import Evidence
from hpo_mab.storage import Storage

Cli = Callable[..., "tuple[int, str, str]"]


def test_evidence_of_stored_studies_and_of_their_record_prunes_another(
    cli: Cli, tiny: str, tmp_path: Path
) -> None:
    pairs = ("--set", "search.initial=4", "--set", "compare.retrain=0")
    assert cli("compare", tiny, *pairs, "--quiet", "--record", "record.json")[0] == 0

    status, out, _ = cli("evidence", "tiny-*")
    assert status == 0
    assert out.startswith("4 pairs: tiny, 1 seed, mab/uniform.")
    assert out.splitlines()[-1] == (
        'Next: pruner = { kind = "advantage", evidence = "evidence.json" }'
    )
    stored = Evidence.load("evidence.json")
    assert (stored.pairs, stored.data, stored.model) == (4, "digits", "mlp")

    status, out, _ = cli("evidence", "record.json", "-o", "again.json", "--json")
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "again.json").read_text())
    # Records are rounded to six digits.
    again = Evidence.load("again.json")
    assert [one.value for one in again.advantage] == pytest.approx(
        [one.value for one in stored.advantage], abs=1e-5
    )

    later = ("--pruner", "advantage", "--set", "pruner.evidence=evidence.json", "--seed", "1")
    assert cli("run", tiny, *later, "--quiet", "--storage", "later.db")[0] == 0
    storage = Storage("sqlite:///later.db")
    kept = storage.optuna.get_study_user_attrs(storage.optuna.get_all_studies()[0]._study_id)
    assert kept["hpo_mab:evidence"] == stored.to_json()

    status, _, err = cli("evidence", "tiny-*", "--arm", "bandit", "-o", "none.json")
    assert (status, "mab, uniform" in err) == (2, True)
    status, _, err = cli("evidence", "tiny-mab-seed0", "-o", "none.json")
    assert (status, "arm 'uniform'" in err) == (2, True)
    assert not (tmp_path / "none.json").exists()


def test_evidence_that_was_moved_breaks_no_study_that_has_a_copy(
    cli: Cli, tiny: str, tmp_path: Path
) -> None:
    pairs = ("--set", "search.initial=4", "--set", "compare.retrain=0")
    assert cli("compare", tiny, *pairs, "--quiet", "--record", "record.json")[0] == 0
    assert cli("evidence", "record.json")[0] == 0
    given = ("--pruner", "advantage", "--set", "pruner.evidence=evidence.json", "--seed", "1")
    at = ("--storage", "later.db", "--quiet")
    assert cli("run", tiny, *given, *at)[0] == 0
    Path("evidence.json").rename("moved.json")
    name = "tiny-mab-seed1"

    for command in (
        ("replay", name, "0", "--storage", "later.db"),
        ("worker", "--study", name, *at),
        ("report", name, *at),
        # From where it was, and from where it is.
        ("run", tiny, *given, *at, "--trials", "5"),
        ("run", tiny, *given, *at, "--trials", "6", "--set", "pruner.evidence=moved.json"),
    ):
        status, _, err = cli(*command)
        assert (status, err) == (0, ""), command
    (tmp_path / "other.json").write_text(
        (tmp_path / "moved.json").read_text().replace("pairs", "p")
    )
    status, _, err = cli("run", tiny, *given, *at, "--set", "pruner.evidence=other.json")
    assert (status, "pruner.evidence" in err) == (2, True)
    # One without a copy needs the file, before anything is run.
    status, _, err = cli("run", tiny, *given, "--storage", "new.db", "--quiet")
    assert (status, "evidence.json" in err) == (2, True)
    arms = (
        "--set",
        "compare.arms.late={ pruner = { kind = 'advantage', evidence = 'none.json' } }",
    )
    arms += ("--set", "compare.arms.uniform={ sampler = { kind = 'uniform' } }")
    status, _, err = cli("compare", tiny, *arms, "--storage", "new.db", "--quiet")
    assert (status, "none.json" in err) == (2, True)
    storage = Storage("sqlite:///new.db")
    assert storage.optuna.get_all_studies() == []
    storage.close()
