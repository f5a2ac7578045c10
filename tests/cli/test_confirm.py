"""``hpo-mab confirm``."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tools import next_commands

from hpo_mab.search import _confirm as module

Cli = Any


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_best_is_trained_again_and_can_be_saved(cli: Cli, tiny: str) -> None:
    _, out, _ = cli("run", tiny, "--pruner", "none")
    (command,) = (words for words in next_commands(out) if words[0] == "confirm")
    assert command == ["confirm", "tiny-mab-seed0"]
    status, out, err = cli(*command, "--trainings", "5")
    assert status == 0
    assert re.search(
        r"validation accuracy when it is trained again, standard error \d\.\d\d points",
        one_line(out),
    )
    assert re.search(r"trained again \d+\.\d\d%(, \d+\.\d\d%){4}\n", err)
    assert re.search(
        r"configuration differ by \d\.\d\d points \(standard deviation\)", one_line(out)
    )
    (replay,) = next_commands(out)
    assert replay[0] == "replay"
    assert cli(*replay)[0] == 0
    status, out, err = cli(*command, "--json")
    facts = json.loads(out)
    best, *_ = facts["candidates"]
    assert facts["finished"]
    assert (status, err) == (0, "")
    assert str(best["trial"]) in replay
    assert len(best["repeats"]) == 5
    assert best["mean"] == pytest.approx(sum(best["repeats"]) / 5)


def test_the_output_says_what_is_not_finished(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [0.0, 0.011, 0.012]
    monkeypatch.setattr(module, "_train", lambda *_: left.pop(0))
    assert cli("run", tiny, "--pruner", "none", "--quiet")[0] == 0
    status, out, err = cli("confirm", "tiny-mab-seed0", "--max-trainings", "1")
    assert status == 0
    assert re.search(r"Not finished: trial \d may be better, with .*0 of 2 times", one_line(out))
    assert "trained again diverged" in err
    assert "standard error" not in out


def test_the_best_is_not_said_to_be_better_than_itself(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_train", lambda *_: 0.99)
    assert cli("run", tiny, "--trials", "2", "--quiet")[0] == 0
    out = one_line(cli.out("confirm", "tiny-mab-seed0", "--max-trainings", "1"))
    assert re.search(
        r"Not finished: trial \d was trained again 1 of 2 times\. The same command continues\.", out
    )


def test_the_best_of_a_replay_is_that_of_confirm(
    cli: Cli, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", tiny, "--pruner", "none", "--quiet")[0] == 0
    # The first was lucky, and the second stays the best.
    left = [0.0, 0.011, 0.99, 0.99]
    monkeypatch.setattr(module, "_train", lambda *_: left.pop(0))
    status, out, _ = cli("confirm", "tiny-mab-seed0", "--json")
    (found, *_) = (one for one in json.loads(out)["candidates"] if one["repeats"])
    assert (status, found["repeats"]) == (0, [0.99, 0.99])
    out = cli.out("replay", "tiny-mab-seed0", "best")
    assert f"rial {found['trial']}" in out
