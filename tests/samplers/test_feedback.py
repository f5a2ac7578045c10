"""Losses count for the examples of their draw, or an error is raised."""

from __future__ import annotations

import enum
import itertools
import math
from typing import Any

import pytest
import torch
from tools import no_waiting, saved
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hpo_mab import HpoMabWarning, samplers
from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import BatchSampler, Draw, FeedbackError, MABSampler, UniformSampler

LABELS = torch.arange(480) % 10


class Credited(BatchSampler):
    """Draws in order, and records which loss each example was credited with."""

    def __init__(self, labels: Any, *, option: Any = None, **arguments: Any) -> None:
        super().__init__(labels, **arguments)
        self.next = 0
        self.losses = torch.full((len(self.labels),), -1.0)

    def _draw(self) -> Draw:
        indices = (self.next + torch.arange(self.batch_size)) % len(self.labels)
        self.next = int(indices[-1]) + 1
        return Draw(indices)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        self.losses[draw.indices] = losses

    def _state(self) -> dict[str, Any]:
        return {}

    def _load_state(self, state: dict[str, Any]) -> None:
        pass

    @property
    def wrong(self) -> int:
        """Examples that were credited with another example's loss."""
        answered = self.losses >= 0
        return int((self.losses != torch.arange(len(self.losses)))[answered].sum())


Kind = enum.Enum("Kind", ["A", "B"])
Word = enum.StrEnum("Word", ["A", "B"])


def _loader(sampler: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(torch.arange(len(LABELS)), LABELS), batch_sampler=sampler, **options
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_skipped_batch_that_is_discarded_moves_no_credit(num_workers: int) -> None:
    sampler = Credited(LABELS, batch_size=30)
    for _ in range(2):
        for step, (x, y) in enumerate(_loader(sampler, num_workers=num_workers)):
            if step in (3, 7):
                sampler.discard()
            else:
                sampler.update(x.float(), targets=y)
    assert sampler.outstanding == 0
    assert sampler.wrong == 0
    assert int((sampler.losses < 0).sum()) == 60  # The same two batches of either pass.


@pytest.mark.parametrize("name", ["targets", "indices"])
def test_a_skipped_batch_is_detected(name: str) -> None:
    sampler = Credited(LABELS.sort().values, batch_size=30)

    def answer(batch: Tensor) -> None:
        given = {"targets": sampler.labels[batch], "indices": batch}
        sampler.update(batch.float(), **{name: given[name]})

    batches = [torch.tensor(batch) for batch, _ in zip(sampler, range(5), strict=False)]
    for batch in batches[:3]:
        answer(batch)
    with pytest.raises(FeedbackError, match=f"{name} are not those .* of the draw 1 later: call"):
        answer(batches[4])


@pytest.mark.parametrize(("num_workers", "before"), [(0, 0), (1, 2)])
def test_a_skipped_batch_causes_a_warning_at_the_next_one(num_workers: int, before: int) -> None:
    sampler = Credited(LABELS, batch_size=30)
    batches = iter(_loader(sampler, num_workers=num_workers))
    for step in range(4):
        x, _ = next(batches)
        if step != 3:
            sampler.update(x.float())
    words = f"{before + 1} draws wait for their losses where {before} did before"
    with pytest.warns(HpoMabWarning, match=words):
        next(batches)
    for x, _ in batches:  # Once only.
        sampler.update(x.float())


def test_a_loop_without_a_loader_gets_one_warning_of_each_kind() -> None:
    sampler = Credited(LABELS, batch_size=30)
    next(iter(sampler))
    with pytest.warns(HpoMabWarning, match="A pass begins while 1 draws of the last one"):
        batch = torch.tensor(next(iter(sampler)))
    sampler.update(batch.float())
    sampler.draw()
    with pytest.warns(HpoMabWarning, match="1 draws wait for their losses where 0 did before"):
        sampler.draw()
    sampler.draw()


def test_losses_of_several_draws_may_come_late() -> None:
    sampler = Credited(LABELS, batch_size=30)
    for _ in range(2):
        waiting = []
        for batch in sampler:
            waiting.append(torch.tensor(batch))
            while len(waiting) == 3 or (waiting and sampler._passes_begun == 2):
                sampler.update(waiting.pop(0).float())
        while waiting:
            sampler.update(waiting.pop(0).float())
    assert sampler.wrong == 0


def test_a_batch_skipped_at_the_end_causes_a_warning_at_the_next_pass() -> None:
    sampler = Credited(LABELS, batch_size=30)
    for number in range(3):
        batches = iter(sampler)
        if number == 1:
            with pytest.warns(HpoMabWarning, match="A pass begins while 1 draws of the last one"):
                next(batches)
            sampler.discard()
        for step, batch in enumerate(batches, start=number == 1):
            if step != len(sampler) - 1:
                sampler.update(torch.tensor(batch).float())


def test_a_second_iteration_of_a_loader_ends_the_running_pass() -> None:
    sampler = Credited(LABELS, batch_size=30)
    loader = _loader(sampler)
    training = iter(loader)
    x, _ = next(training)
    sampler.update(x.float())
    next(iter(loader))
    with pytest.raises(FeedbackError, match="this pass ended when another pass"):
        next(training)


def test_a_state_that_is_loaded_while_draws_wait_ends_the_pass() -> None:
    # The batches that the loader has prepared would answer the draws of the loaded state.
    sampler = Credited(LABELS, batch_size=30)
    state = sampler.state_dict()
    batches = iter(sampler)
    next(batches)
    sampler.load_state_dict(state)
    assert sampler.outstanding == 0
    with pytest.raises(FeedbackError, match=r"this pass ended when .* a state was loaded"):
        next(batches)
    batches = iter(sampler)
    sampler.update(torch.tensor(next(batches)).float())
    sampler.load_state_dict(state)
    next(batches)  # No draw waited.


def test_batches_that_a_library_skips_are_discarded_before_the_first_answer() -> None:
    """As Accelerate's `skip_first_batches`, whose draws come before the loop has a batch."""
    sampler = Credited(LABELS, batch_size=30)
    for step, batch in enumerate(itertools.islice(sampler, 3, None)):
        for _ in range(0 if step else 3):
            sampler.discard()
        sampler.update(torch.tensor(batch).float())
    assert sampler.outstanding == sampler.wrong == 0


def test_targets_may_be_the_classes_numbered_from_0() -> None:
    labels = torch.tensor([7, -3, 40, 7, -3, 40])
    sampler = Credited(labels, batch_size=3)
    sampler.draw()
    sampler.update(torch.ones(3), targets=torch.tensor([1, 0, 2]))
    sampler.draw()
    sampler.update(torch.ones(3), targets=torch.tensor([7, -3, 40], dtype=torch.int32))
    sampler.draw()
    other = torch.tensor([2, 1, 0])
    with pytest.raises(FeedbackError, match="numbers classes otherwise, give indices="):
        sampler.update(torch.ones(3), targets=other)
    sampler.update(torch.ones(3), targets=other, indices=[0, 1, 2])


def test_a_sampler_learns_from_tensors_on_its_own_device() -> None:
    class Devices(Credited):
        def _learn(self, draw: Draw, *answer: Tensor | None) -> None:
            self.found = [one is not None and one.device.type for one in answer]

    sampler = Devices([0, 1] * 4, batch_size=2, device="meta")
    sampler.draw()
    sampler.update(torch.ones(2), logits=torch.ones(2, 2), targets=torch.tensor([0, 1]))
    assert sampler.found == ["meta"] * 3


@pytest.mark.cuda
def test_targets_on_the_host_do_not_make_an_update_wait() -> None:
    sampler = MABSampler(LABELS, batch_size=30, device="cuda")
    targets = LABELS[sampler.draw().cpu()]
    losses = torch.rand(30, device="cuda")
    with no_waiting():
        sampler.update(losses, targets=targets)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.ones(()), r"\[30\], got \[\]; use reduction='none'"),
        (torch.ones(30, 5), r"got \[30, 5\]; one loss an example: average .* if none is padding"),
        (torch.ones(150), r"got \[150\]; average the losses of each example"),
        (torch.ones(5, 30), r"got \[5, 30\]; average the losses of each example"),
        (torch.ones(16), r"got \[16\]; answer a draw's whole batch"),
        (torch.ones(30, dtype=torch.int64), "losses must be floating-point, got torch.int64"),
        ([1.0] * 30, "losses must be a tensor, got list"),
    ],
)
def test_losses_that_are_not_one_an_example_are_refused(losses: Any, message: str) -> None:
    sampler = Credited(LABELS, batch_size=30)
    sampler.draw()
    with pytest.raises(FeedbackError, match=message):
        sampler.update(losses)
    assert sampler.outstanding == 1


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((4,), 3.7), r"targets must be one integer.* got 3\.7 at position 0"),
        (torch.eye(4), "for one-hot rows use argmax"),
        (torch.eye(4, dtype=torch.int64), "for one-hot rows use argmax"),
        (torch.zeros(3, dtype=torch.int64), r"shape of the draw, \[4\], got \[3\]"),
        (["cat"] * 4, "got 'cat' at position 0"),
        (torch.tensor([0, 1, 2, torch.nan]), "got nan at position 3"),
    ],
)
def test_targets_that_are_no_classes_are_refused(targets: Any, message: str) -> None:
    sampler = samplers.create("gradnorm", [0, 1, 2, 3], batch_size=4)
    sampler.draw()
    with pytest.raises(FeedbackError, match=message):
        sampler.update(torch.ones(4), logits=torch.ones(4, 4), targets=targets)


def test_labels_beyond_the_outputs_are_refused() -> None:
    sampler = UniformSampler([1, 2, 3, 1], batch_size=4)
    logits = torch.zeros(4, 3)
    indices = sampler.draw()
    for given in ({}, {"targets": sampler.labels[indices]}):
        with pytest.raises(ArgumentError, match=r"labels must be in \[0, 3\).* outputs, got 3; "):
            sampler.update(torch.ones(4), logits=logits, **given)
    sampler.update(torch.ones(4), logits=logits, targets=sampler.labels[indices] - 1)
    sampler.draw()
    for wrong, got in (
        (logits[:, 0], r"shape \[4\] of .*32"),
        (logits.to(torch.cfloat), ".* of .*complex"),
    ):
        with pytest.raises(ArgumentError, match=rf"\[B, C\] of real numbers, got {got}"):
            sampler.update(torch.ones(4), logits=wrong)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3.7], r"labels must be one integer for each example, got 3\.7 at position 1"),
        (None, "one integer for each example, got None"),
        (5, "one integer for each example, got 5"),
        (
            TensorDataset(torch.zeros(4)),
            "for each example, got TensorDataset; hpo_mab.data.labels_of",
        ),
        (torch.tensor([0.0, math.inf]).half(), "got inf at position 1"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MABSampler(labels, batch_size=1)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("mab", {"memory": 3}, {"memory": 4}),
        ("mab", {"policy": "softmax"}, {"policy": "epsilon_greedy"}),
        ("psgd", {"budget": 0.5}, {"budget": 0.6}),
        ("contextual", {"decay": 0.9}, {}),
        ("curriculum", {"difficulty": torch.arange(40.0)}, {"difficulty": torch.arange(40.0) + 1}),
        ("curriculum", {"difficulty": torch.arange(40).numpy()}, {"difficulty": torch.ones(40)}),
        # Read from a file, NaN does not equal itself.
        ("curriculum", {"difficulty": [math.nan, *range(39)]}, {"difficulty": [*range(40)]}),
        (Credited, {"option": Kind.A}, {"option": Kind.B}),
        (Credited, {"option": Word.A}, {"option": Word.B}),
    ],
)
def test_a_state_is_refused_where_an_option_differs(
    kind: Any, one: dict[str, Any], other: dict[str, Any]
) -> None:
    labels = LABELS[:40]
    state = saved(samplers.create(kind, labels, batch_size=4, **one).state_dict())
    (name,) = one
    with pytest.raises(ArgumentError, match=rf"another sampler: {name} is .* there and .* here\.$"):
        samplers.create(kind, labels, batch_size=4, **other).load_state_dict(state)
    samplers.create(kind, labels, batch_size=4, **one).load_state_dict(state)
    with pytest.raises(ArgumentError, match=r"class is '\w+' there and 'UniformSampler' here"):
        samplers.create("uniform", labels, batch_size=4).load_state_dict(state)
    del state["sampler"][name]
    with pytest.raises(ArgumentError, match=rf"another sampler: {name} is None there and .* here"):
        samplers.create(kind, labels, batch_size=4, **one).load_state_dict(state)


@pytest.mark.parametrize("state", [None, [], {}, {"sampler": {}}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ArgumentError, match="state must be what state_dict of a sampler returned"):
        MABSampler(LABELS, batch_size=5).load_state_dict(state)


def test_options_are_recognised_however_they_are_given() -> None:
    made = MABSampler(LABELS, batch_size=5, prior=(2, 1))
    again = samplers.create("mab", LABELS.tolist(), batch_size=5, prior=[2.0, 1.0], floor=0.0)
    again.load_state_dict(made.state_dict())
    assert torch.equal(made.draw(), again.draw())
    # An option without a plain value is known by its type.
    one = Credited(LABELS, batch_size=5, option=object())
    Credited(LABELS, batch_size=5, option=object()).load_state_dict(one.state_dict())
    with pytest.raises(ArgumentError, match=r"option is 'builtins.object' there and None here"):
        Credited(LABELS, batch_size=5).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("drawn", "got"),
    [
        (Draw(torch.zeros(3, dtype=torch.int64)), r"shape \[3\]"),
        (Draw(torch.zeros(5, dtype=torch.int64)), r"shape \[5\]"),
        (torch.zeros(4, dtype=torch.int64), "Tensor"),
        (Draw([0, 1, 2, 3]), "list"),  # type: ignore[arg-type]
        (Draw(torch.zeros(4, dtype=torch.int32)), r"shape \[4\] of torch\.int32"),
    ],
)
def test_a_draw_has_as_many_indices_as_a_batch(drawn: Any, got: str) -> None:
    class Wrong(Credited):
        def _draw(self) -> Draw:
            return drawn  # type: ignore[no-any-return]

    with pytest.raises(ArgumentError, match=f"return a Draw of 4 int64 indices, got {got}"):
        Wrong([0, 1] * 10, batch_size=4).draw()


def test_weights_of_another_shape_are_refused() -> None:
    class Column(Credited):
        def _draw(self) -> Draw:
            return Draw(super()._draw().indices, torch.ones(self.batch_size, 1))

    with pytest.raises(
        ArgumentError, match=r"Column must give a Draw 4 weights or None, got .*1\]"
    ):
        Column(LABELS, batch_size=4).draw()

    class Late(Credited):
        def _learn(self, draw: Draw, *_: Any) -> None:
            draw.weights = torch.ones(self.batch_size, 1)

    late = Late(LABELS, batch_size=4)
    late.draw()
    with pytest.raises(ArgumentError, match=r"Late must give a Draw 4 weights .*1\]"):
        late.update(torch.ones(4))
