from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from hpo_mab._errors import ArgumentError
from hpo_mab.data import Augmentation, ImageData, ImageSplits, Normalization
from hpo_mab.samplers import UniformSampler
from hpo_mab.training import (
    DeviceBatches,
    DeviceSweep,
    LoaderBatches,
    LoaderSweep,
    Training,
    TrainingDiverged,
)
from hpo_mab.training._batches import TimedSampler
from hpo_mab.training._tally import ExampleTally

_PLAIN = Normalization(torch.zeros(1), torch.full((1,), 1 / 255))


def _data(count: int = 20) -> ImageData:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    return ImageData(images=images, labels=torch.arange(count) % 3, classes=("a", "b", "c"))


def _timed(data: ImageData, batch_size: int = 6, seed: int = 0) -> TimedSampler:
    sampler = UniformSampler(data.labels, batch_size=batch_size, seed=seed)
    return TimedSampler(sampler, clock=lambda: 0.0)


def _pixels(batches: Any, count: int) -> list[list[float]]:
    return [x[:, 0, 0, 0].tolist() for x, _ in itertools.islice(batches, count)]


def test_device_batches_are_the_examples_drawn() -> None:
    data = _data()
    drawn = UniformSampler(data.labels, batch_size=6)
    stream = DeviceBatches(data, normalization=_PLAIN).stream(_timed(data))
    for inputs, targets in itertools.islice(stream, 9):
        indices = drawn.draw()
        torch.testing.assert_close(inputs[:, 0, 2, 1], indices.float())
        assert targets.tolist() == (indices % 3).tolist()


def test_augmentation_is_applied_and_seeded() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    data = ImageData(images=images, labels=torch.arange(20) % 2, classes=("a", "b"))

    def first(augmentation: Augmentation | None, seed: int) -> torch.Tensor:
        batches = DeviceBatches(data, normalization=_PLAIN, augmentation=augmentation, seed=seed)
        return next(batches.stream(_timed(data)))[0]

    plain, augmented = first(None, 0), first(Augmentation(pad=1), 0)
    assert not torch.equal(plain, augmented)
    assert torch.equal(augmented, first(Augmentation(pad=1), 0))
    assert not torch.equal(augmented, first(Augmentation(pad=1), 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_same_batches_over_several_passes(num_workers: int) -> None:
    data = _data()
    dataset = TensorDataset(_PLAIN(data.images), data.labels)
    expected = _pixels(DeviceBatches(data, normalization=_PLAIN).stream(_timed(data)), 9)
    before = torch.get_rng_state()
    stream = LoaderBatches(dataset, num_workers=num_workers).stream(_timed(data))
    # As in training: a batch is answered before the next is fetched; a new pass would drop it.
    assert _pixels(stream, 9) == expected
    assert torch.equal(torch.get_rng_state(), before)
    stream.close()


def test_inputs_of_given_examples_are_the_same_both_ways() -> None:
    data = _data()
    wanted = torch.tensor([7, 3, 3])
    device = DeviceBatches(data, normalization=_PLAIN, augmentation=Augmentation(pad=1))
    loader = LoaderBatches(TensorDataset(_PLAIN(data.images), data.labels))
    assert device.inputs(wanted)[:, 0, 0, 0].tolist() == pytest.approx([7, 3, 3])
    torch.testing.assert_close(loader.inputs(wanted), device.inputs(wanted))


class _Pairs(Dataset[Any]):
    """Gives labels as plain Python integers, as most data sets do."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((2,), float(index)), index % 2


def test_sweeps_cover_each_example_once_in_order_and_again() -> None:
    data = _data(10)
    device = DeviceSweep(data, normalization=_PLAIN, batch_size=4)
    for _ in range(2):
        assert [len(targets) for _, targets in device] == [4, 4, 2]
        assert torch.cat([x[:, 0, 0, 0] for x, _ in device]).tolist() == pytest.approx(range(10))
    loader = LoaderSweep(_Pairs(), batch_size=2)
    for _ in range(2):
        assert torch.cat([x[:, 0] for x, _ in loader]).tolist() == [0, 1, 2, 3, 4]
        targets = torch.cat([y for _, y in loader])
        assert targets.dtype == torch.int64
        assert targets.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("side", "most"), [(8, 1024), (128, 341), (512, 21)])
def test_sweeps_hold_at_most_64_mib_of_inputs(side: int, most: int) -> None:
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    data = ImageData(images=images, labels=torch.tensor([0, 1]), classes=("a", "b"))
    assert DeviceSweep(data, normalization=_PLAIN).batch_size == most


@pytest.mark.parametrize("changes", [{}, {"loader": 0}, {"graph": True}])
def test_only_copies_to_cuda_may_be_made_later(
    start: Callable[..., Training],
    splits: ImageSplits,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    later: list[bool] = []

    def watched(copy: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            later.append(options.get("non_blocking", False))
            return copy(*given, **options)

        return call

    for name in ("to", "copy_"):
        monkeypatch.setattr(torch.Tensor, name, watched(getattr(torch.Tensor, name)))
    tally = ExampleTally(splits.train.labels, device=torch.device("cpu"))
    list(start("uniform", steps=4, evaluations=1, tally=tally, **changes))
    assert later
    assert not any(later)


def test_arguments_out_of_bounds_are_refused() -> None:
    with pytest.raises(ArgumentError, match="num_workers must be at least 0, got -1"):
        LoaderBatches(_Pairs(), num_workers=-1)
    with pytest.raises(ArgumentError, match="num_workers must be at least 0, got -1"):
        LoaderSweep(_Pairs(), num_workers=-1)
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        LoaderSweep(_Pairs(), batch_size=0)
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        DeviceSweep(_data(), normalization=_PLAIN, batch_size=0)
    with pytest.raises(ArgumentError, match="must not be empty"):
        LoaderSweep(TensorDataset(torch.zeros(0)))


def test_a_diverged_training_can_be_raised_by_another_process() -> None:
    error = pickle.loads(pickle.dumps(TrainingDiverged(120, "the training loss is nan", 64)))
    assert str(error) == "Training diverged by step 120: the training loss is nan."
    assert (error.step, error.examples) == (120, 64)


@pytest.mark.cuda
def test_tensors_on_a_cuda_device_are_not_pinned() -> None:
    data = _data()
    images, labels = _PLAIN(data.images).cuda(), data.labels.cuda()
    parts = [TensorDataset(images[half], labels[half]) for half in (slice(10), slice(10, 20))]
    stream = LoaderBatches(ConcatDataset(parts), device="cuda").stream(_timed(data))
    inputs, targets = next(stream)
    assert inputs.is_cuda
    assert torch.equal(inputs[:, 0, 0, 0].round().long() % 3, targets)
