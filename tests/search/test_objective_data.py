"""What `TrainingObjective` takes for data."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hpo_mab import Budget, TrainingObjective
from hpo_mab._errors import ArgumentError

X = torch.zeros(8, 4)
GOOD = TensorDataset(X, torch.arange(8) % 2)


class Dicts(TensorDataset):
    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        x, y = super().__getitem__(index)
        return {"image": x, "label": y}


def _objective(data: Any, outputs: int = 3, **arguments: Any) -> TrainingObjective:
    return TrainingObjective(
        model=lambda: nn.Linear(4, outputs),
        data=data,
        budget=Budget(steps=2),
        optimizer={"name": "sgd", "lr": 0.1},
        batch_size=4,
        evaluations=1,
        device="cpu",
        **arguments,
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD, "data must be an ImageSplits or a pair of datasets.* got TensorDataset"),
        (
            (TensorDataset(X, X[:, 0] + 3.7), GOOD),
            r"labels of the training set in data must be one integer.* got 3\.7\d* at position 0",
        ),
        (
            (GOOD, TensorDataset(X, X[:, 0] + 0.5)),
            r"labels of the validation set in data must be .* got 0\.5 at position 0",
        ),
        ((Dicts(X, GOOD.tensors[1]), GOOD), "item of the training set in data must be a pair"),
        ((GOOD, Dicts(X, GOOD.tensors[1])), "item of the validation set in data must be a pair"),
        ((TensorDataset(X, GOOD.tensors[1], X), GOOD), r"pair \(input, class\), got 3 values"),
        ((TensorDataset(X, torch.eye(8)), GOOD), "of one-hot rows use argmax"),
    ],
)
def test_data_that_are_no_pairs_of_input_and_class_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        _objective(data)


@pytest.mark.parametrize("sampler", ["mab", "uniform"])
def test_labels_beyond_the_outputs_are_named(sampler: str) -> None:
    data = TensorDataset(X, 1 + torch.arange(8) % 3)
    objective = _objective((data, data), sampler=sampler)
    with pytest.raises(ArgumentError, match=r"labels must be in \[0, 3\) for a model of 3 outputs"):
        optuna.create_study(direction="maximize").optimize(objective, n_trials=1)


def test_labels_stored_as_whole_floats_train() -> None:
    data = TensorDataset(X, (torch.arange(8) % 2).float())
    study = optuna.create_study(direction="maximize")
    study.optimize(_objective((data, data)), n_trials=1)
    assert study.best_value == 0.5
