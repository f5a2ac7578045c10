"""Errors for users."""

from __future__ import annotations

import pickle

from hpo_mab._errors import UnknownNameError


def test_an_unknown_name_can_be_sent_to_another_process() -> None:
    error = UnknownNameError("sampler", "mba", ["mab"])
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is UnknownNameError
    assert str(copied) == str(error)
