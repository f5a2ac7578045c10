"""Tests that users can apply to their own samplers; needs pytest (extra ``test``)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hpo_mab.samplers import BatchSampler, FeedbackError
from hpo_mab.training._schedule import SAMPLER_STATISTICS

__all__ = ["SamplerContract"]


class TableModel:
    """Labels of N examples of C classes, and logits that make some hard and some easy.

    Attributes:
        labels: Int64 [N].
        logits: Float32 [N, C].
        losses: Cross-entropy of each example, float32 [N].
    """

    def __init__(self, num_examples: int, num_classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(num_examples) % num_classes
        self.logits = 2 * torch.randn(num_examples, num_classes, generator=generator)
        self.losses = F.cross_entropy(self.logits, self.labels, reduction="none")

    def answer(
        self,
        sampler: BatchSampler,
        indices: Tensor,
        change: Callable[[Tensor], Tensor] = Tensor.clone,
    ) -> Tensor:
        """Answer a draw with the examples' losses, changed by a function; returns `update`'s."""
        losses, logits, targets = (
            values[indices.cpu()].to(indices.device)
            for values in (self.losses, self.logits, self.labels)
        )
        return sampler.update(change(losses), logits=logits, targets=targets)

    def run(self, sampler: BatchSampler, steps: int) -> Tensor:
        """Draw and answer; the indices drawn, int64 [steps, B], on the CPU."""
        drawn = []
        for _ in range(steps):
            indices = sampler.draw()
            drawn.append(indices.cpu().clone())
            self.answer(sampler, indices)
        return torch.stack(drawn)


class SamplerContract:
    """Tests of a `hpo_mab.samplers.BatchSampler`; inherit and say how to make one.

    Attributes:
        covers: Whether every example has a positive chance of being drawn again.
        coverage_draws: Number of draws, in whose second half every example must occur; raise it for
            a sampler whose least likely example is very unlikely.
        unbiased: Whether the expected weighted mean loss of a batch is the mean loss of all
            examples, whatever was drawn before.
        workers: Whether to try a ``DataLoader`` with two worker processes, which takes a second.

    Examples:
        >>> from hpo_mab.samplers import UniformSampler
        >>> from hpo_mab.testing import SamplerContract
        >>> class TestUniform(SamplerContract):
        ...     unbiased = True
        ...     def make_sampler(self, labels, **arguments):
        ...         return UniformSampler(labels, **arguments)
    """

    covers: ClassVar[bool] = True
    coverage_draws: ClassVar[int] = 500
    unbiased: ClassVar[bool] = False
    workers: ClassVar[bool] = True

    #: The batch size does not divide the number of examples.
    num_examples: ClassVar[int] = 21
    batch_size: ClassVar[int] = 5
    num_classes: ClassVar[int] = 3

    def make_sampler(self, labels: Tensor, **arguments: Any) -> BatchSampler:
        """Make the sampler to test, with labels int64 [N] and `CommonArguments`."""
        raise NotImplementedError("Override make_sampler in your test class.")

    @pytest.fixture
    def model(self) -> TableModel:
        """Labels, logits and losses of the examples."""
        return TableModel(self.num_examples, self.num_classes)

    def _make(self, model: TableModel, **arguments: Any) -> BatchSampler:
        return self.make_sampler(model.labels, **{"batch_size": self.batch_size, **arguments})

    def _ranks(self, model: TableModel, world: int, *, batch_size: int) -> list[BatchSampler]:
        given = {"world_size": world, "batch_size": batch_size}
        return [self._make(model, rank=rank, **given) for rank in range(world)]

    def test_draws_valid_batches(self, model: TableModel) -> None:
        """Indices are int64 [B] and valid, for long."""
        sampler = self._make(model)
        assert sampler.num_examples == self.num_examples
        for _ in range(40):
            indices = sampler.draw()
            assert indices.shape == (self.batch_size,)
            assert indices.dtype == torch.int64
            assert 0 <= int(indices.min()) <= int(indices.max()) < self.num_examples
            model.answer(sampler, indices)

    def test_pass_has_promised_length(self, model: TableModel) -> None:
        """A pass has ``ceil(N / B)`` batches, every one of ``B`` indices."""
        sampler = self._make(model)
        batches = list(sampler)
        assert len(batches) == len(sampler) == math.ceil(self.num_examples / self.batch_size)
        assert {len(batch) for batch in batches} == {self.batch_size}
        assert all(type(index) is int for batch in batches for index in batch)

    def test_batch_size_bounds(self, model: TableModel) -> None:
        """Batches of 1 and of all examples work; larger and empty ones are refused."""
        for batch_size in (1, self.num_examples):
            sampler = self._make(model, batch_size=batch_size)
            assert model.run(sampler, 4).shape == (4, batch_size)
        for batch_size in (0, self.num_examples + 1):
            with pytest.raises(ValueError, match="batch_size"):
                self._make(model, batch_size=batch_size)

    def test_every_example_comes_again(self, model: TableModel) -> None:
        """After many draws with constant losses, every example is still drawn."""
        if not self.covers:
            pytest.skip("This sampler does not promise to draw every example again.")
        sampler = self._make(model)
        drawn = model.run(sampler, self.coverage_draws)[self.coverage_draws // 2 :]
        missing = set(range(self.num_examples)) - set(drawn.flatten().tolist())
        assert missing == set()

    def test_late_feedback_answers_oldest_draw(
        self, model: TableModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With four draws outstanding, feedback reaches them in order."""
        sampler = self._make(model)
        answered = _record_answers(sampler, monkeypatch)
        drawn = []
        for step in range(24):
            drawn.append(sampler.draw().clone())
            if step >= 3:
                assert sampler.outstanding == 4
                model.answer(sampler, drawn[step - 3])
        assert len(answered) == 21
        assert all(torch.equal(one, other) for one, other in zip(drawn, answered, strict=False))

    def test_refuses_feedback_without_draw(self, model: TableModel) -> None:
        """Feedback that answers nothing is an error."""
        sampler = self._make(model)
        for _ in range(2):
            with pytest.raises(FeedbackError, match="no draw"):
                sampler.update(torch.ones(self.batch_size))
            model.run(sampler, 2)

    def test_refuses_feedback_of_wrong_shape(self, model: TableModel) -> None:
        """Feedback of another length is an error, and the draw still waits for its own."""
        sampler = self._make(model)
        indices = sampler.draw()
        for losses in (torch.ones(self.batch_size - 1), torch.tensor(1.0)):
            with pytest.raises(FeedbackError, match="shape"):
                sampler.update(losses, logits=model.logits[:1], targets=model.labels[:1])
        assert sampler.outstanding == 1
        model.answer(sampler, indices)
        assert sampler.outstanding == 0

    def test_refuses_missing_logits(self, model: TableModel) -> None:
        """A sampler that needs logits says so; one that does not works without."""
        sampler = self._make(model)
        indices = sampler.draw()
        if sampler.needs_logits:
            with pytest.raises(FeedbackError, match="logits"):
                sampler.update(model.losses[indices])
        else:
            assert torch.isfinite(sampler.update(model.losses[indices]))

    def test_new_pass_forgets_abandoned_draws(self, model: TableModel) -> None:
        """Draws of a pass that was left early are dropped, with one warning."""
        sampler = self._make(model)
        abandoned = iter(sampler)
        for _ in range(3):
            next(abandoned)
        assert sampler.outstanding == 3
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                next(iter(sampler))
                assert sampler.outstanding == 1
        # A sampler that learns nothing needs no answers, so it does not warn.
        expected = ["A pass begins while 3 draws o"] if sampler._learns else []
        assert [str(one.message)[:29] for one in caught] == expected
        with pytest.raises(FeedbackError, match="another pass"):
            next(abandoned)

    def test_discarded_draws_leave_no_trace(self, model: TableModel) -> None:
        """After `discard` of skipped batches, losses still reach their own draws."""
        sampler, careful = self._make(model), self._make(model)
        with pytest.raises(FeedbackError, match="no draw"):
            sampler.discard()
        for step in range(20):
            late, indices = sampler.draw().clone(), sampler.draw().clone()
            assert torch.equal(late, careful.draw())
            if step % 3:
                model.answer(sampler, late)
            else:
                sampler.discard(indices=late)
            model.answer(sampler, indices)
            assert torch.equal(indices, careful.draw())
            if step % 3:
                model.answer(careful, late)
            else:
                model.answer(careful, late, lambda losses: losses * math.nan)  # As if discarded.
            model.answer(careful, indices)
            assert sampler.outstanding == careful.outstanding == 0

    def test_refuses_feedback_of_another_batch(self, model: TableModel) -> None:
        """Targets or indices of a later batch are an error, and the draws still wait."""
        sampler = self._make(model)
        first, second = sampler.draw().clone(), sampler.draw().clone()
        # Targets do not distinguish two batches with the same labels.
        for _ in range(2 * len(sampler)):
            if model.labels[first].tolist() != model.labels[second].tolist():
                break
            sampler.discard(indices=first)
            first, second = second, sampler.draw().clone()
        else:
            pytest.skip("All batches of two passes had the same labels.")
        given = {"logits": model.logits[second], "targets": model.labels[second]}
        for proof in ({}, {"indices": second}, {"indices": second.tolist()}):
            with pytest.raises(FeedbackError, match="the draw 1 later: call discard"):
                sampler.update(model.losses[second], **given, **proof)
        with pytest.raises(FeedbackError, match="the draw 1 later"):
            sampler.discard(indices=second)
        assert sampler.outstanding == 2
        sampler.discard(indices=first)
        sampler.update(model.losses[second], **given, indices=second)
        assert sampler.outstanding == 0

    def test_update_returns_differentiable_mean(self, model: TableModel) -> None:
        """The scalar returned is a weighted mean of the losses, to be back-propagated."""
        sampler = self._make(model)
        model.run(sampler, 5)
        indices = sampler.draw()
        losses = model.losses[indices].clone().requires_grad_()
        loss = model.answer(sampler, indices, lambda _: losses)
        (weights,) = torch.autograd.grad(loss, losses)
        assert bool((weights >= 0).all())
        weighted = float((weights * losses.detach()).sum())
        assert math.isclose(float(loss.detach()), weighted, rel_tol=1e-4)

    def test_non_finite_losses_leave_no_trace(self, model: TableModel) -> None:
        """A batch of NaN and infinity is as if it had never been answered."""
        answered, abandoned = self._make(model), self._make(model)
        for sampler in (answered, abandoned):
            model.run(sampler, 10)
        bad = torch.tensor([math.nan, math.inf, -math.inf, math.nan]).repeat(self.batch_size)
        first = answered.draw()
        model.answer(answered, first, lambda losses: bad[: len(losses)])
        assert torch.equal(first, abandoned.draw())
        abandoned.discard()
        second = answered.draw()
        assert torch.equal(second, abandoned.draw())
        for sampler in (answered, abandoned):
            model.answer(sampler, second)
        assert torch.equal(model.run(answered, 25), model.run(abandoned, 25))

    def test_all_non_finite_losses_are_alike(self, model: TableModel) -> None:
        """Only the place of a non-finite loss matters, not which it is."""
        samplers = [self._make(model) for _ in range(3)]
        for sampler, value in zip(samplers, (math.nan, math.inf, -math.inf), strict=True):
            for _ in range(10):
                model.answer(sampler, sampler.draw(), _spoil(value))
        streams = [model.run(sampler, 25) for sampler in samplers]
        assert all(torch.equal(streams[0], other) for other in streams[1:])

    def test_same_seed_same_stream(self, model: TableModel) -> None:
        """Equal seeds give equal streams, different seeds different ones."""
        first, again, other = (self._make(model, seed=seed) for seed in (7, 7, 8))
        stream = model.run(first, 25)
        assert torch.equal(stream, model.run(again, 25))
        assert not torch.equal(stream, model.run(other, 25))

    def test_leaves_global_randomness_alone(self, model: TableModel) -> None:
        """The global generator does not change the stream, nor the sampler the generator."""
        torch.manual_seed(1)
        stream = model.run(self._make(model), 10)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        assert torch.equal(stream, model.run(self._make(model), 10))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("progress", [0.5, 1.0])
    def test_state_continues_the_stream(self, model: TableModel, progress: float) -> None:
        """A state saved to a file, safely loaded, continues the stream to the last index."""
        sampler = self._make(model)
        model.run(sampler, 15)
        sampler.set_progress(progress)
        model.run(sampler, 5)
        file = io.BytesIO()
        state = sampler.state_dict()
        torch.save(state, file)
        stream = model.run(sampler, 25)
        file.seek(0)
        loaded = self._make(model).load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(stream, model.run(loaded, 25))
        # The saved state must not change with the sampler, nor two samplers share what is loaded.
        reused = self._make(model)
        model.run(reused, 3)
        reused.load_state_dict(state)
        assert torch.equal(stream, model.run(reused, 25))
        assert torch.equal(stream, model.run(reused.load_state_dict(state), 25))

    def test_refuses_the_state_of_another_sampler(self, model: TableModel) -> None:
        """A state of another seed, batch size, rank or labels is an error that names it."""
        sampler = self._make(model)
        model.run(sampler, 3)
        state = sampler.state_dict()
        other = TableModel(self.num_examples, self.num_classes)
        other.labels = other.labels.roll(1)
        larger = TableModel(self.num_examples + self.num_classes, self.num_classes)
        for made, name in (
            (self._make(model, seed=3), "seed is 0 there and 3 here"),
            (self._make(model, batch_size=self.batch_size - 1), "batch_size"),
            (self._make(model, rank=1, world_size=2), "rank"),
            (self._make(other), "labels"),
            (self._make(larger), "examples"),
        ):
            with pytest.raises(ValueError, match=name):
                made.load_state_dict(state)
        with pytest.raises(ValueError, match="state must be"):
            sampler.load_state_dict({})

    def test_refuses_state_inside_a_batch(self, model: TableModel) -> None:
        """There is no state while a draw waits for its losses."""
        sampler = self._make(model)
        indices = sampler.draw()
        with pytest.raises(FeedbackError, match="outstanding"):
            sampler.state_dict()
        model.answer(sampler, indices)
        sampler.state_dict()

    def test_ranks_split_the_examples(self, model: TableModel) -> None:
        """Ranks draw from disjoint shares that cover everything, with streams of their own."""
        samplers = self._ranks(model, 3, batch_size=4)
        shares = [set(sampler.examples.tolist()) for sampler in samplers]
        assert sum(map(len, shares)) == len(set.union(*shares)) == self.num_examples
        for sampler, share in zip(samplers, shares, strict=True):
            assert set(model.run(sampler, 30).flatten().tolist()) <= share

    def test_ranks_have_passes_of_one_length(self, model: TableModel) -> None:
        """If examples do not divide evenly, all ranks have equally many batches and one bound."""
        world = self.batch_size - 1
        smallest = self.num_examples // world
        assert self.num_examples % world
        for batch_size in range(1, smallest + 1):
            samplers = self._ranks(model, world, batch_size=batch_size)
            (length,) = {len(sampler) for sampler in samplers}
            assert all(length * batch_size >= sampler.num_examples for sampler in samplers)
        assert [len(list(sampler)) for sampler in samplers] == [length] * world
        for rank in range(world):
            with pytest.raises(ValueError, match=rf"batch_size must be in \[1, {smallest}\]"):
                self._make(model, rank=rank, world_size=world, batch_size=smallest + 1)
        with pytest.raises(ValueError, match="rank"):
            self._make(model, rank=2, world_size=2)
        with pytest.raises(ValueError, match="world_size"):
            self._make(model, world_size=self.num_examples + 1, batch_size=1)

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_data_loader(
        self, model: TableModel, monkeypatch: pytest.MonkeyPatch, num_workers: int
    ) -> None:
        """In a ``DataLoader``, with or without workers, losses answer the draw of their batch."""
        if num_workers and not self.workers:
            pytest.skip("Worker processes are not tried for this sampler.")
        sampler = self._make(model)
        answered = _record_answers(sampler, monkeypatch)
        examples = TensorDataset(torch.arange(self.num_examples))
        loader = DataLoader(examples, batch_sampler=sampler, num_workers=num_workers)
        lags = set()
        for _ in range(2):
            for (indices,) in loader:
                lags.add(sampler.outstanding)
                model.answer(sampler, indices)
                assert torch.equal(answered[-1].cpu(), indices)
        assert len(answered) == 2 * len(sampler)
        # With workers a loader has drawn two more batches for each worker than it has returned.
        assert max(lags) == (1 if num_workers == 0 else 2 * num_workers + 1)

    def test_statistics_are_finite(self, model: TableModel) -> None:
        """Statistics for learning curves are plain numbers of promised names and ranges."""
        sampler = self._make(model)
        model.run(sampler, 20)
        statistics = sampler.statistics()
        assert set(statistics) <= set(SAMPLER_STATISTICS)
        for value in statistics.values():
            assert type(value) is float
            assert 0 <= value <= 1

    def test_weighted_mean_is_unbiased(self, model: TableModel) -> None:
        """Over many draws the weighted mean loss is the mean loss of all examples.

        The errors of successive draws are martingale differences. So their sum, divided by the root
        of their sum of squares, is about standard normal. It is beyond 4.5 once in 150,000 runs.
        """
        if not self.unbiased:
            pytest.skip("This sampler does not promise unbiased weights.")
        sampler = self._make(model)
        model.run(sampler, 100)
        truth = model.losses.mean()
        errors = torch.stack([model.answer(sampler, sampler.draw()) - truth for _ in range(400)])
        assert float(errors.sum().abs() / errors.square().sum().sqrt()) < 4.5

    def test_on_cuda(self, model: TableModel) -> None:
        """On CUDA: same seed, same stream; a state continues it; non-finite losses pass."""
        if not torch.cuda.is_available():
            pytest.skip("Needs a CUDA device.")
        sampler, again = self._make(model, device="cuda"), self._make(model, device="cuda")
        indices = sampler.draw()
        assert torch.equal(indices, again.draw())
        for one in (sampler, again):
            model.answer(one, indices, _spoil(math.nan))
        stream = model.run(sampler, 40)
        assert torch.equal(stream, model.run(again, 40))
        state = sampler.state_dict()
        stream = model.run(sampler, 40)
        loaded = self._make(model, device="cuda").load_state_dict(state)
        assert torch.equal(stream, model.run(loaded, 40))


def _record_answers(sampler: BatchSampler, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The list that the indices of each answered draw are appended to."""
    answered: list[Tensor] = []
    learn = sampler._learn

    def record(draw: Any, *feedback: Any) -> None:
        answered.append(draw.indices)
        learn(draw, *feedback)

    monkeypatch.setattr(sampler, "_learn", record)
    return answered


def _spoil(value: float) -> Callable[[Tensor], Tensor]:
    """A function that replaces every third loss, [B], by a value."""
    return lambda losses: losses.index_fill(
        0, torch.arange(0, len(losses), 3, device=losses.device), value
    )
