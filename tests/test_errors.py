"""Errors for users."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpo_mab
from hpo_mab._errors import (
    ArgumentError,
    DataError,
    SpecError,
    StorageError,
    UnknownNameError,
    failure_reason,
    hide_passwords,
    place_of,
    plain,
)
from hpo_mab.samplers import FeedbackError
from hpo_mab.search import StudyFailedError
from hpo_mab.training import TrainingDiverged


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError,
        DataError,
        FeedbackError,
        SpecError,
        StorageError,
        StudyFailedError,
        TrainingDiverged,
        UnknownNameError,
    ],
)
def test_one_public_name_catches_every_error_of_the_package(error: type[Exception]) -> None:
    assert issubclass(error, hpo_mab.HpoMabError)


def test_an_unknown_name_can_be_sent_to_another_process() -> None:
    error = UnknownNameError("sampler", "mba", ["mab"])
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is UnknownNameError
    assert str(copied) == str(error)


def test_the_place_of_an_error_is_in_a_users_own_file(tmp_path: Path) -> None:
    def place(*folders: str) -> str:
        file = tmp_path.joinpath(*folders, "net.py")
        code = compile("def forward():\n    raise KeyError\n", file, "exec")
        names: dict[str, Any] = {}
        exec(code, names)
        with pytest.raises(KeyError) as raised:
            names["forward"]()
        return place_of(raised.value)

    assert place("alice", "project") == " (net.py, line 2)"
    here = f" ({Path(__file__).name}, line"
    # Of an installed package: the line of the file that called it.
    assert place("lib", "python3", "dist-packages", "torch").startswith(here)
    assert place("site-packages", "torch").startswith(here)


def test_numpys_numbers_are_replaced_in_lists_of_a_definition() -> None:
    found = plain({"choices": [[np.float64(1.0), 1.0], [np.int64(1), (np.bool_(True),)]]})
    assert repr(found) == "{'choices': [[1.0, 1.0], [1, (True,)]]}"


def test_an_unknown_name_is_shown_in_one_line() -> None:
    error = UnknownNameError("model", "a\x1eb\nc", ["mlp"])
    assert str(error) == r"Unknown model 'a\x1eb\nc'. Valid: mlp."
    error = UnknownNameError("precision", torch.bfloat16, ["bfloat16"])
    assert str(error) == "Unknown precision 'torch.bfloat16'. Did you mean 'bfloat16'?"


def test_a_reason_that_is_stored_has_no_password() -> None:
    error = OSError("no s3://key:hunter2@a, no https://b?token=hunter2")
    assert failure_reason(error) == "OSError: no s3://key:***@a, no https://b?token=***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me@server:2/hunter@h/db", "postgresql://me@server:***@h/db"),
        ("'mysql://me:hunt'er@h/db' fails", "'mysql://me:***@h/db' fails"),
        ("'one://a:b@c' and 'two://a:b@c'", "'one://a:***@c' and 'two://a:***@c'"),
        ("postgresql://me@h:5432/db, ask a@b", "postgresql://me@h:5432/db, ask a@b"),
    ],
)
def test_the_password_of_each_url_is_hidden(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown
