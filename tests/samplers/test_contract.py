"""Every sampler passes the contract of the package, with several options."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from tools import no_waiting
from torch import Tensor

from hpo_mab import samplers
from hpo_mab.samplers import BatchSampler
from hpo_mab.samplers._registry import SAMPLERS
from hpo_mab.testing import SamplerContract, TableModel


@pytest.mark.parametrize("kind", samplers.available())
@pytest.mark.parametrize("rank", [0, 1])
def test_samplers_work_whatever_torchs_default_device_and_type(kind: str, rank: int) -> None:
    labels = torch.arange(40) % 2
    given: dict[str, Any] = {"difficulty": np.arange(40.0)} if kind == "curriculum" else {}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            sampler = samplers.create(kind, labels, batch_size=4, rank=rank, world_size=2, **given)
            if sampler.asks_network:
                return
            indices = sampler.draw()
        logits = torch.zeros(4, 2, dtype=torch.float32)
        sampler.update(torch.ones(4, dtype=torch.float32), logits=logits)
        with torch.device("meta"):
            sampler.draw()
            if isinstance(sampler, samplers.MABSampler):
                assert sampler.propensities().device.type == "cpu"
    finally:
        torch.set_default_dtype(torch.float32)
    assert indices.device.type == "cpu"


#: Name -> kind, knobs, attributes of the contract.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Adambs": ("adambs", {}, {"unbiased": True}),
    "Contextual": ("contextual", {}, {"workers": True}),
    "Csgd": ("csgd", {}, {}),
    "Curriculum": ("curriculum", {}, {"workers": True}),
    "Gradnorm": ("gradnorm", {}, {}),
    "GradnormAlwaysOn": (
        "gradnorm",
        {"threshold": 0.0},
        {"unbiased": True, "coverage_draws": 1500},
    ),
    "HardMining": ("hard_mining", {}, {"covers": False, "workers": True}),
    "Impon": ("impon", {}, {"unbiased": True}),
    "ImponUnweighted": ("impon", {"weighted": False}, {}),
    "Infobatch": ("infobatch", {}, {"workers": True}),
    "Mab": ("mab", {}, {"workers": True}),
    "MabDiscount": ("mab", {"memory": None, "discount": 0.99}, {"coverage_draws": 1500}),
    "MabEpsilonGreedy": ("mab", {"policy": "epsilon_greedy"}, {}),
    "MabFloor": ("mab", {"floor": 0.2, "correction": 0.5, "active": 0.7}, {}),
    "MabPaper": ("mab", {"memory": None}, {"covers": False}),
    "MabSoftmax": ("mab", {"policy": "softmax"}, {}),
    "MabUnbiased": ("mab", {"floor": 0.2, "correction": 1.0}, {"unbiased": True}),
    "Psgd": ("psgd", {}, {}),
    "PsgdCorrected": ("psgd", {"corrected": True, "budget": 1.0}, {}),
    "Pvar": ("pvar", {}, {}),
    "PvarWeight": ("pvar", {"form": "weight"}, {}),
    "Uniform": ("uniform", {}, {"unbiased": True, "workers": True}),
}


def _case(name: str, kind: str, knobs: dict[str, Any], claims: dict[str, Any]) -> type:
    def make_sampler(self: SamplerContract, labels: Tensor, **arguments: Any) -> BatchSampler:
        return samplers.create(kind, labels, **arguments, **knobs)

    body = {"workers": False, **claims, "make_sampler": make_sampler, "__module__": __name__}
    return type(name, (SamplerContract,), body)


for _name, _arguments in CASES.items():
    globals()[f"Test{_name}"] = _case(f"Test{_name}", *_arguments)


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _, _ in CASES.values()} == set(samplers.available())


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(name: str) -> None:
    kind, knobs, _ = CASES[name]
    # InfoBatch waits once a pass, which is longer than the steps here.
    sampler = samplers.create(kind, torch.arange(400) % 4, batch_size=5, device="cuda", **knobs)
    losses, logits = torch.rand(5, device="cuda"), torch.randn(5, 4, device="cuda")

    def step() -> None:
        sampler.draw()
        sampler.update(losses, logits=logits)

    # Libraries are set up in the first steps.
    for _ in range(3):
        step()
    with no_waiting():
        for done in range(20):
            if done == 10 and name == "MabFloor":
                sampler.set_progress(1.0)  # From here on it draws uniformly.
            step()


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_a_state_that_was_read_to_a_card_continues_on_the_host(name: str) -> None:
    kind, knobs, _ = CASES[name]
    model = TableModel(SamplerContract.num_examples, SamplerContract.num_classes)
    sampler, other = (samplers.create(kind, model.labels, batch_size=5, **knobs) for _ in range(2))
    model.run(sampler, 20)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, map_location="cuda", weights_only=True))
    assert torch.equal(model.run(sampler, 25), model.run(other, 25))


@pytest.mark.parametrize("kind", samplers.available())
def test_every_knob_has_a_default(kind: str) -> None:
    defaults = {name: option.default for name, option in SAMPLERS.options(kind).items()}
    made = samplers.create(kind, [0, 1] * 10, batch_size=4, **defaults)
    assert len(made.draw()) == 4


def test_an_option_that_is_nan_equals_itself_in_a_state() -> None:
    class Scaled(samplers.UniformSampler):
        def __init__(self, labels: Any, *, scale: float, **common: Any) -> None:
            super().__init__(labels, **common)

    one, other = (Scaled([0, 1] * 4, batch_size=2, scale=float("nan")) for _ in "12")
    other.load_state_dict(one.state_dict())
