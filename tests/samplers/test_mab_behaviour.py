"""What the bandits seek, on losses that are made up: signal, and label noise."""

from typing import Any

import pytest
import torch

from hpo_mab.samplers._mab import MABSampler

EXAMPLES, BANDITS, PASSES = 2000, 20, 6
#: The tenth of the examples that carries the signal, or a flipped label.
SPECIAL = torch.arange(EXAMPLES) % 10 == 3


def share_of_special(*, learnable: bool, **knobs: Any) -> float:
    """Share of the special examples among the draws of the last third of the budget.

    Args:
        learnable: Whether their loss falls as the others' does, by how often they were trained on;
            a flipped label's does not.
        **knobs: Of the sampler.
    """
    generator = torch.Generator().manual_seed(0)
    sampler = MABSampler(torch.zeros(EXAMPLES), batch_size=BANDITS, **knobs)
    visits = torch.zeros(EXAMPLES)
    steps = PASSES * len(sampler)
    drawn = 0
    for step in range(steps):
        indices = sampler.draw()
        special = SPECIAL[indices]
        # Clean examples are learned from one another, and each a little more from itself; what is
        # rare takes longer.
        passes = step / len(sampler)
        fall = torch.exp(-passes / torch.where(special, 6, 1.5) - 0.05 * visits[indices])
        level = torch.where(special & (not learnable), 3.0, torch.where(special, 3.0, 1.5) * fall)
        noise = 0.5 + 0.5 * torch.empty(BANDITS).exponential_(generator=generator)
        sampler.update(level * noise)
        visits[indices] += 1
        drawn += int(special.sum()) if step >= 2 * steps // 3 else 0
    return drawn / (BANDITS * (steps - 2 * steps // 3))


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


@pytest.mark.parametrize("policy", ["softmax", "epsilon_greedy", "ucb1"])
def test_other_policies_seek_high_losses_too(policy: str) -> None:
    assert share_of_special(learnable=False, policy=policy, memory=None) > 0.3


def test_floor_of_one_is_uniform() -> None:
    # 13,340 draws at 0.1: five standard errors are 0.013.
    assert share_of_special(learnable=False, memory=None, floor=1.0) == pytest.approx(0.1, abs=0.02)
