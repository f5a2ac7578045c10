"""MABSampler through its public interface."""

from __future__ import annotations

import copy
import math
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo_mab._errors import ArgumentError
from hpo_mab.samplers._mab import MABSampler

LABELS = torch.arange(203) % 7

VARIANTS: dict[str, dict[str, Any]] = {
    "window": {},
    "nothing forgotten": {"memory": None},
    "discount": {"discount": 0.95},
    "floor and correction": {"floor": 0.2, "correction": 0.5},
    "softmax": {"policy": "softmax"},
    "softmax discounted": {"policy": "softmax", "discount": 0.95, "correction": 1.0},
}


def losses_of(indices: torch.Tensor) -> torch.Tensor:
    """Losses that persist: an example's number decides."""
    return (indices * 37 % 101).float() / 101


def answer(sampler: MABSampler, *, steps: int) -> list[list[int]]:
    """Draw and answer batches; returns them."""
    batches = []
    for _ in range(steps):
        indices = sampler.draw()
        sampler.update(losses_of(indices))
        batches.append(indices.tolist())
    return batches


def test_every_batch_has_one_example_of_each_share() -> None:
    sampler = MABSampler(LABELS, batch_size=10)
    shares = [set(share[share >= 0].tolist()) for share in sampler.shares]
    assert sorted(example for share in shares for example in share) == list(range(203))
    for batch in answer(sampler, steps=50):
        assert all(index in share for index, share in zip(batch, shares, strict=True))


def test_propensities_are_of_the_examples_of_the_rank() -> None:
    sampler = MABSampler(LABELS, batch_size=8, rank=1, world_size=3)
    answer(sampler, steps=30)
    found = sampler.propensities()
    assert found.sum().item() == pytest.approx(8)
    assert found.nonzero().flatten().tolist() == sampler.examples.tolist()


@pytest.mark.parametrize("correction", [0.5, 1.0])
@pytest.mark.parametrize(
    "knobs",
    [{}, {"policy": "softmax", "discount": 0.9}, {"policy": "epsilon_greedy", "epsilon": 0.5}],
)
def test_weights_are_a_power_of_the_propensities(knobs: dict[str, Any], correction: float) -> None:
    sampler = MABSampler(LABELS, batch_size=10, correction=correction, floor=0.2, **knobs)
    answer(sampler, steps=30)
    propensities = sampler.propensities()
    draw = sampler._draw()
    assert draw.weights is not None
    expected = (203 / 10 * propensities[draw.indices]) ** -correction
    assert torch.allclose(draw.weights, expected.float(), rtol=1e-5)
    assert draw.weights.std() > 0.01


def test_loss_is_the_plain_mean_without_correction() -> None:
    sampler = MABSampler(LABELS, batch_size=10)
    losses = losses_of(sampler.draw()).requires_grad_()
    loss = sampler.update(losses)
    loss.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [pytest.approx(0.1)] * 10


@pytest.mark.parametrize("knobs", [{"memory": None}, {"discount": 1 - 1e-12}])
def test_late_feedback_counts_for_the_arms_it_belongs_to(knobs: dict[str, Any]) -> None:
    sampler = MABSampler(LABELS, batch_size=10, **knobs)
    waiting: list[torch.Tensor] = []
    pulls = torch.zeros(203)
    for _ in range(150):
        waiting.append(sampler.draw())
        if len(waiting) > 7:
            answered = waiting.pop(0)
            sampler.update((answered < 60).float())
            pulls[answered] += 1
    assert sampler.outstanding == 7
    held = sampler.shares >= 0
    counted = torch.zeros(203, 2)
    counted[sampler.shares[held].long()] = sampler._engine.counts()[held].float()
    assert torch.allclose(counted.sum(dim=1), pulls)
    # A loss of 1 reaches any mean of zeros and ones.
    assert torch.allclose(counted[:60, 0], pulls[:60])
    assert counted[60:, 1].sum() > 0.9 * pulls[60:].sum()


def test_share_of_the_budget_ends_the_bandits() -> None:
    sampler = MABSampler(LABELS[:200], batch_size=10, active=0.5, correction=0.5)
    sampler.set_progress(0.49)
    answer(sampler, steps=50)
    assert sampler._draw().weights is not None
    sampler.set_progress(0.5)
    visited = [index for batch in answer(sampler, steps=20) for index in batch]
    assert sorted(visited) == list(range(200))
    assert sampler._draw().weights is None


def test_statistics_are_those_since_the_last_call() -> None:
    sampler = MABSampler(LABELS, batch_size=10, loss_decay=0.0)
    assert sampler.statistics() == {}
    for losses in (torch.arange(10.0), torch.full((10,), 9.0)):
        sampler.draw()
        sampler.update(losses)
    # 5 of the first 10 reach their own mean, all of the second reach that of the first.
    found = sampler.statistics()
    assert found["reward_rate"] == 0.75
    # 20 draws of at most 2 an example: the 20 most-drawn hold all of them.
    assert found["concentration"] == 1.0
    assert "reward_rate" not in sampler.statistics()
    answer(sampler, steps=400)
    assert 0.1 < sampler.statistics()["concentration"] < 0.7


@pytest.mark.parametrize(("examples", "batch_size"), [(1, 1), (5, 5), (7, 1), (9, 8)])
def test_smallest_sizes(examples: int, batch_size: int) -> None:
    sampler = MABSampler(torch.zeros(examples), batch_size=batch_size, memory=3, correction=0.5)
    drawn = {index for batch in answer(sampler, steps=200) for index in batch}
    assert drawn == set(range(examples))


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ArgumentError, match="seed must be at least 0, got -1"):
        MABSampler(LABELS, batch_size=10, seed=-1)


def test_memory_stays_within_sixteen_bytes_an_example() -> None:
    sampler = MABSampler(torch.zeros(128 * 2000), batch_size=128)
    rng = torch.Generator().manual_seed(0)
    for _ in range(100):
        sampler.draw()
        sampler.update(torch.rand(128, generator=rng))
    # All that the sampler holds but the labels, which are the caller's own.
    held = len(pickle.dumps(sampler)) - sampler.labels.nbytes
    assert 4 * 256_000 < held <= 16 * 256_000


@pytest.mark.parametrize("knobs", VARIANTS.values(), ids=VARIANTS)
def test_copies_continue_independently(knobs: dict[str, Any]) -> None:
    sampler = MABSampler(LABELS, batch_size=10, **knobs)
    answer(sampler, steps=30)
    other = copy.deepcopy(sampler)
    expected = answer(sampler, steps=30)
    assert answer(other, steps=30) == expected


@pytest.mark.parametrize("knobs", VARIANTS.values(), ids=VARIANTS)
def test_what_is_read_or_copied_before_the_first_draw_changes_no_draw(
    knobs: dict[str, Any],
) -> None:
    sampler = MABSampler(LABELS, batch_size=10, **knobs)
    held = sampler.shares.clone()
    other = pickle.loads(pickle.dumps(sampler))
    assert "_engine" not in vars(sampler)
    expected = answer(MABSampler(LABELS, batch_size=10, **knobs), steps=30)
    assert answer(sampler, steps=30) == answer(other, steps=30) == expected
    assert torch.equal(sampler.shares, held)


def test_the_first_draw_may_be_in_inference_mode() -> None:
    sampler = MABSampler(LABELS, batch_size=10, policy="softmax")
    with torch.inference_mode():
        indices = sampler.draw()
    sampler.update(losses_of(indices))
    assert len(answer(sampler, steps=3)) == 3


_BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/slow_examples.py"))


def share_of_special(*, learnable: bool, **knobs: Any) -> float:
    """The benchmark's figure for one seed of `mab`."""
    return _BENCHMARK["share_of_special"]("mab", knobs, learnable=learnable, seed=0)


def test_signal_is_drawn_several_times_as_often_as_uniformly() -> None:
    # Uniform sampling draws a tenth.
    assert share_of_special(learnable=True, memory=None) > 0.4
    assert share_of_special(learnable=True, memory=100) > 0.3


def test_forgetting_bounds_the_share_of_mislabelled_draws() -> None:
    literal = share_of_special(learnable=False, memory=None)
    windowed = share_of_special(learnable=False)
    floored = share_of_special(learnable=False, floor=0.5)
    assert literal > 0.6
    assert windowed < 0.25
    assert floored < windowed


@pytest.mark.parametrize("policy", ["softmax", "epsilon_greedy"])
def test_other_policies_seek_high_losses_too(policy: str) -> None:
    assert share_of_special(learnable=False, policy=policy, memory=None) > 0.3


def test_floor_of_one_is_uniform() -> None:
    # 13,340 draws at 0.1: five standard errors are 0.013.
    assert share_of_special(learnable=False, memory=None, floor=1.0) == pytest.approx(0.1, abs=0.02)


def test_the_bandits_draw_at_the_end_of_the_budget_too() -> None:
    sampler = MABSampler(LABELS, batch_size=10, correction=0.5)
    sampler.set_progress(1.0)
    assert sampler._draw().weights is not None


@pytest.mark.parametrize("knobs", VARIANTS.values(), ids=VARIANTS)
def test_a_batch_with_a_loss_that_is_not_finite_is_not_judged(knobs: dict[str, Any]) -> None:
    sampler = MABSampler(LABELS, batch_size=3, **knobs)
    for losses in ([math.inf, 3.0, 1.0], [0.0, 1.0, 5.0]):
        sampler.draw()
        sampler.update(torch.tensor(losses))
    # Of the second batch, one loss reaches the mean.
    assert sampler.statistics()["reward_rate"] == 1 / 3


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 2.0), ("batch_size", True), ("seed", None), ("rank", "0")]
)
def test_counts_are_integers(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must be an integer, got {value!r}"):
        MABSampler([0, 1] * 5, **{"batch_size": 2, name: value})


def test_the_batch_size_cannot_be_changed() -> None:
    sampler = MABSampler([0, 1] * 5, batch_size=2)
    with pytest.raises(AttributeError):
        sampler.batch_size = 4  # type: ignore[misc]


@pytest.mark.parametrize("policy", ["epsilon_greedy", "softmax"])
def test_every_policy_decides_on_a_cpu(policy: str) -> None:
    knobs = {"epsilon": 0.0, "temperature": 0.01}
    sampler = MABSampler(torch.zeros(40), batch_size=4, memory=None, policy=policy, **knobs)
    for _ in range(30):
        sampler.update(sampler.draw().float())
    shares = sampler.shares
    chances = sampler.propensities()[shares.long()]
    # Almost surely one of the best arms, each of which Thompson sampling would often leave.
    best = chances >= chances.amax(dim=1, keepdim=True) - 1e-9
    assert torch.allclose(
        (chances * best).sum(dim=1), torch.ones(4, dtype=torch.float64), atol=0.01
    )
    assert best.sum(dim=1).max() < 10


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="device must be one that this machine has, got cuda"):
        MABSampler([0, 1] * 5, batch_size=2, device="cuda")
