"""Trainings in a stack equal separate ones, and do not affect each other."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from tools import saved
from torch import Tensor, nn

from hpo_mab import models, samplers, training
from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.data import Augmentation, ImageSplits, Normalization
from hpo_mab.samplers import BatchSampler, MABSampler, UniformSampler
from hpo_mab.training import (
    DeviceBatches,
    DeviceSweep,
    Evaluation,
    StackedTrainer,
    Training,
    TrainingDiverged,
)
from hpo_mab.training._rows import stacked_cross_entropy
from hpo_mab.training._stack_batches import StackBatches

BATCH = 32


class _Task:
    """Digits with a small network of convolutions and batch normalisation."""

    def __init__(self, splits: ImageSplits, *, device: str = "cpu") -> None:
        self.splits = splits.to(device)
        self.device = device
        normalization = Normalization(self.splits.mean, self.splits.std)
        self.batches = DeviceBatches(self.splits.train, normalization=normalization)
        self.validation = DeviceSweep(self.splits.validation, normalization=normalization)

    def network(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return models.create("small_cnn", in_channels=1, num_classes=10, image_size=8, width=4)

    def sampler(self, kind: str, seed: int, **knobs: Any) -> BatchSampler:
        device = "cpu" if kind == "mab" else self.device
        labels = self.splits.train.labels
        return samplers.create(kind, labels, batch_size=BATCH, seed=seed, device=device, **knobs)

    def stack(self, slots: int, **changes: Any) -> StackedTrainer:
        arguments: dict[str, Any] = {
            "slots": slots,
            "batches": self.batches,
            "validation": self.validation,
            "batch_size": BATCH,
        }
        return StackedTrainer(self.network(0), **arguments | changes)

    def start(
        self,
        stack: StackedTrainer,
        slot: int,
        kind: str = "uniform",
        *,
        seed: int | None = None,
        sampler: BatchSampler | None = None,
        **changes: Any,
    ) -> None:
        """Start what `alone` trains; the seed is the slot's number if none is given."""
        seed = slot if seed is None else seed
        options = {"optimizer": {"lr": 0.05}, "steps": 20, "evaluations": 4, "warmup": 0.2}
        if sampler is None:
            sampler = self.sampler(kind, seed)
        stack.start(slot, self.network(seed), sampler=sampler, **options | changes)

    def alone(
        self, seed: int, sampler: BatchSampler, *, optimizer: str = "sgd", **changes: Any
    ) -> list[Evaluation]:
        network = self.network(seed).to(self.device)
        options = {"lr": 0.05, **changes.pop("options", {})}
        made = training.create_optimizer(optimizer, network.parameters(), **options)
        run = Training(
            network,
            batches=self.batches,
            validation=self.validation,
            sampler=sampler,
            optimizer=made,
            **{"steps": 20, "evaluations": 4, "warmup": 0.2, **changes},
        )
        return list(run)


@pytest.fixture
def task(splits: ImageSplits) -> _Task:
    return _Task(splits)


def _finish(stack: StackedTrainer) -> dict[int, list[Any]]:
    curves: dict[int, list[Any]] = {}
    while stack.busy:
        for slot, found in stack.advance():
            curves.setdefault(slot, []).append(found)
    return curves


def _assert_same(curve: list[Evaluation], other: list[Evaluation], *, rel: float = 1e-3) -> None:
    assert len(curve) == len(other)
    for one, two in zip(curve, other, strict=True):
        for field in ("index", "steps", "examples", "averaged"):
            assert getattr(one, field) == getattr(two, field)
        for field in ("loss", "train_loss", "learning_rate"):
            assert getattr(one, field) == pytest.approx(getattr(two, field), rel=rel)
        # A rounded logit may turn one of the 288 examples.
        assert one.accuracy == pytest.approx(two.accuracy, abs=1.01 / 288)


OPTIMIZERS = [
    ("sgd", {"momentum": 0.9, "weight_decay": 1e-3}, {"momentum": 0.5, "nesterov": True}),
    ("adam", {"lr": 0.003, "weight_decay": 1e-2}, {"lr": 0.001, "beta1": 0.8, "beta2": 0.99}),
    ("adamw", {"lr": 0.003, "weight_decay": 0.1}, {"lr": 0.001, "eps": 1e-5}),
    ("nadam", {"lr": 0.003, "weight_decay": 1e-2}, {"lr": 0.001, "beta1": 0.8}),
    ("rmsprop", {"lr": 0.001, "momentum": 0.5}, {"lr": 0.0005, "alpha": 0.9}),
]


@pytest.mark.parametrize(("optimizer", "first", "second"), OPTIMIZERS, ids=lambda value: str(value))
def test_stacked_equals_alone(
    task: _Task, optimizer: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    stack = task.stack(2, optimizer=optimizer)
    more: list[dict[str, Any]] = [
        {"steps": 20, "average": 0.2, "label_smoothing": 0.1, "keep": "better"},
        {"steps": 31, "schedule": "constant", "average": 0.5, "warmup": 0.0, "keep": "better"},
    ]
    expected = []
    for slot, (options, changes) in enumerate(zip((first, second), more, strict=True)):
        options = {"lr": 0.05, **options}
        changes = {"evaluations": 4, "warmup": 0.2, **changes}
        stack.start(
            slot,
            task.network(slot + 5),
            sampler=task.sampler("uniform", slot),
            optimizer=options,
            **changes,
        )
        sampler = task.sampler("uniform", slot)
        expected.append(
            task.alone(slot + 5, sampler, optimizer=optimizer, options=options, **changes)
        )
    curves = _finish(stack)
    for slot, curve in enumerate(expected):
        _assert_same(curves[slot], curve)


def test_half_precision_trains_as_single_precision_nearly(task: _Task) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        stack = task.stack(2, precision=precision)
        for slot in range(2):
            task.start(stack, slot, steps=40, evaluations=2)
        losses.append([curve[-1].loss for _, curve in sorted(_finish(stack).items())])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


class _Replay(BatchSampler):
    """Draws recorded batches."""

    def __init__(self, batches: list[Tensor], labels: Tensor) -> None:
        super().__init__(labels, batch_size=len(batches[0]))
        self._batches = iter(batches)

    def _draw(self) -> samplers.Draw:
        return samplers.Draw(next(self._batches))

    def _state(self) -> dict[str, Any]:
        return {}

    def _load_state(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("knobs", [{}, {"memory": None}, {"discount": 0.98}, {"floor": 0.3}])
def test_bandits_of_a_stack_train_as_alone_on_their_batches(
    task: _Task, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    fetch = DeviceBatches.fetch

    def recorded(self: DeviceBatches, indices: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(indices.view(3, BATCH).clone())
        return fetch(self, indices)

    monkeypatch.setattr(DeviceBatches, "fetch", recorded)
    stack = task.stack(3)
    for slot in range(3):
        task.start(stack, slot, sampler=task.sampler("mab", slot, **knobs))
    curves = _finish(stack)
    monkeypatch.setattr(DeviceBatches, "fetch", fetch)
    for slot in range(3):
        sampler = task.sampler("mab", slot, **knobs)
        assert isinstance(sampler, MABSampler)
        shares = sampler.shares
        for batch in drawn:
            # Each bandit draws an arm of its share.
            assert (shares == batch[slot][:, None]).any(dim=1).all()
        replay = _Replay([batch[slot] for batch in drawn], task.splits.train.labels)
        _assert_same(curves[slot], task.alone(slot, replay))
        assert all(point.reward_rate is not None for point in curves[slot])
        assert curves[slot][-1].concentration is not None


def test_bandits_of_a_stack_draw_as_alone(task: _Task) -> None:
    """Hard examples are drawn more often, as often as by the sampler alone."""
    labels = task.splits.train.labels
    losses = torch.where(labels < 2, 2.0, 0.5)
    alone = task.sampler("mab", 0)
    share_alone = []
    for _ in range(120):
        batch = alone.draw()
        alone.update(losses[batch])
        share_alone.append((labels[batch] < 2).float().mean())
    stack = task.stack(2)
    for slot in range(2):
        sampler = task.sampler("mab", slot)
        stack.start(slot, task.network(slot), sampler=sampler, steps=10)
        assert "_engine" not in vars(sampler)  # The bandits are the stack's.
    draws = stack._draws
    share = []
    for _ in range(120):
        indices, _ = draws.next(losses.take)
        draws.rewind()
        share.append((labels[indices] < 2).float().mean(dim=1))
        draws.update_bandits(losses[indices])
    late = torch.stack(share[60:]).mean(dim=0)
    expected = float(torch.stack(share_alone[60:]).mean())
    assert expected > 0.25  # A fifth of the examples.
    assert late.tolist() == pytest.approx([expected, expected], abs=0.05)


@pytest.mark.parametrize("kind", ["psgd", "infobatch"])
def test_samplers_that_learn_by_themselves_train_as_alone(task: _Task, kind: str) -> None:
    stack = task.stack(2)
    task.start(stack, 1, sampler=task.sampler(kind, 3))
    task.start(stack, 0, "mab")
    curve = _finish(stack)[1]
    _assert_same(curve, task.alone(1, task.sampler(kind, 3)))


@pytest.mark.parametrize("knobs", [{}, {"presample": 3}])
def test_a_stack_chooses_the_candidates_that_a_network_alone_finds_hardest(
    task: _Task, knobs: dict[str, int]
) -> None:
    stack = task.stack(2)
    # More steps than are planned at once.
    steps = {0: 80, 1: 20}
    for slot, length in steps.items():
        sampler = task.sampler("hard_mining", slot, **knobs)
        task.start(stack, slot, sampler=sampler, steps=length, label_smoothing=0.1)
    curves = _finish(stack)
    for slot, length in steps.items():
        sampler = task.sampler("hard_mining", slot, **knobs)
        expected = task.alone(slot, sampler, steps=length, label_smoothing=0.1)
        _assert_same(curves[slot], expected)
        # The tenth of the examples that were drawn most often have well over a tenth of the draws.
        found = curves[slot][-1].concentration
        assert found == pytest.approx(expected[-1].concentration, abs=0.003)
        assert found > 0.2


def test_all_slots_of_a_stack_choose_among_as_many_candidates(task: _Task) -> None:
    for first, fits, others in (
        ("hard_mining", {}, [("uniform", {}), ("mab", {}), ("hard_mining", {"presample": 3})]),
        ("uniform", {}, [("hard_mining", {})]),
    ):
        stack = task.stack(2)
        task.start(stack, 0, sampler=task.sampler(first, 0, **fits))
        assert stack.takes(task.sampler(first, 1, **fits))
        for kind, knobs in others:
            sampler = task.sampler(kind, 1, **knobs)
            assert not stack.takes(sampler)
            with pytest.raises(ArgumentError, match="Sampler does not fit"):
                task.start(stack, 1, sampler=sampler)
        assert stack.free == (1,)


@pytest.mark.parametrize("optimizer", ["sgd", "nadam"])
@pytest.mark.parametrize("kind", ["uniform", "psgd", "hard_mining"])
def test_a_training_continues_in_another_slot_as_if_it_had_not_stopped(
    task: _Task, kind: str, optimizer: str
) -> None:
    options: dict[str, Any] = {
        "steps": 20,
        "evaluations": 4,
        "average": 0.3,
        "optimizer": {"lr": 0.01},
    }
    first = task.stack(2, optimizer=optimizer)
    other = kind if kind == "hard_mining" else "uniform"
    first.start(0, task.network(5), sampler=task.sampler(kind, 5), **options)
    first.start(1, task.network(6), sampler=task.sampler(other, 6), **options)
    curve = [dict(first.advance())[0] for _ in range(2)]
    state = saved(first.state_dict(0))
    curve += _finish(first)[0]

    second = task.stack(3, optimizer=optimizer)
    other = kind if kind == "hard_mining" else "mab"
    second.start(0, task.network(8), sampler=task.sampler(other, 8), **options)
    # Weights come from the state, not from the network.
    second.start(2, task.network(9), sampler=task.sampler(kind, 5), state=state, **options)
    rest = _finish(second)[2]
    assert [point.index for point in rest] == [3, 4]
    _assert_same(rest, curve[2:], rel=1e-4)
    assert rest[0].seconds > curve[1].seconds


def test_a_training_continues_beyond_its_budget_in_another_slot(task: _Task) -> None:
    options: dict[str, Any] = {
        "steps": 20,
        "evaluations": 2,
        "average": 0.3,
        "schedule": "constant",
        "optimizer": {"lr": 0.01},
    }
    stack = task.stack(2)
    stack.start(0, task.network(5), sampler=task.sampler("uniform", 5), budgets=2, **options)
    stack.start(1, task.network(5), sampler=task.sampler("uniform", 5), **options)
    curve = [dict(stack.advance())[0] for _ in range(2)]
    assert stack.busy == (0,)
    state = saved(stack.state_dict(1))
    curve += _finish(stack)[0]
    with pytest.raises(ArgumentError, match="just now, got 1"):
        stack.state_dict(1)

    other = task.stack(1)
    sampler = task.sampler("uniform", 5)
    other.start(0, task.network(9), sampler=sampler, state=state, budgets=2, **options)
    rest = _finish(other)[0]
    assert [point.steps for point in rest] == [30, 40]
    _assert_same(rest, curve[2:], rel=1e-4)


def test_a_training_continues_with_the_knobs_that_it_is_given(task: _Task) -> None:
    stack = task.stack(2)
    task.start(stack, 0)
    stack.advance()
    state = saved(stack.state_dict(0))
    before = stack.state(0)
    sampler = task.sampler("uniform", 0)
    task.start(stack, 1, sampler=sampler, state=state, optimizer={"lr": 1e-12})
    stack.advance()
    assert torch.equal(stack.state(1)["head.weight"], before["head.weight"])
    assert not torch.equal(stack.state(0)["head.weight"], before["head.weight"])


@pytest.mark.parametrize(("before", "after"), [(40, 90), (90, 40)])
def test_bandits_continue_with_their_counts_in_another_stack(
    task: _Task, before: int, after: int
) -> None:
    options: dict[str, Any] = {"steps": 60, "evaluations": 3}
    own = {"sampler": task.sampler("mab", 5, memory=30), **options}
    first, second = task.stack(2), task.stack(3, seed=1)
    first.start(1, task.network(9), sampler=task.sampler("mab", 9, memory=before), **options)
    first.start(0, task.network(5), **own)
    first.advance()
    first.advance()
    state = saved(first.state_dict(0))
    second.start(1, task.network(9), sampler=task.sampler("mab", 9, memory=after), **options)
    held = first._draws.engine
    assert held is not None
    assert int((held.rows()["successes"] + held.rows()["failures"])[0].sum()) > 0
    for stack, slot in ((second, 2), (task.stack(1), 0)):
        stack.start(slot, task.network(5), state=state, **own)
        taken = stack._draws.engine
        assert taken is not None
        for name, tensor in taken.rows().items():
            mine, theirs = tensor[slot], held.rows()[name][0]
            if name.startswith("window"):
                assert mine.shape != theirs.shape
                mine, theirs = mine[:, :30], theirs[:, :30]
            assert torch.equal(mine, theirs), name
        drawn, expected = (one._draws.tensors()["drawn"] for one in (stack, first))
        assert torch.equal(drawn[slot], expected[0])
        assert [point.index for point in _finish(stack)[slot]] == [3]
    # A bandit that remembers more has lost pulls.
    short = {**state["tensors"]}
    for name in ("bandits.window_arms", "bandits.window_rewards"):
        short[name] = short[name][:, :29]
    with pytest.raises(ArgumentError, match="another network"):
        task.stack(1).start(0, task.network(5), state={**state, "tensors": short}, **own)


def test_a_free_slot_has_no_training(task: _Task) -> None:
    stack = task.stack(2)
    task.start(stack, 1)
    for call in (stack.stop, stack.evaluations):
        with pytest.raises(ArgumentError, match=r"slot must be one with a training, \(1,\), got 0"):
            call(0)
    for read in (stack.state, lambda slot: stack.scores([1, slot], averaged=False)):
        with pytest.raises(ArgumentError, match=r"a training began, \[1\], got 0"):
            read(0)


def test_a_state_that_does_not_fit_is_refused(task: _Task) -> None:
    stack = task.stack(2)
    with pytest.raises(ArgumentError, match="slot must be one that was evaluated just now, got 0"):
        stack.state_dict(0)
    stack.start(0, task.network(0), sampler=task.sampler("uniform", 0), steps=20, evaluations=4)
    stack.start(1, task.network(1), sampler=task.sampler("uniform", 1), steps=20, evaluations=2)
    ((slot, _),) = stack.advance()
    with pytest.raises(ArgumentError, match="just now, got 1"):
        stack.state_dict(1)
    state = stack.state_dict(slot)
    stack.stop(1)
    for message, changes in (
        ("at other steps", {"steps": 40}),
        ("another network", {"sampler": task.sampler("mab", 0)}),
        ("labels|seed", {"sampler": task.sampler("uniform", 1)}),
    ):
        options: dict[str, Any] = {"sampler": task.sampler("uniform", 0), "steps": 20}
        options |= {"evaluations": 4, **changes}
        with pytest.raises(ArgumentError, match=message):
            stack.start(1, task.network(0), state=state, **options)
        assert stack.free == (1,)


class _Uncopied(UniformSampler):
    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "nested": [self.labels]}


def test_the_tensors_of_a_state_are_copies(task: _Task) -> None:
    stack = task.stack(1)
    sampler = _Uncopied(task.splits.train.labels.clone(), batch_size=BATCH, seed=0)
    stack.start(0, task.network(0), sampler=sampler, steps=4, evaluations=2)
    stack.advance()
    state = stack.state_dict(0)
    (held,) = state["sampler"]["state"]["nested"]
    expected = sampler.labels.clone()
    assert torch.equal(held, expected)
    sampler.labels.add_(1)
    assert torch.equal(held, expected)
    tensors = {name: tensor.clone() for name, tensor in state["tensors"].items()}
    stack.advance()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, state["tensors"][name])


def test_a_sampler_that_needs_the_network_within_a_step_trains_alone(task: _Task) -> None:
    stack, sampler = task.stack(1), task.sampler("gradnorm", 3)
    assert not stack.takes(sampler)
    with pytest.raises(ArgumentError, match="GradNormSampler does not fit this stack"):
        stack.start(0, task.network(0), sampler=sampler, steps=20)


def test_a_slot_begins_again_as_if_it_were_new(task: _Task) -> None:
    stack = task.stack(2)
    task.start(stack, 0, "mab", steps=40)
    task.start(stack, 1, steps=12)
    curves: dict[int, list[Any]] = {}
    for _ in range(20):
        for slot, found in stack.advance():
            curves.setdefault(slot, []).append(found)
        if stack.free == (1,) and len(curves[1]) == 4:
            task.start(stack, 1, seed=2)
    assert stack.busy == ()
    assert stack.advance() == []
    _assert_same(curves[1][:4], task.alone(1, task.sampler("uniform", 1), steps=12))
    _assert_same(curves[1][4:], task.alone(2, task.sampler("uniform", 2), steps=20))
    assert len(curves[0]) == 4


def test_a_start_that_is_refused_leaves_the_slot_as_it_was(task: _Task) -> None:
    stack = task.stack(2)
    # Its bandits are the stack's.
    stack.start(1, task.network(1), sampler=task.sampler("mab", 1), steps=40)
    stack.start(0, task.network(0), sampler=task.sampler("uniform", 0), steps=4)
    while 0 in stack.busy:
        stack.advance()
    before = stack.state(0)
    others = task.sampler("mab", 0, memory=None)
    with pytest.raises(ArgumentError):
        stack.start(0, task.network(3), sampler=others, steps=4)
    with pytest.raises(ArgumentError, match=r"lr .* must be above 0"):
        stack.start(0, task.network(3), sampler=others, steps=4, optimizer={"lr": 0.0})
    for name, tensor in stack.state(0).items():
        assert torch.equal(tensor, before[name]), name


def test_a_training_that_diverges_does_not_affect_other_slots_or_the_next(task: _Task) -> None:
    stack = task.stack(2)
    for slot, lr in enumerate((1e30, 0.05)):
        task.start(stack, slot, optimizer={"lr": lr})
    curves = _finish(stack)
    assert isinstance(curves[0][-1], TrainingDiverged)
    assert curves[0][-1].__traceback__ is None  # It would keep the networks in memory.
    assert str(curves[0][-1]).startswith("Training diverged by step 5: the training loss is")
    _assert_same(curves[1], task.alone(1, task.sampler("uniform", 1)))


def test_a_stopped_training_has_no_more_evaluations(task: _Task) -> None:
    stack = task.stack(2)
    for slot in range(2):
        task.start(stack, slot)
    stack.advance()
    stack.stop(0)
    assert stack.free == (0,)
    assert {slot for slot, _ in (*stack.advance(), *stack.advance())} == {1}


def test_no_training_continues_after_an_interruption(
    task: _Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = task.stack(1)
    task.start(stack, 0)
    monkeypatch.setattr(stack._optimizer, "step", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stack.advance()
    assert stack.free == (0,)
    assert stack.advance() == []


def test_weights_of_a_slot_are_those_evaluated(task: _Task) -> None:
    stack = task.stack(2)
    task.start(stack, 1, evaluations=2, average=0.3)
    for averaged in (True, False):
        ((slot, point),) = stack.advance()
        assert slot == 1
        assert isinstance(point, Evaluation)
        assert point.averaged is averaged
        network = task.network(0)
        network.load_state_dict(stack.state(1, averaged=averaged))
        accuracy, loss = training.evaluate(network, task.validation)
        assert accuracy == pytest.approx(point.accuracy, abs=1.01 / 288)
        assert loss == pytest.approx(point.loss, rel=1e-4)


def test_labels_beyond_the_outputs_are_named(task: _Task) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    arguments = {"batches": task.batches, "validation": task.validation, "batch_size": BATCH}
    stack = StackedTrainer(network, slots=1, **arguments)
    stack.start(0, network, sampler=task.sampler("uniform", 0), steps=4)
    with pytest.raises(ArgumentError, match=r"labels must be in \[0, 9\) for a model of 9 outputs"):
        stack.advance()
    with pytest.raises(ArgumentError, match=r"to evaluate on must be in \[0, 9\) .*, got 9"):
        stack.scores([0], averaged=False)


def test_what_does_not_fit_is_refused(task: _Task) -> None:
    with pytest.raises(ArgumentError, match="slots must be at least 1, got 0"):
        task.stack(0)
    with pytest.raises(UnknownNameError, match="precision 'float16'"):
        task.stack(1, precision="float16")
    with pytest.raises(UnknownNameError, match=r"optimizer .*'name': 'adam'"):
        task.stack(1, optimizer={"name": "adam"})
    stack = task.stack(2)
    start: dict[str, Any] = {"sampler": task.sampler("mab", 0), "steps": 20}
    stack.start(0, task.network(0), **start)
    with pytest.raises(ArgumentError, match=r"slot must be one of the free ones, \(1,\), got 0"):
        stack.start(0, task.network(0), **start)
    wide = models.create("small_cnn", in_channels=1, num_classes=10, image_size=8, width=5)
    with pytest.raises(ArgumentError, match="buffers of the stack's networks"):
        stack.start(1, wide, **start)
    dropped = task.network(0)
    dropped.dropout = nn.Dropout(0.5)
    with pytest.raises(ArgumentError, match=r"stack has .*p=0\.0.*, the model .*Dropout\(p=0\.5"):
        stack.start(1, dropped, **start)
    labels = task.splits.train.labels
    small = MABSampler(labels, batch_size=8)
    with pytest.raises(ArgumentError, match="batches of 32, got 8"):
        stack.start(1, task.network(0), **start | {"sampler": small})
    fewer = MABSampler(labels[:-5], batch_size=BATCH)
    for other in (task.sampler("mab", 0, policy="softmax"), fewer):
        with pytest.raises(ArgumentError, match="MABSampler does not fit"):
            stack.start(1, task.network(0), **start | {"sampler": other})
    with pytest.raises(ArgumentError, match="momentum of optimizer 'sgd' must be in"):
        stack.start(1, task.network(0), optimizer={"momentum": 2}, **start)
    assert stack.free == (1,)


@pytest.mark.cuda
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["uniform", "mab", "psgd", "hard_mining"])
def test_a_captured_stack_equals_the_eager_one_on_cuda(
    splits: ImageSplits, kind: str, precision: str
) -> None:
    curves = []
    for capture in (False, True):
        task = _Task(splits, device="cuda")
        stack = task.stack(4, capture=capture, precision=precision)
        for slot in range(4):
            task.start(
                stack, slot, kind, optimizer={"lr": 0.02 * (slot + 1)}, steps=40, average=0.2
            )
        curves.append(_finish(stack))
        assert stack.captured is capture, stack.loop_reason
    for slot in range(4):
        for one, two in zip(curves[0][slot], curves[1][slot], strict=True):
            assert dataclasses.asdict(one)["loss"] == pytest.approx(two.loss, rel=0.05)


def test_early_evaluations_are_on_their_own_examples(task: _Task) -> None:
    part = DeviceSweep(
        task.splits.validation.subset(torch.arange(0, 40)), normalization=task.batches.normalization
    )

    def curves(stack: StackedTrainer) -> dict[int, list[float]]:
        # Of different lengths: the last evaluation of one coincides with an early one of the other.
        for slot, steps in enumerate((6, 12)):
            task.start(stack, slot, steps=steps, evaluations=steps // 3)
        found: dict[int, list[float]] = {0: [], 1: []}
        while stack.busy:
            for slot, result in stack.advance():
                assert isinstance(result, Evaluation)
                assert stack.evaluation_seconds[slot] > 0
                found[slot].append(result.accuracy)
        return found

    whole, early = curves(task.stack(2)), curves(task.stack(2, early=part))
    for slot in (0, 1):
        assert early[slot][-1] == whole[slot][-1]
        assert early[slot][:-1] != whole[slot][:-1]
        shares = [accuracy * 40 for accuracy in early[slot][:-1]]
        assert shares == pytest.approx([round(share) for share in shares], abs=1e-4)


def test_a_stack_of_one_gives_each_training_its_floor() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    rows = StackBatches(1, 10, torch.device("cpu"), seed=0)
    shares = []
    for floor in (0.0, 1.0):
        sampler = MABSampler(labels, batch_size=10, floor=floor, memory=None)
        rows.begin(0, sampler)
        # One example of each bandit is hard.
        hard = torch.zeros(100)
        hard[sampler.shares[:, 0].long()] = 1.0
        drawn = []
        for _ in range(400):
            indices, _ = rows.next(hard.take)
            rows.rewind()
            drawn.append(hard[indices].mean())
            rows.update_bandits(hard[indices])
        shares.append(float(torch.stack(drawn[200:]).mean()))
    assert shares[0] > 0.5
    # Every example is drawn as often as any other.
    assert shares[1] == pytest.approx(0.1, abs=0.02)


def test_few_batches_are_planned_before_the_first_step(
    task: _Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = task.stack(1)
    task.start(stack, 0, steps=70, evaluations=1)
    draws, plan = stack._draws, stack._draws.plan
    parts: list[tuple[int, list[int]]] = []

    def planned(slot: int, progress: dict[int, float]) -> None:
        parts.append((int(draws._planned_step), list(progress)))
        plan(slot, progress)

    monkeypatch.setattr(draws, "plan", planned)
    _finish(stack)
    expected = [(0, 4), (4, 20), (20, 64), (0, 4), (4, 6)]
    assert parts == [(begin, list(range(begin, end))) for begin, end in expected]


class _Own(MABSampler):
    """Counts the batches that it learns from."""

    learned = 0

    def _learn(self, *arguments: Any) -> None:
        type(self).learned += 1
        super()._learn(*arguments)


def test_a_subclass_of_the_bandit_learns_itself(task: _Task) -> None:
    stack = task.stack(1)
    sampler = _Own(task.splits.train.labels, batch_size=BATCH, seed=3)
    stack.start(0, task.network(0), sampler=sampler, steps=4, evaluations=2)
    _finish(stack)
    assert _Own.learned >= 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_that_is_masked_leaves_the_loss_finite_as_alone(smoothing: float) -> None:
    logits = torch.randn(3, 5, 4)
    if not smoothing:  # With smoothing the loss is infinite, alone as well.
        logits[:, :, 3] = -torch.inf
    targets = torch.arange(15).view(3, 5) % 3
    stacked, alone = (logits.clone().requires_grad_() for _ in range(2))
    column = torch.full((3, 1), smoothing)
    losses = stacked_cross_entropy(stacked, targets, column)
    wanted = nn.functional.cross_entropy(
        alone.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
    )
    assert torch.allclose(losses.flatten(), wanted)
    assert bool(losses.isfinite().all())
    losses.sum().backward()  # type: ignore[no-untyped-call]
    wanted.sum().backward()  # type: ignore[no-untyped-call]
    assert stacked.grad is not None
    assert alone.grad is not None
    assert torch.allclose(stacked.grad, alone.grad)


def test_a_first_start_that_is_refused_decides_nothing(task: _Task) -> None:
    stack = task.stack(1)
    with pytest.raises(ArgumentError, match="parameters and buffers"):
        stack.start(0, nn.Linear(3, 2), sampler=task.sampler("hard_mining", 0), steps=4)
    task.start(stack, 0, "mab")
    assert len(_finish(stack)[0]) == 4


def test_free_slots_make_no_training_slower(task: _Task) -> None:
    for started in (1, 4):
        stack = task.stack(4)
        ticks = itertools.count()
        # A step, or an evaluation, takes one second, with however many slots.
        stack._clock = lambda ticks=ticks: float(next(ticks))
        for slot in range(started):
            task.start(stack, slot)
        curves = _finish(stack)
        assert [curves[slot][-1].seconds for slot in range(started)] == [1.0] * started
        assert stack.idle_seconds[0] == (3.0 if started == 1 else 0.0)


def test_each_slot_has_its_own_crops(task: _Task) -> None:
    losses = []
    for augmentation in (None, Augmentation(pad=1, flip=False)):
        task.batches = DeviceBatches(
            task.splits.train,
            normalization=task.batches.normalization,
            augmentation=augmentation,
        )
        stack = task.stack(2)
        for slot in range(2):
            task.start(stack, slot, seed=3)
        curves = _finish(stack)
        losses.append([curves[slot][0].train_loss for slot in range(2)])
    (plain, same), (first, second) = losses
    assert same == pytest.approx(plain)
    assert len({round(loss, 3) for loss in (plain, first, second)}) == 3
