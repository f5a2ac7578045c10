"""Trials that come to grief by themselves: the reason is kept and the study goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hpo_mab.search import StudyRunner, StudySpec, Target, TrainingObjective, TrialLoop
from hpo_mab.search._prepare import load_splits, make_objective
from hpo_mab.storage import Storage
from hpo_mab.training import Budget

Make = Callable[..., StudySpec]
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB."


class _Greedy(nn.Module):
    """Asks for more memory than there is after some steps of training."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.left = steps

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError(MESSAGE + "\nSee the documentation for PYTORCH_ALLOC_CONF")
        return self.layer(images.flatten(1))


def test_running_out_of_gpu_memory_fails_the_trial_and_not_the_study(
    storage: Storage, tiny: Make
) -> None:
    spec = tiny(budget={"trials": 4}, pruner={"kind": "none"})
    objective = make_objective(spec, load_splits(spec))
    # The second and third trial; the rest have memory for ever.
    patience = iter([-1, 3, 12])
    objective.workload._model = lambda: _Greedy(next(patience, -1))
    run = StudyRunner(spec, storage, objective=objective).run(score=False).run
    states = [trial.state for trial in run.trials]
    assert states == ["complete", "fail", "fail", "complete", "complete", "complete"]
    for trial in run.trials[1:3]:
        assert trial.attrs["reason"] == f"OutOfMemoryError: {MESSAGE}"
    # What it had learned and spent until then is kept.
    assert len(run.trials[1].curve) == 0
    assert len(run.trials[2].curve) == 1
    assert run.trials[2].attrs["examples"] == run.trials[2].curve[-1].examples


class _Fatal(Dataset[Any]):
    """Kills the process that loads from it, once, if that is a loader's worker."""

    def __init__(self, once: Path) -> None:
        self.once = once
        self.targets = [0, 1] * 20

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if torch.utils.data.get_worker_info() is not None and self.once.exists():
            self.once.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((4,), float(index % 2)), self.targets[index]


@pytest.mark.skipif(sys.platform != "linux", reason="needs loader workers by fork")
def test_a_killed_data_loader_fails_the_trial_and_not_the_study(
    storage: Storage, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    once.touch()
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    Target(trials=1, total=None, epoch_examples=40).save(study)
    objective = TrainingObjective(
        model=lambda: nn.Linear(4, 2),
        data=(_Fatal(once), _Fatal(once)),
        budget=Budget(steps=4),
        optimizer={"lr": 0.1},
        batch_size=10,
        evaluations=2,
        num_workers=1,
        device="cpu",
        curves=storage.curves,
    )
    assert TrialLoop(study, storage, objective).run() is False
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert "DataLoader worker" in study.trials[0].user_attrs["reason"]
    assert not once.exists()


class _Torn(Dataset[Any]):
    """One of its items cannot be read while a file is there."""

    def __init__(self, while_there: Path) -> None:
        self.while_there = while_there
        self.targets = [0, 1] * 20

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7 and self.while_there.exists():
            raise OSError("item 7 cannot be read\nat byte 3")
        return torch.full((4,), float(index % 2)), self.targets[index]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_that_raise_in_the_middle_fail_the_trial_and_not_the_study(
    storage: Storage, tmp_path: Path, num_workers: int
) -> None:
    torn = tmp_path / "torn"
    torn.touch()
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    Target(trials=2, total=None, epoch_examples=40).save(study)
    whole = _Torn(tmp_path / "never")
    objective = TrainingObjective(
        model=lambda: nn.Linear(4, 2),
        data=(_Torn(torn), whole),
        # The item is in one of every pass's four batches.
        budget=Budget(steps=8),
        optimizer={"lr": 0.1},
        sampler="uniform",
        batch_size=10,
        evaluations=8,
        num_workers=num_workers,
        device="cpu",
        curves=storage.curves,
    )

    def mend(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        torn.unlink(missing_ok=True)

    TrialLoop(study, storage, objective, on_trial=mend).run()
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    failed = study.trials[0]
    assert failed.user_attrs["reason"].startswith("OSError: item 7 cannot be read")
    assert "\n" not in failed.user_attrs["reason"]
    # Failed by itself: its slot is not tried again.
    assert [trial.user_attrs["slot"] for trial in study.trials] == [0, 1, 2]
    # The study's curves and reports tell the same story about it.
    curve = storage.curves.load([failed._trial_id]).get(failed._trial_id, ())
    assert len(curve) == len(failed.intermediate_values) < 8
