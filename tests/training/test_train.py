"""One training: its curve, clock, sampler and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hpo_mab import models, training
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.data import Augmentation, ImageSplits, Normalization
from hpo_mab.samplers import MABSampler, UniformSampler
from hpo_mab.training import DeviceBatches, DeviceSweep, Evaluation, LoaderBatches, LoaderSweep

Timeless = Callable[..., list[dict[str, Any]]]


class _Setup:
    """A small training on digits; every part can be replaced."""

    def __init__(
        self, splits: ImageSplits, *, seed: int = 0, sampler: Any = UniformSampler, lr: float = 0.1
    ) -> None:
        torch.manual_seed(seed)
        self.normalization = Normalization(splits.mean, splits.std)
        self.model = models.create(
            "small_cnn", in_channels=1, num_classes=10, image_size=8, width=8, dropout=0.1
        )
        self.arguments: dict[str, Any] = {
            "batches": DeviceBatches(
                splits.train,
                normalization=self.normalization,
                augmentation=Augmentation(pad=1, flip=False),
                seed=seed,
            ),
            "validation": DeviceSweep(splits.validation, normalization=self.normalization),
            "sampler": sampler(splits.train.labels, batch_size=64, seed=seed),
            "optimizer": training.create_optimizer("sgd", self.model.parameters(), lr=lr),
            "steps": 16,
            "evaluations": 4,
        }

    def train(self, **changes: Any) -> Iterator[Evaluation]:
        return training.Training(self.model, **self.arguments | changes)


@pytest.mark.parametrize("sampler", [UniformSampler, MABSampler])
def test_digits_are_learnt(splits: ImageSplits, sampler: Any) -> None:
    curve = list(_Setup(splits, sampler=sampler).train(steps=90))
    assert curve[-1].accuracy > 0.85  # Chance is 0.1.
    assert curve[-1].loss < 0.6
    assert curve[-1].train_loss < 0.5 * curve[0].train_loss


def test_points_of_the_curve(splits: ImageSplits) -> None:
    setup = _Setup(splits, sampler=MABSampler)
    curve = list(setup.train(steps=10, evaluations=4, warmup=0.2))
    assert [point.index for point in curve] == [1, 2, 3, 4]
    assert [point.steps for point in curve] == [2, 5, 8, 10]
    assert [point.examples for point in curve] == [128, 320, 512, 640]
    # Peak 0.1, two warm-up steps of ten, then eighths; the rate of the last step done.
    expected = [0.1, 0.1 * 6 / 8, 0.1 * 3 / 8, 0.1 / 8]
    assert [point.learning_rate for point in curve] == pytest.approx(expected)
    for point in curve:
        assert point.reward_rate is not None
        assert 0 <= point.reward_rate <= 1


@pytest.mark.parametrize("sampler", [UniformSampler, MABSampler])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_curve_and_weights_bit_for_bit(
    splits: ImageSplits, timeless: Timeless, sampler: Any, precision: str
) -> None:
    runs = []
    for seed in (3, 3, 4):
        setup = _Setup(splits, seed=seed, sampler=sampler)
        curve = timeless(setup.train(precision=precision))
        runs.append((curve, [parameter.clone() for parameter in setup.model.parameters()]))
    (curve, weights), (again, same), (other, _) = runs
    assert curve == again
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert curve != other
    default = timeless(_Setup(splits, seed=3, sampler=sampler).train())
    assert (curve == default) is (precision == "float32")


def test_layout_changes_the_curve_by_rounding_only(splits: ImageSplits) -> None:
    (plain,) = _Setup(splits).train(steps=4, evaluations=1)
    setup = _Setup(splits)
    (last,) = setup.train(steps=4, evaluations=1, channels_last=True)
    layers = [layer for layer in setup.model.modules() if isinstance(layer, nn.Conv2d)]
    # Also with one channel, where a tensor of either layout is contiguous in both.
    assert [layer.weight.stride(1) for layer in layers] == [1] * len(layers)
    assert last.loss == pytest.approx(plain.loss, rel=1e-3)


def test_a_data_set_of_the_user_trains_exactly_as_images_on_the_device(
    splits: ImageSplits, timeless: Timeless
) -> None:
    setup = _Setup(splits)
    device = DeviceBatches(splits.train, normalization=setup.normalization)
    expected = timeless(setup.train(batches=device, steps=40))
    setup = _Setup(splits)
    train, validation = (
        TensorDataset(setup.normalization(part.images), part.labels)
        for part in (splits.train, splits.validation)
    )
    curve = setup.train(batches=LoaderBatches(train), validation=LoaderSweep(validation), steps=40)
    assert timeless(curve) == expected


def test_closing_the_iterator_ends_the_training(splits: ImageSplits) -> None:
    setup = _Setup(splits)
    closed: list[bool] = []

    class _Watched(DeviceBatches):
        def stream(self, sampler: Any) -> Iterator[tuple[Tensor, Tensor]]:
            try:
                yield from super().stream(sampler)
            finally:
                closed.append(True)

    batches = _Watched(splits.train, normalization=setup.normalization)
    curve = setup.train(batches=batches)
    assert next(curve).steps == 4
    weights = [parameter.clone() for parameter in setup.model.parameters()]
    curve.close()
    assert closed == [True]
    assert next(curve, None) is None
    after = setup.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))


def test_nothing_is_trained_before_the_first_evaluation_is_requested(splits: ImageSplits) -> None:
    setup = _Setup(splits)
    setup.train()
    assert setup.arguments["sampler"].outstanding == 0
    first = UniformSampler(splits.train.labels, batch_size=64).draw()
    assert torch.equal(setup.arguments["sampler"].draw(), first)


def test_divergence_is_detected_at_once_on_the_cpu(splits: ImageSplits) -> None:
    setup = _Setup(splits, lr=1e30)
    with pytest.raises(training.TrainingDiverged, match="the training loss is") as caught:
        list(setup.train(steps=500, evaluations=1, warmup=0.0))
    assert caught.value.step < 50


def test_a_validation_loss_that_is_not_finite_is_divergence(splits: ImageSplits) -> None:
    setup = _Setup(splits)
    bad = [(torch.full((2, 1, 8, 8), torch.inf), torch.tensor([0, 1]))]
    with pytest.raises(training.TrainingDiverged, match="by step 4: the validation loss is"):
        list(setup.train(validation=bad))


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


def test_the_sampler_gets_progress_and_the_losses_trained_on(splits: ImageSplits) -> None:
    setup = _Setup(splits, sampler=_Recorder)
    curve = list(setup.train(label_smoothing=0.2))
    sampler = setup.arguments["sampler"]
    assert sampler.shares == [step / 16 for step in range(16)]
    for number, point in enumerate(curve):
        four = sampler.losses[4 * number : 4 * number + 4]
        assert point.train_loss == pytest.approx(float(torch.cat(four).mean()), rel=1e-5)
    torch.testing.assert_close(sampler.losses[-1], sampler.smoothed)


def test_the_gradient_is_that_of_the_weighted_loss(splits: ImageSplits) -> None:
    class _Deaf(UniformSampler):
        def update(self, losses: Tensor, **more: Any) -> Tensor:
            return 0 * super().update(losses, **more)

    setup = _Setup(splits, sampler=_Deaf)
    weights = [parameter.clone() for parameter in setup.model.parameters()]
    list(setup.train())
    after = setup.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))


def test_a_scorer_is_bound_and_removed_at_the_end(splits: ImageSplits) -> None:
    setup = _Setup(splits, sampler=_Recorder)
    under_way = setup.train(label_smoothing=0.2)
    next(under_way)
    before = {key: value.clone() for key, value in setup.model.state_dict().items()}
    logits = setup.arguments["sampler"].scorer(torch.tensor([5, 2]))
    assert setup.model.training
    assert not logits.requires_grad
    for key, value in setup.model.state_dict().items():
        assert torch.equal(value, before[key])
    images = setup.normalization(splits.train.images[[5, 2]])
    torch.testing.assert_close(logits, setup.model.eval()(images).detach())
    # A cycle of the sampler and the network would be freed later.
    del under_way
    assert setup.arguments["sampler"].scorer is None


class _Slow(UniformSampler):
    """By its own clock a draw takes two seconds, and an update one."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def draw(self) -> Tensor:
        self.now += 2.0
        return super().draw()

    def update(self, losses: Tensor, **more: Any) -> Tensor:
        self.now += 1.0
        return super().update(losses, **more)


def test_seconds_leave_evaluation_out_and_keep_the_sampler_in(splits: ImageSplits) -> None:
    setup = _Setup(splits, sampler=_Slow)
    sampler = setup.arguments["sampler"]

    class _SlowSweep(DeviceSweep):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            sampler.now += 100.0
            return super().__iter__()

    class _SlowModel(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: Tensor) -> Tensor:
            sampler.now += 10.0 if self.training else 0.0
            return self.inner(inputs)

    setup.model = _SlowModel(setup.model)
    sweep = _SlowSweep(splits.validation, normalization=setup.normalization)
    points = []
    for point in setup.train(validation=sweep, clock=sampler.clock):
        sampler.now += 1000.0  # The time of the consumer does not count as training.
        points.append(point)
    assert [point.seconds for point in points] == [52.0, 104.0, 156.0, 208.0]
    assert [point.sampler_seconds for point in points] == [12.0, 24.0, 36.0, 48.0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_draws_by_a_loader_are_timed(splits: ImageSplits, num_workers: int) -> None:
    setup = _Setup(splits, sampler=_Slow)
    clock = setup.arguments["sampler"].clock
    dataset = TensorDataset(setup.normalization(splits.train.images), splits.train.labels)
    batches = LoaderBatches(dataset, num_workers=num_workers)
    (point,) = setup.train(batches=batches, steps=5, evaluations=1, clock=clock)
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
    ],
)
def test_arguments_out_of_bounds_are_refused_by_the_call(
    splits: ImageSplits, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        _Setup(splits).train(**changes)


def test_unknown_precision_is_refused_by_the_call(splits: ImageSplits) -> None:
    with pytest.raises(UnknownNameError, match=r"precision 'float16'.*'bfloat16'"):
        _Setup(splits).train(precision="float16")
