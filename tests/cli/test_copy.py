"""``hpo-mab copy`` with its options."""

from __future__ import annotations

import json
from typing import Any

Cli = Any


def test_a_copy_has_the_name_and_the_place_that_are_given(cli: Cli, study: str) -> None:
    def names(*storage: str) -> set[str]:
        return {one["study"] for one in json.loads(cli("studies", "--json", *storage)[1])}

    assert cli("copy", study, "--name", "before")[0] == 0
    assert names() == {study, "before"}
    status, out, _ = cli("copy", "before", "--to", "other.db", "--name", "kept", "--move", "--json")
    facts = json.loads(out)
    assert (status, facts["name"], facts["moved"], facts["trials"]) == (0, "kept", True, 1)
    assert names() == {study}
    assert names("--storage", "other.db") == {"kept"}
