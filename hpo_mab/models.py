"""Small networks for small images, by name, and those of torchvision, timm and users.

`stackable` prepares any of them for a stack.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpo_mab._errors import ArgumentError, UnknownNameError, plain_arguments, require
from hpo_mab._registry import Named, Registry, parameters

__all__ = ["MLP", "SmallCNN", "create", "resnet18"]


class MLP(nn.Sequential):
    """Fully connected layers with ReLU on the flattened image.

    Args:
        in_channels: Channels of an image.
        num_classes: Classes, ``C``.
        image_size: Height and width of an image.
        width: Units of a hidden layer, at least 1.
        depth: Hidden layers, at least 0; 0 is logistic regression.
        dropout: Probability of dropping a hidden unit, in [0, 1).

    Raises:
        ArgumentError: ``width``, ``depth`` or ``dropout`` outside its bound.

    Examples:
        >>> import torch
        >>> from hpo_mab.models import MLP
        >>> network = MLP(in_channels=1, num_classes=10, image_size=(8, 8))
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        width: int = 256,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        require(width >= 1, "width", "at least 1", width)
        require(depth >= 0, "depth", "at least 0", depth)
        require(0.0 <= dropout < 1.0, "dropout", "in [0, 1)", dropout)
        features = in_channels * image_size[0] * image_size[1]
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
            features = width
        super().__init__(*layers, nn.Linear(features, num_classes))


def _check_image(image_size: tuple[int, int], dropout: float) -> None:
    require(min(image_size) >= 4, "image_size", "at least 4 pixels", list(image_size))
    require(0.0 <= dropout < 1.0, "dropout", "in [0, 1)", dropout)


_BLOCKS = 3


class SmallCNN(nn.Sequential):
    """Three strided 3x3 convolutions with batch normalisation, then a linear layer.

    ``width``, ``2 * width`` and ``4 * width`` channels at a half, a quarter and an eighth of the
    image's resolution. Striding instead of pooling halves the time of a step on a CPU.

    Args:
        in_channels: Channels of an image.
        num_classes: Classes, ``C``.
        image_size: Height and width of an image, each at least 4.
        width: Channels of the first block, at least 1.
        dropout: Probability of dropping a feature before the linear layer, in [0, 1).

    Raises:
        ArgumentError: ``image_size``, ``width`` or ``dropout`` outside its bound.

    Examples:
        >>> import torch
        >>> from hpo_mab.models import SmallCNN
        >>> network = SmallCNN(in_channels=1, num_classes=10, image_size=(8, 8))
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        width: int = 12,
        dropout: float = 0.0,
    ) -> None:
        _check_image(image_size, dropout)
        require(width >= 1, "width", "at least 1", width)
        height, breadth = image_size
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for block in range(_BLOCKS):
            layers[f"block{block + 1}"] = _block(channels, width * 2**block)
            channels = width * 2**block
            # With stride 2 and padding 1, a 3x3 convolution halves a side and rounds up.
            height, breadth = -(-height // 2), -(-breadth // 2)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = nn.Dropout(dropout)
        layers["head"] = nn.Linear(channels * height * breadth, num_classes)
        super().__init__(layers)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    # No bias: batch normalisation subtracts the mean, and a bias with it.
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


#: Images whose shorter side has at least so many pixels get the stem of networks for ImageNet.
_LARGE = 64


def resnet18(
    *,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    dropout: float = 0.0,
) -> nn.Module:
    """ResNet-18 of torchvision; below 64 pixels with the stem for small images.

    torchvision's stem is a 7x7 convolution and a maximum over 3x3 pixels, each with stride 2. The
    stem for small images is a 3x3 convolution. He et al. 2016, "Deep Residual Learning for Image
    Recognition", sections 4.1 and 4.2.

    Args:
        in_channels: Channels of an image.
        num_classes: Classes, ``C``.
        image_size: Height and width of an image, each at least 4.
        dropout: Probability of dropping a feature before the linear layer, in [0, 1).

    Raises:
        ArgumentError: An argument outside its bound.
    """
    # Here, not at the top: torchvision is slow to import and no other network needs it.
    from torchvision import models

    _check_image(image_size, dropout)
    model: nn.Module = models.resnet18(num_classes=num_classes)
    if min(image_size) >= _LARGE:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    # As torchvision initialises the convolution that this one replaces.
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, num_classes))
    return model


def _torchvision(name: str) -> Callable[..., nn.Module]:
    """A function that makes a classification network of torchvision for any number of channels."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UnknownNameError("network of torchvision", name, names)
    build = models.get_model_builder(name)

    def make(
        *, in_channels: int, num_classes: int, image_size: tuple[int, int], **options: Any
    ) -> nn.Module:
        # A vision transformer's position embedding has one row per patch: the image size is fixed.
        if name.startswith("vit_"):
            options["image_size"] = image_size[0]
        if name == "maxvit_t":
            options["input_size"] = image_size
        if name in ("googlenet", "inception_v3"):
            # Otherwise they return the logits of their other classifiers as well, and warn.
            options |= {"aux_logits": False, "init_weights": True}
        with _argument_errors_of(f"torchvision:{name}"):
            model: nn.Module = build(num_classes=num_classes, **options)
        _set_channels(model, in_channels)
        return model

    return _with_options_of(get_type_hints(build)["return"], make)


def _timm(name: str) -> Callable[..., nn.Module]:
    """A function that makes a network of timm."""
    try:
        import timm
    except ImportError:
        raise ArgumentError(
            f"model 'timm:{name}' needs timm: pip install '.[timm]' in a clone of hpo-mab."
        ) from None
    if not timm.is_model(name):
        raise UnknownNameError("network of timm", name, timm.list_models())
    build = timm.model_entrypoint(name)
    with _argument_errors_of(f"timm:{name}"):
        fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    _, _, weights = name.partition(".")

    def make(
        *,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        pretrained: bool = False,
        **options: Any,
    ) -> nn.Module:
        size = {"img_size": image_size} if fixed else {}
        chosen = {"pretrained_cfg": weights} if weights else {}
        with _argument_errors_of(f"timm:{name}"):
            model: nn.Module = build(
                pretrained,
                in_chans=in_channels,
                num_classes=num_classes,
                **size,
                **chosen,
                **options,
            )
        return model

    return _with_options_of(get_type_hints(build).get("return", build), make)


def _set_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for ``channels``, unless it takes as many already."""
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels == channels:
        return
    parent, _, own = name.rpartition(".")
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    setattr(model.get_submodule(parent), own, new)


@contextlib.contextmanager
def _argument_errors_of(name: str) -> Iterator[None]:
    """Raise another package's errors about sizes and options as `ArgumentError`."""
    try:
        yield
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ArgumentError(f"model '{name}' cannot be made: {reason}.") from error


def _with_options_of(
    network: Callable[..., Any], make: Callable[..., nn.Module]
) -> Callable[..., nn.Module]:
    """Give a function with ``**options`` the signature whose options are those of a network.

    Options are arguments of the network's class that are numbers, texts or booleans. None stands
    for a default that only torchvision's or timm's function has.
    """
    shown = dict(inspect.signature(make).parameters)
    shown.popitem()
    for one in parameters(network).values():
        plain = one.annotation in (bool, float, int, str) or isinstance(one.default, float | str)
        if plain and one.name not in ("num_classes", "in_chans", *shown):
            default = None if one.default is one.empty else one.default
            shown[one.name] = one.replace(kind=one.KEYWORD_ONLY, default=default)
    # Otherwise an option has the type of its default, which may be 0 for a float.
    make.__annotations__ |= {
        one.name: one.annotation for one in shown.values() if one.default is not None
    }
    make.__signature__ = inspect.Signature(list(shown.values()))  # type: ignore[attr-defined]
    return make


#: Networks. A network from elsewhere gets those of the arguments in ``given`` that it takes.
NETWORKS = Registry(
    "model",
    {"mlp": MLP, "resnet18": resnet18, "small_cnn": SmallCNN},
    given=("in_channels", "num_classes", "image_size", "input_shape"),
    families={"timm": _timm, "torchvision": _torchvision},
)


@plain_arguments
def create(
    name: Named,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int | tuple[int, int],
    **knobs: Any,
) -> nn.Module:
    """Make a network with fresh weights from the global random state.

    Args:
        name: ``"mlp"``, ``"resnet18"`` or ``"small_cnn"``; ``torchvision:NAME``; ``timm:NAME``;
            ``package.module:Name`` of another network, or its class or a function that makes it.
            That class or function is called with its knobs and those arguments that it takes.
        in_channels: Channels of an image, at least 1.
        num_classes: Classes, ``C``, at least 2.
        image_size: Height and width in pixels, or one number for both.
        **knobs: The network's own.

    Returns:
        Network from float [B, in_channels, height, width] to logits [B, C].

    Raises:
        UnknownNameError: No such network or knob.
        ArgumentError: An argument outside its bound.
    """
    NETWORKS.check(name, {knob: [value] for knob, value in knobs.items()}, section="model")
    require(in_channels >= 1, "in_channels", "at least 1", in_channels)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    make = network_maker(name, input_shape=(in_channels, *size), num_classes=num_classes)
    return make(**knobs)


def network_maker(
    name: Named, *, input_shape: tuple[int, ...], num_classes: int
) -> Callable[..., nn.Module]:
    """A function that makes a network for some data, called with its knobs.

    Args:
        name: As for `create`.
        input_shape: Shape of an input: [channels, height, width], or [features], for which a
            network of this package has ``image_size = (1, 1)``.
        num_classes: Classes, ``C``, at least 2.
    """
    require(num_classes >= 2, "num_classes", "at least 2", num_classes)
    given: dict[str, Any] = {"input_shape": input_shape, "num_classes": num_classes}
    if len(input_shape) in (1, 3):
        given |= {"in_channels": input_shape[0], "image_size": (*input_shape[1:], 1, 1)[:2]}
    elif name in NETWORKS:
        raise ArgumentError(
            f"model '{name}' needs inputs [channels, height, width] or [features], "
            f"got {list(input_shape)}."
        )
    return NETWORKS.maker(name, **given)


class StackedBatchNorm(_BatchNorm):
    """Batch normalisation that works under ``vmap`` and with a cast to bfloat16.

    Under ``vmap`` the native operation raises if inputs and running statistics differ in type. Here
    it computes the batch's statistics only, and the running ones are updated separately.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise [n, C, ...] by the batch's statistics, or in evaluation by the running ones."""
        if not self.training:
            return self._by_running_statistics(inputs)
        outputs, mean, inverse = torch.native_batch_norm(
            inputs, self.weight, self.bias, None, None, True, 0.0, self.eps
        )
        with torch.no_grad():
            # The operation returns 1 / sqrt(biased variance + eps), but running statistics take the
            # unbiased variance. In double precision, because subtracting eps cancels digits.
            count = inputs.numel() // inputs.shape[1]
            variance = (inverse.double().pow(-2) - self.eps) * (count / max(1, count - 1))
            for running, now in ((self.running_mean, mean), (self.running_var, variance)):
                running.mul_(1 - self.momentum).add_(self.momentum * now.to(running.dtype))
            self.num_batches_tracked.add_(1)
        normalized: Tensor = outputs
        return normalized

    def _by_running_statistics(self, inputs: Tensor) -> Tensor:
        scale = (self.running_var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        return inputs * scale.to(inputs.dtype).view(shape) + shift.to(inputs.dtype).view(shape)


@functools.cache
def _stacked(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """A subclass of a normalisation with the forward pass of `StackedBatchNorm`."""
    return type(f"Stacked{kind.__name__}", (StackedBatchNorm, kind), {})


def stackable(model: nn.Module) -> nn.Module:
    """The network with batch normalisations that work under ``vmap``.

    It is changed in place, and cannot be pickled afterwards.
    """
    for norm in model.modules():
        # A subclass may do more, such as the activation.
        if not isinstance(norm, _BatchNorm) or type(norm).forward is not _BatchNorm.forward:
            continue
        if norm.track_running_stats and norm.momentum is not None:
            # Changes the layer's class in place: hooks stay, and networks can freeze it by type.
            norm.__class__ = _stacked(type(norm))  # type: ignore[arg-type]
    return model
