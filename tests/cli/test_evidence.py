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
