"""Trials that fail by themselves: the reason is kept and the study continues."""

from __future__ import annotations

import errno
import functools
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from _faults import _fork
from small_studies import essence, tiny
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hpo_mab._errors import ArgumentError, failure_reason, memory_reason
from hpo_mab.search import StudyRunner, TrainingObjective
from hpo_mab.search._observer import observer_of
from hpo_mab.search._prepare import check_corners, load_splits, make_objective
from hpo_mab.search._target import StudyTarget
from hpo_mab.search._trial_loop import TrialLoop
from hpo_mab.storage import Storage, TrialRun, read_run
from hpo_mab.training import Budget
from hpo_mab.training._device import release_memory

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB."


class _Greedy(nn.Module):
    """A network that runs out of memory after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.left = steps

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError(MESSAGE + "\nSee the documentation for PYTORCH_ALLOC_CONF")
        return self.layer(images.flatten(1))


def test_running_out_of_gpu_memory_fails_the_trial_and_not_the_study(storage: Storage) -> None:
    spec = tiny(budget={"trials": 4}, pruner={"kind": "none"})
    objective = make_objective(spec, load_splits(spec))
    # The second and third trial run out of memory; the others do not.
    patience = iter([-1, 3, 12])
    objective.workload._model = lambda: _Greedy(next(patience, -1))
    run = StudyRunner(spec, storage, objective=objective).run(score=False).run
    states = [trial.state for trial in run.trials]
    assert states == ["complete", "fail", "fail", "complete", "complete", "complete"]
    for trial in run.trials[1:3]:
        assert trial.attrs["hpo_mab:reason"] == f"OutOfMemoryError: {MESSAGE}"
    # Its curve and cost until then are stored.
    assert len(run.trials[1].curve) == 0
    assert len(run.trials[2].curve) == 1
    assert run.trials[2].attrs["hpo_mab:examples"] == run.trials[2].curve[-1].examples


class _Accident(Dataset[Any]):
    """A data set to whose items something may happen."""

    def __init__(self, happens: Callable[[int], None] = lambda index: None) -> None:
        self.happens = happens
        self.targets = [0, 1] * 20

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.happens(index)
        return torch.full((4,), float(index % 2)), self.targets[index]


def _kill_worker(once: Path, index: int) -> None:
    if torch.utils.data.get_worker_info() is not None and once.exists():
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _tear_item(while_there: Path, index: int) -> None:
    if index == 7 and while_there.exists():
        raise OSError("item 7 cannot be read\nat byte 3")


def _objective(data: tuple[Dataset[Any], Dataset[Any]], **changes: Any) -> TrainingObjective:
    options: dict[str, Any] = {
        "model": lambda: nn.Linear(4, 2),
        "optimizer": {"lr": 0.1},
        "batch_size": 10,
        "device": "cpu",
    }
    return TrainingObjective(data=data, **{**options, **changes})


@pytest.mark.skipif(sys.platform != "linux", reason="needs loader workers by fork")
def test_a_killed_data_loader_fails_the_trial_and_not_the_study(
    storage: Storage, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    once.touch()
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    StudyTarget(trials=1, total=None, epoch_examples=40).save(study)
    fatal = _Accident(functools.partial(_kill_worker, once))
    objective = _objective(
        (fatal, fatal),
        budget=Budget(steps=4),
        evaluations=2,
        num_workers=1,
        curves=storage.curves,
    )
    assert TrialLoop(study, storage, objective).run() is False
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert "DataLoader worker" in study.trials[0].user_attrs["hpo_mab:reason"]
    assert not once.exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_that_raise_in_the_middle_fail_the_trial_and_not_the_study(
    storage: Storage, tmp_path: Path, num_workers: int
) -> None:
    torn = tmp_path / "torn"
    torn.touch()
    study = optuna.create_study(study_name="own", storage=storage.optuna, direction="maximize")
    StudyTarget(trials=2, total=None, epoch_examples=40).save(study)
    objective = _objective(
        (_Accident(functools.partial(_tear_item, torn)), _Accident()),
        # The item is in one of every pass's four batches.
        budget=Budget(steps=8),
        sampler="uniform",
        evaluations=8,
        num_workers=num_workers,
        curves=storage.curves,
    )

    def mend(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        torn.unlink(missing_ok=True)

    TrialLoop(study, storage, objective, observer=observer_of(mend)).run()
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    failed = study.trials[0]
    assert failed.user_attrs["hpo_mab:reason"].startswith("OSError: item 7 cannot be read")
    assert "\n" not in failed.user_attrs["hpo_mab:reason"]
    # It failed by itself, so it is not repeated.
    assert [trial.user_attrs["hpo_mab:slot"] for trial in study.trials] == [0, 1, 2]
    # Curve and reports of the trial agree.
    curve = storage.curves.load([failed._trial_id]).get(failed._trial_id, ())
    assert len(curve) == len(failed.intermediate_values) < 8


WIDE, NARROW = 6400, 16
_MIB = 2**20


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_worker_killed_between_two_parameters_changes_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = {"lr": {"low": 0.01, "high": 1.0}, "momentum": {"low": 0.0, "high": 0.9}}
    spec = tiny(
        optimizer=ranges | {"weight_decay": {"low": 0.0, "high": 0.1}},
        search={"initial": 0},
        budget={"trials": 4},
    )
    whole, parts = (f"sqlite:///{tmp_path / name}.db" for name in ("whole", "parts"))

    def run(url: str) -> list[tuple[Any, ...]]:
        storage = Storage(url)
        StudyRunner(spec, storage).run("study", score=False)
        found = essence(read_run(storage, "study"))
        storage.close()
        return found

    expected, suggest = run(whole), optuna.trial.Trial.suggest_float

    def die(trial: optuna.trial.Trial, name: str, *given: Any, **options: Any) -> float:
        if trial.user_attrs["hpo_mab:slot"] == 2 and name == "weight_decay":
            os._exit(9)
        return suggest(trial, name, *given, **options)

    storage = Storage(parts)
    runner = StudyRunner(spec, storage)
    runner.run("study", score=False, launch=lambda *_: False)
    storage.close()
    # The second of them begins with the trial that the first has left.
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(optuna.trial.Trial, "suggest_float", die)
            pid = _fork(parts, "study", runner)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert sorted(run(parts)) == sorted(expected)


def _greedy_runner(storage: Storage, device: str) -> StudyRunner:
    """The first two trials' networks can be made but not trained in 384 MiB more than now."""
    spec = tiny(
        budget={"trials": 3, "epochs": None, "steps": 6},
        training={"device": device},
        optimizer={"name": "adamw"},
        # It asks the network about its candidates.
        sampler={"kind": "gradnorm"},
        pruner={"kind": "none"},
    )
    objective = make_objective(spec, load_splits(spec))
    # Libraries have allocated their memory before the limit is set.
    configuration = next(iter(objective.space.corners()))
    with objective.workload.training(configuration, seed=0) as training:
        list(training)
    widths = iter([WIDE, WIDE])
    make = objective.workload._model
    objective.workload._model = lambda: make(width=next(widths, NARROW))
    return StudyRunner(spec, storage, objective=objective)


def _only_the_wide_ones_failed(trials: Sequence[TrialRun], expected: str) -> None:
    assert [trial.state for trial in trials] == ["fail", "fail", "complete", "complete", "complete"]
    for trial in trials[:2]:
        assert re.fullmatch(expected, trial.attrs["hpo_mab:reason"]), trial.attrs["hpo_mab:reason"]


def _memory() -> tuple[int, int]:
    """Bytes of this process: of its address space, and of memory in use."""
    pages = Path("/proc/self/statm").read_text().split()[:2]
    space, used = (int(count) * os.sysconf("SC_PAGE_SIZE") for count in pages)
    return space, used


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_running_out_of_the_machines_memory_for_real(storage: Storage) -> None:
    import resource

    runner = _greedy_runner(storage, "cpu")
    (space, before), limits = _memory(), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (space + 384 * _MIB, limits[1]))
    used: list[int] = []
    gc.disable()  # The garbage collector may run much later.
    try:
        run = runner.run(score=False, on_trial=lambda *_: used.append(_memory()[1])).run
    finally:
        gc.enable()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    expected = r"OutOfMemoryError: host out of memory\. Tried to allocate \d+\.\d\d MiB\."
    _only_the_wide_ones_failed(run.trials, expected)
    # The network of 160 MiB and its gradients are freed before the next trial.
    assert max(used) < before + 64 * _MIB


@pytest.mark.cuda
def test_running_out_of_a_gpus_memory_for_real(storage: Storage) -> None:
    runner = _greedy_runner(storage, "cuda")
    release_memory()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((before[1] + 384 * _MIB) / total, 0)
    used: list[tuple[int, int]] = []
    gc.disable()
    try:
        run = runner.run(
            score=False,
            on_trial=lambda *_: used.append(
                (torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
            ),
        ).run
    finally:
        gc.enable()
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    expected = r"OutOfMemoryError: CUDA out of memory\. Tried to allocate \d.*"
    _only_the_wide_ones_failed(run.trials, expected)
    allocated, reserved = zip(*used[:2], strict=True)
    assert max(allocated) < before[0] + 16 * _MIB
    assert max(reserved) < before[1] + 64 * _MIB


CUDA = (
    "CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 139.81 GiB of "
    "which 12.00 MiB is free. Of the allocated memory 100.00 GiB is allocated by PyTorch."
)
ADVICE = " If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF.\nSee more"
HOST = "OutOfMemoryError: host out of memory."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError(CUDA + ADVICE), f"OutOfMemoryError: {CUDA}"),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
            "OutOfMemoryError: CUDA error: out of memory",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "OutOfMemoryError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        ),
        *(
            (RuntimeError(text), f"OutOfMemoryError: {text}")
            for text in (
                "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
                "cuFFT error: CUFFT_ALLOC_FAILED",
            )
        ),
        (
            RuntimeError(
                "[...] DefaultCPUAllocator: not enough memory: you tried to allocate 2048"
            ),
            HOST,
        ),
        (RuntimeError("std::bad_alloc"), HOST),
        (MemoryError(), HOST),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), HOST),
        (RuntimeError("memory format option is only supported by strided tensors"), None),
        (ValueError("CUDA error: out of memory"), None),
    ],
)
def test_out_of_memory_errors_have_their_own_reason(error: Exception, reason: str | None) -> None:
    assert memory_reason(error) == reason
    expected = f"{type(error).__name__}: {error}".splitlines()[0]
    assert failure_reason(error) == (reason or expected)


def test_out_of_memory_errors_of_libraries_are_recognised() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert memory_reason(refused.value) == f"{HOST} Tried to allocate 3,725,290.30 GiB."
    with pytest.raises(MemoryError) as refused_array:
        np.empty(10**15)
    expected = memory_reason(refused_array.value)
    assert expected is not None
    assert expected.startswith(f"{HOST} Unable to allocate 7.11 PiB for an array with shape")


def test_an_error_after_out_of_memory_does_not_hide_it() -> None:
    def fall(*, handled: bool) -> None:
        try:
            raise torch.OutOfMemoryError(CUDA)
        except RuntimeError:
            if handled:
                raise ValueError("too large") from None
            raise RuntimeError("operation not permitted when stream is capturing")  # noqa: B904

    with pytest.raises(RuntimeError) as fell:
        fall(handled=False)
    assert memory_reason(fell.value) == f"OutOfMemoryError: {CUDA}"
    with pytest.raises(ValueError, match="too large") as answered:
        fall(handled=True)
    assert memory_reason(answered.value) is None


class _Vast(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.empty(10**15)


def test_a_data_loading_process_that_runs_out_of_memory_is_expected() -> None:
    with pytest.raises(RuntimeError) as refused:
        next(iter(DataLoader(_Vast(), num_workers=1)))
    expected = f"{HOST} Tried to allocate 3,725,290.30 GiB. (in a data-loading process)"
    assert failure_reason(refused.value) == expected


def test_a_range_whose_upper_end_does_not_fit_into_memory_is_refused() -> None:
    objective = _objective(
        (_Accident(), _Accident()),
        model=lambda width: torch.nn.Linear(width, width),
        model_options={"width": {"low": 4, "high": 10**7}},
        budget=Budget(steps=4),
        batch_size=2,
    )
    with pytest.raises(ArgumentError, match=r"with width = 10000000 does not fit: .* host out"):
        check_corners(objective)
