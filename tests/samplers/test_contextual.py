"""The contextual bandit and the regression sampler on synthetic signals."""

from __future__ import annotations

import pytest
import torch

from hpo_mab.samplers import ContextualSampler, ImponSampler

LABELS = torch.arange(400) % 10


def _run(sampler: ContextualSampler | ImponSampler, hard: torch.Tensor) -> float:
    """Share of hard examples among the last 100 of 200 batches; their loss is 3, others' 0.3."""
    noise = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        indices = sampler.draw()
        losses = torch.where(hard[indices], 3.0, 0.3)
        sampler.update(losses * (1 + 0.2 * torch.rand(len(indices), generator=noise)))
        found.append(hard[indices].float().mean())
    return float(torch.stack(found[100:]).mean())


@pytest.fixture(params=["class", "scattered"])
def hard(request: pytest.FixtureRequest) -> torch.Tensor:
    """A tenth of the examples: one whole class, or four of each class."""
    if request.param == "class":
        return LABELS == 3
    return torch.arange(400) % 100 < 10


def test_contextual_draws_rewarded_examples_more(hard: torch.Tensor) -> None:
    """Eight candidates hold a hard one with probability 0.57; the floor takes a tenth."""
    sampler = ContextualSampler(LABELS, batch_size=20)
    assert _run(sampler, hard) > 0.3
    assert sampler.statistics()["reward_rate"] > 0.2


def test_impon_draws_predicted_losses_more(hard: torch.Tensor) -> None:
    """In proportion to the loss, with smoothing 0.5: (3 + 0.285) / (10 * 0.855) = 0.38."""
    assert _run(ImponSampler(LABELS, batch_size=20), hard) == pytest.approx(0.38, abs=0.08)


def test_one_candidate_or_full_floor_is_uniform() -> None:
    for knobs in ({"candidates": 1}, {"floor": 1.0}):
        sampler = ContextualSampler(LABELS, batch_size=20, **knobs)
        assert _run(sampler, LABELS == 3) == pytest.approx(0.1, abs=0.03)


def test_contextual_batches_hold_no_example_twice() -> None:
    sampler = ContextualSampler(LABELS[:100], batch_size=30)
    assert sampler.candidates == 3  # As many as there are examples for.
    for _ in range(100):
        indices = sampler.draw()
        sampler.update(torch.rand(30, generator=torch.Generator().manual_seed(0)))
        assert len(set(indices.tolist())) == 30


def test_contextual_forgets() -> None:
    """After the signal moves to another class, so do the draws."""
    sampler = ContextualSampler(LABELS, batch_size=20, decay=0.95)
    assert _run(sampler, LABELS == 3) > 0.3
    assert _run(sampler, LABELS == 7) > 0.25


def test_impon_weights_are_inverse_probabilities_over_candidates() -> None:
    """All examples candidates with equal chances: the mean weight of a draw is about 1."""
    sampler = ImponSampler(LABELS, batch_size=20)
    _run(sampler, LABELS == 3)
    means = []
    for _ in range(200):
        indices = sampler.draw()
        means.append(sampler.update(torch.ones(20)))
        assert len(indices) == 20
    mean = torch.stack(means)
    assert float(mean.std()) > 0
    assert float(mean.mean()) == pytest.approx(1, abs=4.5 * float(mean.std()) / 200**0.5)
    unweighted = ImponSampler(LABELS, batch_size=20, weighted=False)
    unweighted.draw()
    assert float(unweighted.update(torch.arange(20.0))) == 9.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("candidates", 0), ("scale", -1.0), ("floor", 1.5), ("decay", 0.0), ("loss_decay", 1.0)],
)
def test_contextual_refuses_knobs_outside_their_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        ContextualSampler(LABELS, batch_size=4, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [("presample", 0), ("smoothing", 0.0), ("decay", 1.5), ("loss_decay", -1.0)]
)
def test_impon_refuses_knobs_outside_their_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        ImponSampler(LABELS, batch_size=4, **{name: value})  # type: ignore[arg-type]
