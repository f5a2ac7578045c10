from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpo_mab._errors import ArgumentError
from hpo_mab._memory import memory_reason
from hpo_mab.search import TrainingObjective
from hpo_mab.search._failure import failure_reason
from hpo_mab.training import Budget

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
def test_a_lack_of_memory_is_told_apart(error: Exception, reason: str | None) -> None:
    assert memory_reason(error) == reason
    told = f"{type(error).__name__}: {error}".splitlines()[0]
    assert failure_reason(error) == (reason or told)


def test_libraries_that_are_refused_memory_are_understood() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert memory_reason(refused.value) == f"{HOST} Tried to allocate 3,725,290.30 GiB."
    with pytest.raises(MemoryError) as refused_array:
        np.empty(10**15)
    told = memory_reason(refused_array.value)
    assert told is not None
    assert told.startswith(f"{HOST} Unable to allocate 7.11 PiB for an array with shape")


def test_what_was_raised_on_the_way_out_hides_no_lack_of_memory() -> None:
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


def test_a_data_loading_process_that_runs_out_of_memory_is_told() -> None:
    with pytest.raises(RuntimeError) as refused:
        next(iter(DataLoader(_Vast(), num_workers=1)))
    told = f"{HOST} Tried to allocate 3,725,290.30 GiB. (in a data-loading process)"
    assert failure_reason(refused.value) == told


def test_a_range_whose_end_memory_has_no_room_for_is_refused(tiny_data: object) -> None:
    objective = TrainingObjective(
        model=lambda width: torch.nn.Linear(width, width),
        model_options={"width": {"low": 10, "high": 10**7}},
        data=tiny_data,  # type: ignore[arg-type]
        budget=Budget(steps=4),
        optimizer={"lr": 0.1},
        batch_size=2,
        device="cpu",
    )
    with pytest.raises(ArgumentError, match=r"with width = 10000000 does not fit: .* host out"):
        objective.check()


@pytest.fixture
def tiny_data() -> object:
    class Two(Dataset[tuple[Tensor, int]]):
        targets = (0, 1, 0, 1)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(10), self.targets[index]

    return Two(), Two()
