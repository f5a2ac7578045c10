"""Samplers against plain transcriptions of the published formulas, in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpo_mab import samplers
from hpo_mab.samplers import AdamBSSampler, GradNormSampler
from hpo_mab.samplers._streams import gradient_bound

EXAMPLES, CLASSES, BATCH = 60, 5, 12
LABELS = torch.arange(EXAMPLES) % CLASSES


def _logits(generator: torch.Generator, indices: Tensor) -> Tensor:
    """Outputs of a model that changes from step to step."""
    noise = torch.randn(len(indices), CLASSES, generator=generator)
    return noise + (indices[:, None] % 7) * F.one_hot(LABELS[indices], CLASSES) / 2


def _true_label_probability(logits: Tensor, indices: Tensor) -> np.ndarray[Any, Any]:
    probability = torch.softmax(logits.double(), dim=1)
    return probability[torch.arange(len(indices)), LABELS[indices]].numpy()


def _answer(sampler: Any, indices: Tensor, logits: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, LABELS[indices], reduction="none")
    loss: Tensor = sampler.update(losses, logits=logits, targets=LABELS[indices])
    return loss


@pytest.mark.parametrize("smoothing", [0.5, 1.0])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["psgd", "csgd"])
def test_probabilities_of_arazo_et_al(kind: str, corrected: bool, smoothing: float) -> None:
    """Running means over all visits, the unseen like the hardest, then the smoothed scores.

    The published code of c-SGD takes the hardest before it forms ``a (1 - a)``.
    """

    def score(means: Any) -> Any:
        return means if kind == "psgd" else means * (1 - means)

    sampler: Any = samplers.create(
        kind, LABELS, batch_size=BATCH, budget=0.4, smoothing=smoothing, corrected=corrected, seed=1
    )
    generator = torch.Generator().manual_seed(0)
    history: list[list[float]] = [[] for _ in range(EXAMPLES)]
    for _ in range(40):
        indices = sampler.draw()
        logits = _logits(generator, indices)
        _answer(sampler, indices, logits)
        for index, probability in zip(
            indices.tolist(), _true_label_probability(logits, indices), strict=True
        ):
            history[index].append(1 - probability)
        seen = np.array([np.mean(visits) for visits in history if visits])
        unseen = score(seen).max() if corrected else score(seen.max())
        scores = np.array([score(np.mean(visits)) if visits else unseen for visits in history])
        scores = scores + smoothing * scores.mean()
        expected = scores / scores.sum()
        np.testing.assert_allclose(sampler.probabilities().numpy(), expected, rtol=1e-5)


def test_gradient_bound_is_the_gradient_at_the_outputs() -> None:
    """Equation 20 of Katharopoulos and Fleuret, against automatic differentiation."""
    logits = 3 * torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(200) % CLASSES
    outputs = logits.double().requires_grad_()
    F.cross_entropy(outputs, targets, reduction="sum").backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    expected = outputs.grad.norm(dim=1)
    torch.testing.assert_close(
        gradient_bound(logits, targets).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_switch_and_weights_of_katharopoulos_and_fleuret() -> None:
    """Algorithm 1: tau, the switch, and weights ``1 / (K g)``, at every one of 120 steps."""
    sampler = GradNormSampler(LABELS, batch_size=BATCH, presample=3, threshold=1.2, seed=2)
    generator = torch.Generator().manual_seed(0)
    fixed = _logits(generator, torch.arange(EXAMPLES)) * 2
    candidates: list[Tensor] = []

    def scorer(indices: Tensor) -> Tensor:
        candidates.append(indices)
        return fixed[indices]

    sampler.scorer = scorer
    norms = (torch.softmax(fixed.double(), 1) - F.one_hot(LABELS, CLASSES)).norm(dim=1)
    tau, switched = 0.0, set()
    for _ in range(120):
        on = tau > 1.2
        switched.add(on)
        indices = sampler.draw()
        assert bool(candidates) == on
        scores, weights = norms[indices], torch.ones(BATCH, dtype=torch.float64)
        if on:
            assert set(indices.tolist()) <= set(candidates[-1].tolist())
            scores = norms[candidates.pop()]
            scores = scores.clamp_min(0.05 * scores.mean())
            share = norms[indices].clamp_min(0.05 * scores.mean()) / scores.sum()
            weights = 1 / (3 * BATCH * share)
        losses = F.cross_entropy(fixed[indices], LABELS[indices], reduction="none")
        loss = _answer(sampler, indices, fixed[indices])
        assert float(loss) == pytest.approx(float((weights * losses).mean()), rel=1e-3)
        reduction = math.sqrt(len(scores) * float((scores / scores.sum()).square().sum()))
        tau = 0.9 * tau + 0.1 * reduction
        assert sampler.tau == pytest.approx(tau, rel=1e-4)
    assert switched == {False, True}


@pytest.mark.parametrize(("floor", "step"), [(0.3, 0.5), (0.5, 4.0)])
def test_distribution_of_liu_et_al(floor: float, step: float) -> None:
    """Exponential weights, and the projection on mean 1 and the floor solved to the last digit."""
    sampler = AdamBSSampler(LABELS, batch_size=BATCH, step=step, floor=floor, seed=3)
    generator = torch.Generator().manual_seed(0)
    ratios = np.ones(EXAMPLES)
    worst = 0.0
    for _ in range(200):
        indices = sampler.draw()
        logits = _logits(generator, indices)
        own = ratios / ratios.sum()
        loss = _answer(sampler, indices, logits)
        losses = F.cross_entropy(logits, LABELS[indices], reduction="none").double().numpy()
        weighted = (losses / (EXAMPLES * own[indices.numpy()])).mean()
        assert float(loss) == pytest.approx(weighted, rel=1e-3)
        exponents = np.zeros(EXAMPLES)
        squares = gradient_bound(logits, LABELS[indices]).double().numpy() ** 2
        for index, square in zip(indices.tolist(), squares, strict=True):
            ratio = EXAMPLES * own[index]
            exponents[index] += min(1.0, step * square / 2 / ratio**3)
        ratios = _projected(ratios * np.exp(exponents), floor)
        expected = ratios / ratios.sum()
        found = sampler.probabilities().numpy()
        assert found.sum() == pytest.approx(1, abs=1e-5)
        worst = max(worst, float(np.abs(found / expected - 1).max()))
    assert worst < 0.02
    assert ratios.min() == pytest.approx(floor)
    assert ratios.max() > 3 * ratios.min()


def _projected(ratios: np.ndarray[Any, Any], floor: float) -> np.ndarray[Any, Any]:
    """``max(floor, c q)`` of mean 1, ``c`` by bisection."""
    low, high = 0.0, len(ratios) / ratios.sum()
    for _ in range(100):
        middle = (low + high) / 2
        if np.maximum(floor, middle * ratios).mean() < 1:
            low = middle
        else:
            high = middle
    return np.maximum(floor, high * ratios)
