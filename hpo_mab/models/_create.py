"""Networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from hpo_mab._errors import ArgumentError, UnknownNameError
from hpo_mab.models._mlp import MLP
from hpo_mab.models._resnet18 import resnet18
from hpo_mab.models._small_cnn import SmallCNN

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "resnet18": resnet18,
    "small_cnn": SmallCNN,
}
_GIVEN = ("in_channels", "num_classes", "image_size")


def available() -> tuple[str, ...]:
    """Names that `create` takes, sorted."""
    return tuple(sorted(_MODELS))


def options(name: str) -> dict[str, Any]:
    """Knobs of a network with their defaults.

    Raises:
        UnknownNameError: No such network.
    """
    if name not in _MODELS:
        raise UnknownNameError("model", name, _MODELS)
    parameters = inspect.signature(_MODELS[name]).parameters
    return {knob: value.default for knob, value in parameters.items() if knob not in _GIVEN}


def create(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int | tuple[int, int],
    **knobs: Any,
) -> nn.Module:
    """Make a network with fresh weights from the global random state.

    Args:
        name: One of `available`.
        in_channels: Channels of an image, at least 1.
        num_classes: Classes, ``C``, at least 2.
        image_size: Height and width in pixels, or one number for both.
        **knobs: The network's own, see `options`.

    Returns:
        Network from float [B, in_channels, height, width] to logits [B, C].

    Raises:
        UnknownNameError: No such network or knob.
        ArgumentError: An argument outside its bound.
    """
    valid = options(name)
    for knob in knobs:
        if knob not in valid:
            raise UnknownNameError(f"option of model '{name}'", knob, valid)
    if in_channels < 1:
        raise ArgumentError(f"in_channels must be at least 1, got {in_channels}.")
    if num_classes < 2:
        raise ArgumentError(f"num_classes must be at least 2, got {num_classes}.")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return _MODELS[name](in_channels=in_channels, num_classes=num_classes, image_size=size, **knobs)
