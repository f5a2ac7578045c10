"""Gradient-norm sampling and Adam's bandit: scores, switch, weights."""

from __future__ import annotations

import math

import pytest
import torch

from hpo_mab.samplers import AdamBSSampler, BatchSampler, GradNormSampler

LABELS = torch.arange(40) % 2


def _logits(indices: torch.Tensor) -> torch.Tensor:
    """Two classes; every eighth example is badly wrong, the others are right."""
    margin = torch.where(indices % 8 == 0, -4.0, 4.0)
    right = torch.nn.functional.one_hot(LABELS[indices], 2)
    return margin[:, None] * right


def _step(sampler: BatchSampler) -> torch.Tensor:
    indices = sampler.draw()
    sampler.update(torch.ones(len(indices)), logits=_logits(indices))
    return indices


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


def test_scorer_sees_indices_of_the_whole_data_set() -> None:
    sampler = GradNormSampler(LABELS, batch_size=4, threshold=0.0, rank=1, world_size=2)
    seen: list[torch.Tensor] = []
    sampler.scorer = lambda indices: seen.append(indices) or _logits(indices)  # type: ignore[func-returns-value]
    for _ in range(30):
        _step(sampler)
    assert set(torch.cat(seen).tolist()) == set(sampler.examples.tolist())


def _squares(indices: torch.Tensor) -> torch.Tensor:
    truth = torch.nn.functional.one_hot(LABELS[indices], 2)
    return (torch.softmax(_logits(indices), 1) - truth).square().sum(1)


def test_first_step_by_hand() -> None:
    sampler = AdamBSSampler(LABELS, batch_size=6, step=0.5, floor=0.01)
    indices = _step(sampler)
    ratios = torch.ones(40)
    for index, square in zip(indices.tolist(), _squares(indices).tolist(), strict=True):
        ratios[index] *= math.exp(min(1.0, 0.5 * square / 2))
    torch.testing.assert_close(sampler.probabilities(), ratios / ratios.sum())


def test_step_of_zero_and_floor_of_one_are_uniform() -> None:
    for knobs in ({"step": 0.0}, {"floor": 1.0}):
        sampler = AdamBSSampler(LABELS, batch_size=6, **knobs)
        for _ in range(20):
            _step(sampler)
        torch.testing.assert_close(sampler.probabilities(), torch.full((40,), 1 / 40))
