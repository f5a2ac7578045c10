"""Draws of p-SGD and c-SGD, and prediction variance against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from hpo_mab import HpoMabWarning
from hpo_mab.samplers import CSGDSampler, PredictionVarianceSampler, PSGDSampler


@pytest.mark.parametrize("sampler_class", [PSGDSampler, CSGDSampler])
def test_uniform_until_feedback(sampler_class: type[PSGDSampler | CSGDSampler]) -> None:
    sampler = sampler_class(torch.zeros(5), batch_size=2)
    torch.testing.assert_close(sampler.probabilities(), torch.full((5,), 0.2))


def test_probability_of_the_label_comes_from_logits_where_given() -> None:
    sampler = PSGDSampler([0, 1], batch_size=2, budget=0.5, smoothing=0.0, corrected=True)
    indices = sampler.draw().tolist()
    logits = torch.tensor([[0.0, math.log(3)]]).expand(2, 2)  # p = 1/4 for 0, 3/4 for 1.
    sampler.update(torch.full((2,), 7.0), logits=logits)
    seen = sampler.probabilities()
    expected = {0: 0.75, 1: 0.25}
    scores = [expected[i] if i in indices else max(expected[j] for j in indices) for i in (0, 1)]
    torch.testing.assert_close(seen, torch.tensor(scores) / sum(scores))


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_a_pass_holds_its_budget_of_distinct_examples(budget: float) -> None:
    size = int(20 * budget)
    sampler = PSGDSampler(torch.zeros(20), batch_size=1, budget=budget)
    for _ in range(5):
        taken = []
        for _ in range(size):
            taken += sampler.draw().tolist()
            sampler.update(torch.tensor([0.1 * taken[-1]]))
        assert len(set(taken)) == size


def test_full_budget_without_replacement_is_shuffling_and_warns() -> None:
    with pytest.warns(HpoMabWarning, match=r"uniform shuffling; use corrected=True"):
        sampler = PSGDSampler(torch.zeros(20), batch_size=5, budget=1.0)
    for _ in range(3):
        taken = []
        for _ in range(4):
            indices = sampler.draw()
            taken += indices.tolist()
            sampler.update(indices.float())
        assert sorted(taken) == list(range(20))


@pytest.mark.parametrize("corrected", [False, True])
def test_corrected_follows_probabilities_where_published_does_not(corrected: bool) -> None:
    """One example in ten is hard; at budget 0.9 the published draw can hardly prefer it."""
    sampler = PSGDSampler(
        torch.zeros(10), batch_size=3, budget=0.9, smoothing=1.0, corrected=corrected
    )
    hard = 0
    for step in range(600):
        indices = sampler.draw()
        sampler.update(torch.where(indices == 0, 5.0, 0.02))
        hard += int((indices == 0).sum()) if step >= 100 else 0
    share = hard / 1500
    if corrected:  # p = 0.5 * 0.85 + 0.05; standard error 0.013.
        assert share == pytest.approx(float(sampler.probabilities()[0]), abs=0.05)
    else:  # Drawn at most once a pass of 9.
        assert share < 1 / 9 + 0.01


@pytest.mark.parametrize("budget", [0.5, 1.0])
@pytest.mark.parametrize("sampler_class", [PSGDSampler, CSGDSampler])
@pytest.mark.filterwarnings("ignore:.*uniform shuffling")
def test_order_within_a_pass_is_random(
    sampler_class: type[PSGDSampler | CSGDSampler], budget: float
) -> None:
    """The scores decide which examples are drawn, not when: each batch holds as many hard ones."""
    examples, batch_size, passes = 40, 4, 400
    # The likeliest tenth: p(true label) of nearly 0 for p-SGD, one half for c-SGD.
    hard = torch.arange(examples) < examples // 10
    hard_loss = 9.0 if sampler_class is PSGDSampler else math.log(2)
    sampler = sampler_class(torch.zeros(examples), batch_size=batch_size, budget=budget, seed=3)
    batches = int(examples * budget) // batch_size
    by_place = torch.zeros(20 + passes, batches)
    for row in by_place:
        for place in range(batches):
            indices = sampler.draw()
            row[place] = hard[indices].sum()
            sampler.update(torch.where(hard[indices], hard_loss, 0.01))
    counts = by_place[20:].sum(dim=0)  # The first passes make all examples known.
    # Chi-square at a level of 1e-3.
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    chance = passes * int(hard.sum()) * budget
    assert counts.sum() == chance if budget == 1 else counts.sum() > 1.2 * chance


#: Probabilities of the true label, by example; example 3 is seen once.
HISTORY = {0: [0.2, 0.4, 0.9], 1: [0.5, 0.5], 2: [0.1, 0.7], 3: [0.3]}


def _after_history(**knobs: float) -> PredictionVarianceSampler:
    sampler = PredictionVarianceSampler(torch.zeros(4), batch_size=1, **knobs)  # type: ignore[arg-type]
    left = {index: list(values) for index, values in HISTORY.items()}
    while any(left.values()):
        (index,) = sampler.draw().tolist()
        loss = -math.log(left[index].pop()) if left[index] else math.nan
        sampler.update(torch.tensor([loss]))
    return sampler


def _scores() -> torch.Tensor:
    scores = []
    for index in range(3):
        variance = float(torch.tensor(HISTORY[index]).var())
        scores.append(math.sqrt(variance + variance**2 / (len(HISTORY[index]) - 1)))
    return torch.tensor([*scores, max(scores)])  # Too few visits: the largest.


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_probabilities(smoothing: float) -> None:
    scores = _scores() + smoothing * _scores().mean()
    torch.testing.assert_close(
        _after_history(smoothing=smoothing).probabilities(),
        scores / scores.sum(),
        atol=2e-4,  # float32 sums of squares.
        rtol=0,
    )


def test_weight_form_shuffles_and_weights_with_mean_one() -> None:
    sampler = PredictionVarianceSampler(torch.zeros(6), batch_size=6, form="weight")
    answers = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert sorted(sampler.draw().tolist()) == list(range(6))
        sampler.update(torch.rand(6, generator=answers))
    expected = 6 * sampler.probabilities()
    indices = sampler.draw()
    losses = torch.rand(6, generator=answers)
    loss = sampler.update(losses)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(loss, (expected[indices] * losses).mean())


def test_sample_form_prefers_the_undecided() -> None:
    sampler = PredictionVarianceSampler(torch.zeros(10), batch_size=5)
    counts = torch.zeros(10)
    for step in range(600):
        indices = sampler.draw()
        if step >= 100:
            counts += torch.bincount(indices, minlength=10)
        swinging = torch.tensor([0.1, 2.3])[step % 2]
        sampler.update(torch.where(indices == 4, swinging, 0.7))
    share = float(counts[4] / counts.sum())
    assert share == pytest.approx(float(sampler.probabilities()[4]), abs=0.05)
    assert share > 0.4


def test_refuses_an_unknown_form() -> None:
    with pytest.raises(ValueError, match=r"Unknown form 'weights'\. Did you mean 'weight'"):
        PredictionVarianceSampler([0, 1], batch_size=1, form="weights")  # type: ignore[arg-type]
