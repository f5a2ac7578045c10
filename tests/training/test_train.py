"""One training: its curve, clock, sampler and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_studies import timeless
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hpo_mab import training
from hpo_mab._errors import ArgumentError
from hpo_mab.data import ImageSplits
from hpo_mab.samplers import Draw, UniformSampler
from hpo_mab.training import DeviceBatches, DeviceSweep, LoaderSweep, Training

Parts = dict[str, Any]
Start = Callable[..., Training]


@pytest.mark.parametrize("kind", ["uniform", "mab"])
def test_digits_are_learnt(start: Start, kind: str) -> None:
    curve = list(start(kind, lr=0.1, steps=90))
    assert curve[-1].accuracy > 0.85  # Chance is 0.1.
    assert curve[-1].loss < 0.6
    assert curve[-1].train_loss < 0.5 * curve[0].train_loss


def test_points_of_the_curve(start: Start) -> None:
    curve = list(start("mab", lr=0.1, steps=10, evaluations=4, warmup=0.2))
    assert [point.index for point in curve] == [1, 2, 3, 4]
    assert [point.steps for point in curve] == [2, 5, 8, 10]
    assert [point.examples for point in curve] == [128, 320, 512, 640]
    # Peak 0.1, two warm-up steps of ten, then eighths; the rate of the last step done.
    expected = [0.1, 0.1 * 6 / 8, 0.1 * 3 / 8, 0.1 / 8]
    assert [point.learning_rate for point in curve] == pytest.approx(expected)
    for point in curve:
        assert point.reward_rate is not None
        assert 0 <= point.reward_rate <= 1


@pytest.mark.parametrize("kind", ["uniform", "mab"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_curve_and_weights_bit_for_bit(
    start: Start, kind: str, precision: str
) -> None:
    runs = []
    for seed in (3, 3, 4):
        run = start(kind, seed=seed, precision=precision)
        curve = timeless(run)
        runs.append((curve, [parameter.clone() for parameter in run.model.parameters()]))
    (curve, weights), (again, same), (other, _) = runs
    assert curve == again
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert curve != other
    default = timeless(start(kind, seed=3))
    assert (curve == default) is (precision == "float32")


def test_layout_changes_the_curve_by_rounding_only(start: Start) -> None:
    (plain,) = start("uniform", steps=4, evaluations=1, channels_last=False)
    run = start("uniform", steps=4, evaluations=1, channels_last=True)
    (last,) = run
    layers = [layer for layer in run.model.modules() if isinstance(layer, nn.Conv2d)]
    # Also with one channel, where a tensor of either layout is contiguous in both.
    assert [layer.weight.stride(1) for layer in layers] == [1] * len(layers)
    assert last.loss == pytest.approx(plain.loss, rel=1e-3)


def test_a_data_set_of_the_user_trains_exactly_as_images_on_the_device(
    start: Start, splits: ImageSplits, parts: Parts
) -> None:
    expected = timeless(start("uniform", batches=parts["batches"], steps=40))
    images = parts["batches"].normalization(splits.validation.images)
    validation = LoaderSweep(TensorDataset(images, splits.validation.labels))
    curve = start("uniform", loader=0, validation=validation, steps=40)
    assert timeless(curve) == expected


def test_closing_the_iterator_ends_the_training(
    start: Start, splits: ImageSplits, parts: Parts
) -> None:
    closed: list[bool] = []

    class _Watched(DeviceBatches):
        def stream(self, sampler: Any) -> Iterator[tuple[Tensor, Tensor]]:
            try:
                yield from super().stream(sampler)
            finally:
                closed.append(True)

    batches = _Watched(splits.train, normalization=parts["batches"].normalization)
    curve = start("uniform", batches=batches)
    assert next(curve).steps == 6
    weights = [parameter.clone() for parameter in curve.model.parameters()]
    curve.close()
    assert closed == [True]
    assert next(curve, None) is None
    after = curve.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))


def test_nothing_is_trained_before_the_first_evaluation_is_requested(
    start: Start, splits: ImageSplits
) -> None:
    sampler = start("uniform").sampler
    assert sampler.outstanding == 0
    first = UniformSampler(splits.train.labels, batch_size=64).draw()
    assert torch.equal(sampler.draw(), first)


def test_divergence_is_detected_at_once_on_the_cpu(start: Start) -> None:
    with pytest.raises(training.TrainingDiverged, match="the training loss is") as caught:
        list(start("uniform", lr=1e30, steps=500, evaluations=1, warmup=0.0))
    assert caught.value.step < 50


def test_a_validation_loss_that_is_not_finite_is_divergence(start: Start) -> None:
    bad = [(torch.full((2, 1, 8, 8), torch.inf), torch.tensor([0, 1]))]
    with pytest.raises(training.TrainingDiverged, match="by step 6: the validation loss is"):
        list(start("uniform", validation=bad))


class _Recorder(UniformSampler):
    """Records the progress and the losses it gets."""

    asks_network = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shares: list[float] = []
        self.losses: list[Tensor] = []
        self.scorer: Any = None

    def set_progress(self, share: float) -> None:
        self.shares.append(share)

    def update(self, losses: Tensor, **more: Any) -> Tensor:
        self.smoothed = F.cross_entropy(
            more["logits"].detach(), more["targets"], reduction="none", label_smoothing=0.2
        )
        self.losses.append(losses.detach().clone())
        return super().update(losses, **more)


def test_the_sampler_gets_progress_and_the_losses_trained_on(start: Start) -> None:
    run = start(_Recorder, steps=16, label_smoothing=0.2)
    curve, sampler = list(run), run.sampler
    assert isinstance(sampler, _Recorder)
    assert sampler.shares == [step / 16 for step in range(16)]
    for number, point in enumerate(curve):
        four = sampler.losses[4 * number : 4 * number + 4]
        assert point.train_loss == pytest.approx(float(torch.cat(four).mean()), rel=1e-5)
    torch.testing.assert_close(sampler.losses[-1], sampler.smoothed)


def test_the_gradient_is_that_of_the_weighted_loss(start: Start) -> None:
    class _Deaf(UniformSampler):
        def update(self, losses: Tensor, **more: Any) -> Tensor:
            return 0 * super().update(losses, **more)

    run = start(_Deaf)
    weights = [parameter.clone() for parameter in run.model.parameters()]
    list(run)
    after = run.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))


def test_a_scorer_is_bound_and_removed_at_the_end(
    start: Start, splits: ImageSplits, parts: Parts
) -> None:
    under_way = start(_Recorder, label_smoothing=0.2)
    model, sampler = under_way.model, under_way.sampler
    assert isinstance(sampler, _Recorder)
    next(under_way)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = sampler.scorer(torch.tensor([5, 2]))
    assert model.training
    assert not logits.requires_grad
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    images = parts["batches"].normalization(splits.train.images[[5, 2]])
    torch.testing.assert_close(logits, model.eval()(images).detach())
    # A cycle of the sampler and the network would be freed later.
    del under_way
    assert sampler.scorer is None


class _Slow(UniformSampler):
    """By its own clock a draw takes two seconds, and an update one."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def _draw(self) -> Draw:
        self.now += 2.0
        return super()._draw()

    def update(self, losses: Tensor, **more: Any) -> Tensor:
        self.now += 1.0
        return super().update(losses, **more)


def test_seconds_leave_evaluation_out_and_keep_the_sampler_in(
    start: Start, splits: ImageSplits, parts: Parts
) -> None:
    sampler = _Slow(splits.train.labels, batch_size=64)

    class _SlowSweep(DeviceSweep):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            sampler.now += 100.0
            return super().__iter__()

    class _SlowModel(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            sampler.now += 10.0 if self.training else 0.0
            return super().forward(inputs.flatten(1))

    sweep = _SlowSweep(splits.validation, normalization=parts["batches"].normalization)
    options = {"sampler": sampler, "validation": sweep, "clock": sampler.clock, "steps": 16}
    points = []
    for point in start(network=lambda: _SlowModel(64, 10), **options):
        sampler.now += 1000.0  # The time of the consumer does not count as training.
        points.append(point)
    assert [point.seconds for point in points] == [52.0, 104.0, 156.0, 208.0]
    assert [point.sampler_seconds for point in points] == [12.0, 24.0, 36.0, 48.0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_draws_by_a_loader_are_timed(start: Start, splits: ImageSplits, num_workers: int) -> None:
    sampler = _Slow(splits.train.labels, batch_size=64)
    options = {"sampler": sampler, "clock": sampler.clock, "steps": 5, "evaluations": 1}
    (point,) = start(loader=num_workers, **options)
    # With a worker, batches are also drawn ahead.
    assert point.sampler_seconds == 5 * (2.0 + 1.0) + 2 * 2.0 * num_workers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"evaluations": 0}, "evaluations must be at least 1, got 0"),
        ({"warmup": -0.1}, r"warmup must be a share in \[0, 1\), got -0\.1"),
        ({"warmup": 1.0}, r"warmup must be a share in \[0, 1\), got 1\.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1\.0"),
        ({"average": -0.1}, r"average must be a share in \[0, 1\], got -0\.1"),
        ({"average": 1.1}, r"average must be a share in \[0, 1\], got 1\.1"),
        ({"average": float("nan")}, r"average must be a share in \[0, 1\], got nan"),
        ({"keep": "best"}, "keep 'best'"),
        ({"precision": "float16"}, r"precision 'float16'.*'bfloat16'"),
    ],
)
def test_arguments_out_of_bounds_are_refused_by_the_call(
    start: Start, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        start(**changes)
