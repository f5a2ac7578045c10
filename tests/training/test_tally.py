"""The sums of each example are those of its draws, in the loop, a step and a stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tools import saved
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_mab import _examples, samplers
from hpo_mab._examples import COLUMNS, ExampleCounts
from hpo_mab.samplers import UniformSampler
from hpo_mab.samplers._base import Draw
from hpo_mab.training import StackedTrainer, Training, create_optimizer
from hpo_mab.training._tally import LOSS_DECAY, ExampleTally

Parts = dict[str, Any]

BATCH, STEPS = 16, 70


class _Watched(UniformSampler):
    """Uniform batches, with the outputs of each step."""

    needs_logits = True

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        assert logits is not None
        self.seen.append((draw.indices.clone(), losses.clone(), logits.clone()))

    @property
    def seen(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return self.__dict__.setdefault("_seen", [])


def _network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def _training(
    parts: Parts, sampler: Any = None, *, graph: bool = False, **changes: Any
) -> Training:
    labels = parts["batches"].data.labels
    network = _network()
    arguments: dict[str, Any] = {
        **parts,
        "sampler": sampler or samplers.create("mab", labels, batch_size=BATCH),
        "optimizer": create_optimizer("sgd", network.parameters(), lr=0.1),
        "steps": STEPS,
        "evaluations": 4,
        "tally": ExampleTally(labels, device=torch.device("cpu")),
    }
    made = Training(network, **arguments | changes)
    made._may_use_graph = graph  # As on CUDA.
    return made


def _counts(training: Training) -> ExampleCounts:
    assert training.tally is not None
    return training.tally.take().on_host()


def _expected(
    seen: list[tuple[Tensor, Tensor, Tensor]], labels: Tensor
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sums and predictions, one visit at a time."""
    sums = np.zeros((len(labels), len(COLUMNS)))
    predictions = np.zeros((len(labels), 10), dtype=int)
    total = weight = 0.0
    for indices, losses, logits in seen:
        mean = float(losses.mean())
        level = total / weight if weight else mean
        total = LOSS_DECAY * total + (1 - LOSS_DECAY) * mean
        weight = LOSS_DECAY * weight + (1 - LOSS_DECAY)
        for index, loss, row in zip(indices.tolist(), losses.tolist(), logits, strict=True):
            probabilities = F.softmax(row, dim=0)
            label = int(labels[index])
            own = float(probabilities[label])
            other = max(float(z) for c, z in enumerate(row) if c != label)
            sums[index] += [1, loss >= level, loss / level, float(row[label]) - other, own, own**2]
            predictions[index, int(probabilities.argmax())] += 1
    return sums, predictions


@pytest.mark.parametrize("batch", [BATCH, BATCH - 1])
@pytest.mark.parametrize("graph", [False, True], ids=["loop", "captured step"])
def test_sums_are_those_of_every_visit(parts: Parts, graph: bool, batch: int) -> None:
    labels = parts["batches"].data.labels
    sampler = _Watched(labels, batch_size=batch)
    training = _training(parts, sampler, graph=graph)
    list(training)
    found = _counts(training)
    sums, predictions = _expected(sampler.seen, labels)
    assert sums[:, 0].sum() == STEPS * batch
    np.testing.assert_allclose(found.sums, sums, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.predictions, predictions)


@pytest.mark.parametrize("kind", ["mab", "uniform", "psgd"])
def test_a_slot_of_a_stack_adds_up_as_a_training_alone(parts: Parts, kind: str) -> None:
    labels = parts["batches"].data.labels
    stack = StackedTrainer(
        _network(),
        slots=3,
        **parts,
        batch_size=BATCH,
        tally=ExampleTally(labels, slots=3, device=torch.device("cpu")),
    )
    assert stack.tally is not None
    # The first slot ends early and is taken again: its sums are not those of the next training.
    for slot, steps in ((0, 10), (1, STEPS)):
        sampler = samplers.create(kind, labels, batch_size=BATCH, seed=slot)
        stack.start(slot, _network(slot), sampler=sampler, steps=steps, optimizer={"lr": 0.1})
    visits = {}
    while stack.busy:
        for slot, _ in stack.advance():
            if slot not in stack.busy:
                visits[slot, len(visits)] = stack.tally.take(slot).on_host()
        if len(visits) == 1 and 0 not in stack.busy:
            sampler = samplers.create(kind, labels, batch_size=BATCH, seed=5)
            stack.start(0, _network(5), sampler=sampler, steps=STEPS, optimizer={"lr": 0.1})
            visits[-1, -1] = visits[0, 0]
    drawn = [int(found.visits.sum()) for key, found in visits.items() if key[0] >= 0]
    assert sorted(drawn) == [10 * BATCH, STEPS * BATCH, STEPS * BATCH]
    if kind != "uniform":
        return
    alone = _training(parts, samplers.create(kind, labels, batch_size=BATCH, seed=5))
    alone.model.load_state_dict(_network(5).state_dict())
    list(alone)
    last = next(found for (slot, place), found in visits.items() if slot == 0 and place > 0)
    np.testing.assert_array_equal(last.visits, _counts(alone).visits)
    np.testing.assert_allclose(last.mean("margin"), _counts(alone).mean("margin"), atol=0.05)


@pytest.mark.parametrize("graph", [False, True], ids=["loop", "captured step"])
def test_a_resumed_training_counts_each_visit_once(parts: Parts, graph: bool) -> None:
    whole = _training(parts, graph=graph)
    list(whole)
    first = _training(parts, graph=graph)
    next(first)
    next(first)
    state = saved(first.state_dict())
    next(first)  # Lost with its worker.
    second = _training(parts, graph=graph)
    second.load_state_dict(state)
    list(second)
    # Added up in other portions.
    np.testing.assert_allclose(_counts(second).sums, _counts(whole).sums, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(_counts(second).predictions, _counts(whole).predictions)


def test_a_tally_does_not_change_a_training(parts: Parts) -> None:
    curves = [list(_training(parts, **more)) for more in ({}, {"tally": None})]
    accuracies = [[(e.accuracy, e.loss, e.train_loss) for e in curve] for curve in curves]
    assert accuracies[0] == accuracies[1]


def test_losses_that_are_not_finite_change_nothing() -> None:
    labels = torch.arange(8) % 2
    tally = ExampleTally(labels, device=torch.device("cpu"))
    bad = torch.tensor([1.0, torch.nan, torch.inf, 2.0])
    tally.keep(torch.arange(4), torch.full((4,), torch.nan), torch.full((4, 2), torch.nan))
    tally.count()
    tally.keep(torch.arange(4), bad, torch.zeros(4, 2))
    tally.count()
    found = tally.take().on_host()
    assert found.visits.tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    # The mean of what is finite is 1.5.
    assert found.mean("loss")[[0, 3]] == pytest.approx([1 / 1.5, 2 / 1.5])
    assert found.mean("high")[[0, 3]].tolist() == [0, 1]
    assert np.isfinite(found.sums).all()


def test_of_many_examples_a_fixed_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_examples, "MOST_EXAMPLES", 5)
    chosen = _examples.recorded_examples(20)
    assert chosen is not None
    tally = ExampleTally(torch.arange(20) % 2, device=torch.device("cpu"))
    tally.keep(torch.arange(20), torch.ones(20), torch.zeros(20, 2))
    tally.count()
    tally.keep(torch.tensor([int(chosen[3])] * 20), torch.ones(20), torch.zeros(20, 2))
    tally.count()
    assert tally.take().on_host().visits.tolist() == [1, 1, 1, 21, 1]


def test_outputs_beyond_the_classes_are_not_counted_as_predictions() -> None:
    tally = ExampleTally(torch.tensor([0, 1, 1]), device=torch.device("cpu"))
    logits = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 5.0], [0.0, 3.0, 1.0]])
    tally.keep(torch.arange(3), torch.ones(3), logits)
    tally.count()
    found = tally.take().on_host().predictions
    assert found is not None
    assert found.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_without_room_for_predictions_none_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_examples, "MOST_CELLS", 5)
    tally = ExampleTally(torch.tensor([0, 1, 1]), device=torch.device("cpu"))
    tally.keep(torch.arange(3), torch.ones(3), torch.zeros(3, 2))
    tally.count()
    assert tally.take().on_host().predictions is None
    assert tally.take().on_host().visits.tolist() == [1, 1, 1]


def test_many_visits_of_a_small_data_set_are_counted() -> None:
    tally = ExampleTally(torch.tensor([0, 1]), device=torch.device("cpu"))
    assert tally._predictions is not None
    tally._predictions.fill_(2**15 - 1)
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tally.keep(torch.tensor([0, 1]), torch.tensor([0.5, 0.5]), logits)
    tally.count()
    counts = tally.take().on_host().predictions
    assert counts is not None
    assert counts.max() == 2**15


def test_indices_may_be_a_strided_slice() -> None:
    tally = ExampleTally(torch.arange(8) % 2, device=torch.device("cpu"))
    tally.keep(torch.arange(8)[::2], torch.ones(4), torch.zeros(4, 2))
    tally.count()
    assert tally.take().on_host().visits.tolist() == [1, 0] * 4
