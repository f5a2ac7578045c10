"""The contract of the package passes a correct sampler and fails wrong ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hpo_mab._errors import ArgumentError
from hpo_mab.samplers import BatchSampler, Draw, FeedbackError
from hpo_mab.testing import SamplerContract, TableModel


class Sound(BatchSampler):
    """Draws with replacement, in proportion to the last loss plus a floor; unbiased weights."""

    floor = 0.5

    def __init__(self, labels: Tensor, **arguments: Any) -> None:
        super().__init__(labels, **arguments)
        self.generator = torch.Generator().manual_seed(self.seed + 1000 * self.rank)
        self.scores = torch.ones(self.num_examples)

    def _draw(self) -> Draw:
        shares = (self.scores + self.floor) / (self.scores + self.floor).sum()
        where = torch.multinomial(shares, self.batch_size, True, generator=self.generator)
        weights = self._weights(shares[where])
        return Draw(
            self.examples[where].to(self.device),
            None if weights is None else weights.to(self.device),
            where,
        )

    def _weights(self, shares: Tensor) -> Tensor | None:
        return 1 / (self.num_examples * shares)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        # Its memory is on the host, wherever the losses are.
        losses = losses.cpu()
        finite = torch.isfinite(losses)
        self.scores[draw.context[finite]] = losses[finite]

    def _state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "scores": self.scores.clone()}

    def _load_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.scores = state["scores"].clone()


class TestSound(SamplerContract):
    unbiased = True

    def make_sampler(self, labels: Tensor, **arguments: Any) -> BatchSampler:
        return Sound(labels, **arguments)


class ShortBatch(Sound):
    def _draw(self) -> Draw:
        draw = super()._draw()
        return Draw(draw.indices[1:], None, draw.context[1:])


class OutOfRange(Sound):
    def _draw(self) -> Draw:
        draw = super()._draw()
        draw.indices = draw.indices + 1
        return draw


class GivesUp(Sound):
    floor = 0.0

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        super()._learn(draw, losses * (losses > 0.5), logits, targets)


class Biased(Sound):
    def _weights(self, shares: Tensor) -> None:
        return None


class Poisoned(Sound):
    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        self.scores[draw.context] = torch.nan_to_num(losses.cpu(), 0.0, 100.0, 0.0)


class NewestFirst(Sound):
    def update(self, losses: Tensor, **outputs: Any) -> Tensor:
        if self._outstanding:
            self._outstanding.rotate(1)
        loss = super().update(losses, **outputs)
        self._outstanding.rotate(-1)
        return loss


class Unseeded(Sound):
    def __init__(self, labels: Tensor, **arguments: Any) -> None:
        super().__init__(labels, **arguments)
        self.generator = torch.Generator().manual_seed(0)


class GlobalRandomness(Sound):
    def _draw(self) -> Draw:
        self.generator = torch.default_generator
        return super()._draw()


class ForgetsScores(Sound):
    def _load_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class SharesScores(Sound):
    def _state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "scores": self.scores}


class Unpicklable(Sound):
    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "device": copy.copy(ValueError)}


class IgnoresRank(Sound):
    @property
    def examples(self) -> Tensor:
        return torch.arange(len(self.labels))


BROKEN: list[tuple[type[Sound], str]] = [
    (Biased, "test_weighted_mean_is_unbiased"),
    (ForgetsScores, "test_state_continues_the_stream"),
    (GivesUp, "test_every_example_comes_again"),
    (GlobalRandomness, "test_leaves_global_randomness_alone"),
    (IgnoresRank, "test_ranks_split_the_examples"),
    (NewestFirst, "test_late_feedback_answers_oldest_draw"),
    (OutOfRange, "test_draws_valid_batches"),
    (Poisoned, "test_all_non_finite_losses_are_alike"),
    (Poisoned, "test_non_finite_losses_leave_no_trace"),
    (SharesScores, "test_state_continues_the_stream"),
    (ShortBatch, "test_draws_valid_batches"),
    (ShortBatch, "test_pass_has_promised_length"),
    (Unpicklable, "test_state_continues_the_stream"),
    (Unseeded, "test_same_seed_same_stream"),
]


@pytest.mark.parametrize(("broken", "test"), BROKEN)
def test_catches(broken: type[Sound], test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Contract(SamplerContract):
        unbiased = True

        def make_sampler(self, labels: Tensor, **arguments: Any) -> BatchSampler:
            return broken(labels, **arguments)

    contract = Contract()
    run: Callable[..., None] = getattr(contract, test)
    names = run.__code__.co_varnames[: run.__code__.co_argcount]
    offered = {
        "model": TableModel(contract.num_examples, contract.num_classes),
        "monkeypatch": monkeypatch,
        "progress": 0.5,
    }
    with pytest.raises(
        (AssertionError, ArgumentError, IndexError, FeedbackError, pickle.UnpicklingError)
    ):
        run(**{name: offered[name] for name in names if name != "self"})


class ByClass(Sound):
    """Draws three batches of each class in turn."""

    drawn = 0
    turns = 3

    def _draw(self) -> Draw:
        number = self.drawn // self.turns % len(self.labels.unique())
        self.drawn += 1
        of_class = self.examples[self.labels[self.examples] == number]
        return Draw(of_class[: self.batch_size], None, of_class[: self.batch_size])


def _feedback_of_another_batch(sampler: type[Sound]) -> None:
    class Contract(SamplerContract):
        def make_sampler(self, labels: Tensor, **arguments: Any) -> BatchSampler:
            return sampler(labels, **arguments)

    contract = Contract()
    model = TableModel(contract.num_examples, contract.num_classes)
    contract.test_refuses_feedback_of_another_batch(model)


def test_a_sampler_in_the_order_of_classes_is_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    _feedback_of_another_batch(ByClass)
    monkeypatch.setattr(ByClass, "turns", 1000)
    with pytest.raises(pytest.skip.Exception, match="All batches of two passes"):
        _feedback_of_another_batch(ByClass)
