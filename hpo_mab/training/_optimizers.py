"""Optimisers by name, with their knobs checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from hpo_mab._errors import ArgumentError, UnknownNameError


def _sgd(
    *, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
) -> dict[str, Any]:
    return {
        "lr": lr,
        "momentum": momentum,
        # Nesterov's step without momentum is the plain step, and torch refuses the pair.
        "nesterov": nesterov and momentum > 0,
        "weight_decay": weight_decay,
    }


def _adam(
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> dict[str, Any]:
    return {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}


def _adamw(
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> dict[str, Any]:
    return _adam(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)


def _rmsprop(
    *,
    lr: float = 1e-3,
    alpha: float = 0.99,
    momentum: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> dict[str, Any]:
    return {
        "lr": lr,
        "alpha": alpha,
        "momentum": momentum,
        "eps": eps,
        "weight_decay": weight_decay,
    }


_OPTIMIZERS: dict[str, tuple[type[Optimizer], Callable[..., dict[str, Any]]]] = {
    "adam": (Adam, _adam),
    "adamw": (AdamW, _adamw),
    "nadam": (NAdam, _adam),
    "rmsprop": (RMSprop, _rmsprop),
    "sgd": (SGD, _sgd),
}
_FUSED = (Adam, AdamW, SGD)
_FUSED_ON = ("cpu", "cuda")
#: Knobs that must stay below 1, and those that must be above 0; all must be at least 0.
_SHARES = ("alpha", "beta1", "beta2", "momentum")
_POSITIVE = ("eps", "lr")


def available_optimizers() -> tuple[str, ...]:
    """Names that `create_optimizer` takes, sorted."""
    return tuple(sorted(_OPTIMIZERS))


def optimizer_options(name: str) -> dict[str, Any]:
    """Knobs of an optimiser with their defaults.

    Raises:
        UnknownNameError: No such optimiser.
    """
    if name not in _OPTIMIZERS:
        raise UnknownNameError("optimizer", name, _OPTIMIZERS)
    knobs = inspect.signature(_OPTIMIZERS[name][1]).parameters
    return {knob: parameter.default for knob, parameter in knobs.items()}


def create_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], **options: Any
) -> Optimizer:
    """Make an optimiser of `torch.optim`; its fused form where the parameters' device has one.

    Args:
        name: One of `available_optimizers`.
        parameters: What to optimise. Weight decay, if any, applies to all of them.
        **options: Knobs, see `optimizer_options`; ``lr`` is the peak learning rate.

    Raises:
        UnknownNameError: No such optimiser or knob.
        ArgumentError: A knob outside its bound.
    """
    defaults = optimizer_options(name)
    for knob, value in options.items():
        if knob not in defaults:
            raise UnknownNameError(f"option of optimizer '{name}'", knob, defaults)
        _check(name, knob, value)
    kind, translate = _OPTIMIZERS[name]
    weights = list(parameters)
    arguments = translate(**options)
    if kind in _FUSED and weights and all(weight.device.type in _FUSED_ON for weight in weights):
        arguments["fused"] = True
    return kind(weights, **arguments)


def _check(name: str, knob: str, value: Any) -> None:
    if knob == "nesterov":
        if not isinstance(value, bool):
            raise ArgumentError(f"nesterov of optimizer '{name}' must be a boolean, got {value!r}.")
        return
    bound = "at least 0"
    good = value >= 0
    if knob in _SHARES:
        bound, good = "in [0, 1)", 0 <= value < 1
    elif knob in _POSITIVE:
        bound, good = "above 0", value > 0
    if not good:
        raise ArgumentError(f"{knob} of optimizer '{name}' must be {bound}, got {value}.")
