"""Compare a step with its least time on the device: FLOP and bytes over measured peaks."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import _shared
import step_cost
import torch
from _gpu_shared import Place, Row
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclasses.dataclass
class Work(TorchDispatchMode):
    """Counts FLOP and bytes of each operation, with each tensor read or written once.

    Attributes:
        flop: Floating-point operations of products and convolutions.
        moved: Bytes read and written.
        seconds: Sum over operations of the longer of both times, at the peaks.
        peak_flop: FLOP a second.
        peak_bytes: Bytes a second.
        network: The network; its evaluations are not counted. None counts all.
    """

    peak_flop: float
    peak_bytes: float
    flop: float = 0.0
    moved: float = 0.0
    seconds: float = 0.0
    network: torch.nn.Module | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # The evaluation at a turn's end is no part of the step.
        evaluates = self.network is not None and not self.network.training
        if func.is_view or evaluates:
            return result
        tensors = [
            leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)
        ]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if func is torch.ops.aten.index_select.default:
            # It reads the gathered rows, not the whole data set.
            moved = 2 * result.numel() * result.element_size()
        formula = flop_registry.get(func.overloadpacket)
        flop = formula(*args, **kwargs, out_val=result) if formula else 0
        self.flop += flop
        self.moved += moved
        self.seconds += max(flop / self.peak_flop, moved / self.peak_bytes)
        return result


def floor(place: Place) -> Iterator[Row]:
    """Measured peaks, the work of a step, and the step over its floor."""
    peak_flop = _matmul_rate(place, torch.bfloat16)
    peak_bytes = _copy_rate(place)
    yield Row("bfloat16 matrix product", f"{peak_flop / 1e12:.1f} TFLOP/s")
    yield Row("copy, read and written", f"{peak_bytes / 1e9:.0f} GB/s")
    data = _shared.made_up("cifar10", train=place.pick(20_000, 200), rest=200).to(place.device)
    for model in place.pick(("resnet18", "small_cnn"), ("small_cnn",)):
        work, seconds = _step(place, data, model, Work(peak_flop, peak_bytes))
        batch = place.pick(128, 8)
        yield Row(
            f"{model}, batch {batch}: work of a step",
            f"{work.flop / 1e9:.1f} GFLOP, {work.moved / 1e6:.0f} MB moved, one pass an operation",
        )
        yield Row(
            f"{model}: floor of a step",
            f"{1e3 * work.flop / peak_flop:.3f} ms by FLOP alone, "
            f"{1e3 * work.seconds:.3f} ms operation by operation",
        )
        yield Row(
            f"{model}: step with mab from a graph",
            f"{1e3 * seconds:.3f} ms, {seconds / work.seconds:.2f} times the floor",
        )


def _step(place: Place, data: Any, model: str, work: Work) -> tuple[Work, float]:
    rounds, many = place.pick((8, 20), (3, 1))
    run: dict[str, Any] = {
        "model": model,
        "batch_size": place.pick(128, 8),
        "augment": True,
        "precision": "bfloat16",
        "clock": time.perf_counter,
    }
    plain = step_cost.run(data, steps=2, evaluations=2, kind="uniform", **run)
    next(plain)
    work.network = plain.model
    with work:
        next(plain)
    evaluations = step_cost.run(
        data, steps=rounds * many, evaluations=rounds, kind="mab", graph=True, **run
    )
    turn, _ = step_cost.contestant(evaluations)
    times = [turn() / many for _ in range(rounds)]
    return work, statistics.median(times[2:])


def _matmul_rate(place: Place, dtype: torch.dtype) -> float:
    size = place.pick(8192, 128)
    a = torch.randn(size, size, device=place.device, dtype=dtype)
    b = torch.randn(size, size, device=place.device, dtype=dtype)
    seconds = place.seconds(lambda: a @ b, calls=place.pick(10, 2))
    return 2 * size**3 / seconds


def _copy_rate(place: Place) -> float:
    source = torch.zeros(place.pick(2**32, 2**16), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    seconds = place.seconds(lambda: target.copy_(source), calls=place.pick(10, 2))
    return 2 * source.numel() / seconds
