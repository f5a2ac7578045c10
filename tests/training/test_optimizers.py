from __future__ import annotations

import importlib.util
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.nn import Parameter

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.training import create_optimizer
from hpo_mab.training._optimizers import OPTIMIZERS, RowOptimizer


def _weights() -> list[Parameter]:
    return [Parameter(torch.ones(3)), Parameter(torch.ones(2))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_with_its_defaults(name: str) -> None:
    weights = _weights()
    optimizer = create_optimizer(name, weights)
    assert type(optimizer).__name__.lower() == name
    for _ in range(5):
        optimizer.zero_grad()
        sum((weight**2).sum() for weight in weights).backward()
        optimizer.step()
    assert all(bool((weight < 1).all()) for weight in weights)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_reaches_torch_for_all_parameters(name: str) -> None:
    chosen = {"nesterov": True, "lr": 0.3, "beta1": 0.7, "beta2": 0.8}
    options = {knob: chosen.get(knob, 0.25) for knob in OPTIMIZERS.options(name)}
    (group,) = create_optimizer(name, _weights(), **options).param_groups
    assert len(group["params"]) == 2
    if "beta1" in options:
        assert group["betas"] == (0.7, 0.8)
    for knob in set(options) - {"beta1", "beta2"}:
        assert group[knob] == options[knob]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_are_those_of_torch(name: str) -> None:
    weights = _weights()
    optimizer = create_optimizer(name, weights)
    kind = type(optimizer).__mro__[1]
    assert kind.__module__.startswith("torch.optim.")
    copies = _weights()
    # As `create_optimizer` gives them, "fused" among them.
    given = optimizer.defaults.keys() & inspect.signature(kind).parameters.keys()
    theirs = kind(copies, **{key: optimizer.defaults[key] for key in given})
    for both in ((optimizer, weights), (theirs, copies)):
        for _ in range(3):
            both[0].zero_grad()
            sum((weight**3).sum() for weight in both[1]).backward()
            both[0].step()
    for weight, copy in zip(weights, copies, strict=True):
        torch.testing.assert_close(weight, copy, rtol=0, atol=0)
        assert weight.requires_grad
        assert weight.is_leaf


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_weight_may_get_its_first_gradient_later(name: str) -> None:
    # So it does in a network that leaves out a random layer at each step.
    always, later = _weights()
    optimizer = create_optimizer(name, [always, later])
    before = later.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        (always.sum() if step == 0 else always.sum() + later.sum()).backward()
        optimizer.step()
        assert torch.equal(later, before) == (step == 0)


def test_weights_may_change_their_layout_before_the_first_step() -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    optimizer = create_optimizer("sgd", layer.parameters())
    layer.to(memory_format=torch.channels_last)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 3, 5, 5)).sum().backward()
        optimizer.step()
    for weight in layer.parameters():
        assert optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()


def test_an_optimizer_can_be_pickled() -> None:
    optimizer = create_optimizer("sgd", _weights(), lr=0.3)
    copied = pickle.loads(pickle.dumps(optimizer))
    assert type(copied) is type(optimizer)
    assert copied.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Parameter(torch.ones(2, dtype=torch.cfloat)),
        # On a CPU; some versions of torch do not write these.
        lambda: Parameter(torch.ones(2, dtype=torch.bfloat16)),
        lambda: Parameter(torch.ones(2, dtype=torch.float16)),
        lambda: Parameter(torch.ones(4, 3, 3, 3)[:, :1]),
    ],
    ids=["complex", "bfloat16", "float16", "part of a tensor"],
)
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weights_that_have_no_fused_form(name: str, make: Callable[[], Parameter]) -> None:
    assert not create_optimizer(name, [make()]).param_groups[0]["fused"]


def test_a_convolution_with_a_part_of_its_weights_is_trained_as_by_torch() -> None:
    # As some do for grey images.
    layers = [torch.nn.Conv2d(3, 4, 3, bias=False) for _ in range(2)]
    before = layers[0].weight.detach().clone()
    whole = [before.clone() for _ in layers]
    own, theirs = parts = [Parameter(each[:, :1]) for each in whole]
    for layer, weight in zip(layers, parts, strict=True):
        layer.weight = weight
    ours = create_optimizer("sgd", [own], lr=0.1, momentum=0.9)
    optimizers = (ours, torch.optim.SGD([theirs], lr=0.1, momentum=0.9))
    for layer, optimizer in zip(layers, optimizers, strict=True):
        for _ in range(2):
            optimizer.zero_grad()
            layer(torch.ones(2, 1, 5, 5)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(own, theirs)
    assert torch.equal(whole[0][:, 1:], before[:, 1:])


def test_the_compiler_of_torch_is_not_imported() -> None:
    # It takes 3 of the 9 seconds before a first trial; torch's own optimisers import it.
    code = (
        "import sys, torch\n"
        "from hpo_mab.training._optimizers import OPTIMIZERS, create_optimizer\n"
        "weight = torch.nn.Parameter(torch.ones(2))\n"
        "for name in OPTIMIZERS:\n"
        "    optimizer = create_optimizer(name, [weight])\n"
        "    optimizer.zero_grad()\n"
        "    weight.sum().backward()\n"
        "    optimizer.step()\n"
        "    optimizer.load_state_dict(optimizer.state_dict())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert importlib.util.find_spec("torch._dynamo") is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_nesterov_without_momentum_is_the_plain_step() -> None:
    optimizer = create_optimizer("sgd", _weights(), nesterov=True, momentum=0.0)
    assert optimizer.param_groups[0]["nesterov"] is False


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {"lr": 0.0}, r"lr of optimizer 'sgd' must be above 0, got 0\.0"),
        ("sgd", {"lr": float("nan")}, "must be above 0, got nan"),
        ("sgd", {"lr": float("inf")}, "lr .* must be finite, got inf"),
        ("sgd", {"weight_decay": float("inf")}, "weight_decay .* must be finite, got inf"),
        ("sgd", {"momentum": 1.0}, r"momentum .* in \[0, 1\), got 1\.0"),
        ("sgd", {"weight_decay": -0.1}, r"weight_decay .* at least 0, got -0\.1"),
        ("sgd", {"nesterov": 1}, "optimizer.nesterov must be a boolean, got 1"),
        ("sgd", {"lr": "0.1"}, "optimizer.lr must be a number, got '0.1'"),
        ("sgd", {"lr": True}, "optimizer.lr must be a number, got True"),
        ("adam", {"beta2": 1.0}, r"beta2 .* in \[0, 1\), got 1\.0"),
        ("rmsprop", {"alpha": -0.5}, r"alpha .* in \[0, 1\), got -0\.5"),
        ("adamw", {"eps": 0}, "eps .* above 0, got 0"),
    ],
)
def test_options_out_of_bounds_are_refused(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        create_optimizer(name, _weights(), **options)


def test_a_stack_has_its_own_optimizers_only() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown optimizer 'torch\.optim:SGD'"):
        RowOptimizer("torch.optim:SGD", torch.zeros(2, 3))
