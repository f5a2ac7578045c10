"""Gradient-norm sampling: scores, switch and weights."""

from __future__ import annotations

import pytest
import torch

from hpo_mab.samplers import GradNormSampler

LABELS = torch.arange(40) % 2


def _logits(indices: torch.Tensor) -> torch.Tensor:
    """Two classes; every eighth example is badly wrong, the others are right."""
    margin = torch.where(indices % 8 == 0, -4.0, 4.0)
    right = torch.nn.functional.one_hot(LABELS[indices], 2)
    return margin[:, None] * right


def _scores(indices: torch.Tensor) -> torch.Tensor:
    truth = torch.nn.functional.one_hot(LABELS[indices], 2)
    return (torch.softmax(_logits(indices), 1) - truth).norm(dim=1)


def _step(sampler: GradNormSampler) -> torch.Tensor:
    indices = sampler.draw()
    sampler.update(torch.ones(len(indices)), logits=_logits(indices))
    return indices


def _reduction(scores: torch.Tensor) -> float:
    shares = scores / scores.sum()
    return float((len(scores) * shares.square().sum()).sqrt())


def test_tau_follows_the_batch_while_off() -> None:
    sampler = GradNormSampler(LABELS, batch_size=8, threshold=100.0)
    tau = 0.0
    for _ in range(6):
        tau = 0.9 * tau + 0.1 * _reduction(_scores(_step(sampler)))
        assert sampler.tau == pytest.approx(tau, rel=1e-5)


@pytest.mark.parametrize(("presample", "threshold"), [(3, 2.0), (6, 3.0)])
def test_default_threshold_is_break_even(presample: int, threshold: float) -> None:
    assert GradNormSampler(LABELS, batch_size=8, presample=presample).threshold == threshold


def test_off_draws_are_a_plain_shuffle() -> None:
    sampler = GradNormSampler(LABELS, batch_size=8, threshold=100.0)
    taken = torch.cat([_step(sampler) for _ in range(5)])
    assert sorted(taken.tolist()) == list(range(40))
    indices = sampler.draw()
    losses = torch.arange(8.0)
    assert float(sampler.update(losses, logits=_logits(indices))) == 3.5


def test_switches_on_when_scores_are_uneven() -> None:
    sampler = GradNormSampler(LABELS, batch_size=8, threshold=1.5)
    share = torch.cat([_step(sampler) for _ in range(80)])[320:] % 8 == 0
    assert sampler.tau > 1.5
    assert float(share.float().mean()) > 0.5  # An eighth under uniform sampling.


def test_stays_off_when_scores_are_even() -> None:
    sampler = GradNormSampler(LABELS, batch_size=8)
    for _ in range(60):
        sampler.draw()
        sampler.update(torch.ones(8), logits=torch.zeros(8, 2))
    assert sampler.tau == pytest.approx(1.0, abs=0.01)


def test_scorer_scores_candidates_and_weights_are_inverse_probabilities() -> None:
    sampler = GradNormSampler(LABELS, batch_size=8, threshold=0.0)
    seen: list[torch.Tensor] = []

    def scorer(indices: torch.Tensor) -> torch.Tensor:
        seen.append(indices)
        return _logits(indices)

    sampler.scorer = scorer
    _step(sampler)
    assert seen == []  # Off at first: tau starts at 0.
    tau = sampler.tau
    indices = sampler.draw()
    (candidates,) = seen
    assert candidates.shape == (24,)
    assert set(indices.tolist()) <= set(candidates.tolist())
    scores = _scores(candidates)
    raised = scores.clamp_min(0.05 * scores.mean())
    assert sampler.tau == pytest.approx(0.9 * tau + 0.1 * _reduction(raised), rel=1e-5)
    by_index = dict(zip(candidates.tolist(), (raised / raised.sum()).tolist(), strict=True))
    weights = torch.tensor([1 / (24 * by_index[i]) for i in indices.tolist()])
    losses = torch.rand(8, generator=torch.Generator().manual_seed(0))
    loss = sampler.update(losses, logits=_logits(indices))
    torch.testing.assert_close(loss, (weights * losses).mean(), rtol=1e-4, atol=0)


def test_scorer_sees_indices_of_the_whole_data_set() -> None:
    sampler = GradNormSampler(LABELS, batch_size=4, threshold=0.0, rank=1, world_size=2)
    seen: list[torch.Tensor] = []
    sampler.scorer = lambda indices: seen.append(indices) or _logits(indices)  # type: ignore[func-returns-value]
    for _ in range(30):
        _step(sampler)
    assert set(torch.cat(seen).tolist()) == set(sampler.examples.tolist())


@pytest.mark.parametrize(
    ("name", "value"), [("presample", 0), ("threshold", -1.0), ("tau_decay", 1.0)]
)
def test_refuses_knobs_outside_their_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        GradNormSampler(LABELS, batch_size=4, **{name: value})  # type: ignore[arg-type]
