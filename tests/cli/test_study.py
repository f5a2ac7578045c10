"""``hpo-mab replay`` and ``hpo-mab copy`` with their options."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

Cli = Callable[..., "tuple[int, str, str]"]


def test_a_difference_within_the_tolerance_is_none(cli: Cli, study: str) -> None:
    assert cli("replay", study, "0")[0] == 0
    with sqlite3.connect("hpo_mab.db") as connection:
        connection.execute("UPDATE hpo_mab_curves SET accuracy = accuracy + 0.005")
    connection.close()
    assert cli("replay", study, "0")[0] == 1
    assert cli("replay", study, "0", "--tolerance", "0.01")[0] == 0


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


def test_a_worker_takes_signals_before_it_watches_its_input(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[Any] = []
    watch = "hpo_mab.cli._study.interrupt_at_eof"
    monkeypatch.setattr(watch, lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
    cli.refusal("worker", "--study", "none", "--until-eof")
    assert handlers == [signal.default_int_handler]


def test_ctrl_c_in_a_replay_is_one_line(
    cli: Cli, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpo_mab.search.replay", interrupt)
    result = cli("replay", study, "0")
    assert (result.status, result.err.splitlines()[-1]) == (130, "hpo-mab: interrupted.")
