"""Optimisers by name, with their knobs checked."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from hpo_mab._errors import ArgumentError, UnknownNameError, plain_arguments
from hpo_mab._registry import Named, Registry
from hpo_mab.training._average import tensors_of


def sgd(
    params: Iterable[Parameter],
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Make `torch.optim.SGD`."""
    # Nesterov's step without momentum is the plain step, and torch refuses the pair.
    accelerated = nesterov and momentum > 0
    return _make_fused(
        SGD, params, lr=lr, momentum=momentum, nesterov=accelerated, weight_decay=weight_decay
    )


def _adam(kind: type[Optimizer], *, weight_decay: float) -> Callable[..., Optimizer]:
    """A function that makes an optimiser of Adam's family with this default weight decay."""
    default = weight_decay

    def make(
        params: Iterable[Parameter],
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = default,
    ) -> Optimizer:
        return _make_fused(
            kind, params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay
        )

    return make


def rmsprop(
    params: Iterable[Parameter],
    *,
    lr: float = 1e-3,
    alpha: float = 0.99,
    momentum: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Make `torch.optim.RMSprop`."""
    return _make_fused(
        RMSprop, params, lr=lr, alpha=alpha, momentum=momentum, eps=eps, weight_decay=weight_decay
    )


_FUSED = (Adam, AdamW, SGD)
_FUSED_ON = ("cpu", "cuda")


def _make_fused(kind: type[Optimizer], params: Iterable[Parameter], **knobs: Any) -> Optimizer:
    """An optimiser with checked knobs; its fused form where the parameters' device has one."""
    # Here: a search space checks names and types of knobs, not the values that it suggests.
    _check_bounds(kind.__name__.lower(), knobs)
    if "beta1" in knobs:
        knobs["betas"] = knobs.pop("beta1"), knobs.pop("beta2")
    weights = list(params)
    if kind in _FUSED and weights and all(map(_has_fused_form, weights)):
        knobs["fused"] = True
    made: Optimizer = getattr(_UNGUARDED, kind.__name__)(weights, **knobs)
    return made


def _has_fused_form(weight: Parameter) -> bool:
    kind = weight.device.type
    # Up to PyTorch 2.13 fused SGD on a CPU does not write weights of half precision.
    wide = kind != "cpu" or weight.dtype in (torch.float32, torch.float64)
    # Fused forms step through memory: in a part of a larger tensor they would change other numbers.
    dense = is_lazy(weight) or torch.empty_like(weight, device="meta").stride() == weight.stride()
    return kind in _FUSED_ON and weight.is_floating_point() and wide and dense


def _init_sgd_group(optimizer: SGD, group: dict[str, Any], *lists: list[Any]) -> bool:
    """`SGD._init_group`, for weights that get their first gradient later than others.

    Torch's fused form raises if only some weights have a buffer. A buffer of zeros gives the same
    first step. Buffers are made at the step: before it, weights may change device or layout.
    Weights without a gradient get one, too, because a graph repeats what it has captured.
    """
    for weight in group["params"] if group["momentum"] else ():
        if weight.requires_grad and optimizer.state[weight].get("momentum_buffer") is None:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return bool(SGD._init_group(optimizer, group, *lists))  # type: ignore[no-untyped-call]


def _without_guards(kind: type[Optimizer]) -> type[Optimizer]:
    """An optimiser class without torch's guards against `torch.compile`, which is not used here.

    The first call of a guard imports the compiler: 3 of the 9 seconds before a first trial.
    """
    guarded = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in guarded}
    # The guard of `step` also turns gradients off.
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    if kind is SGD:
        methods["_init_group"] = _init_sgd_group
    # Where `pickle` finds the class.
    names = {"__module__": __name__, "__qualname__": f"_UNGUARDED.{kind.__name__}"}
    return type(kind.__name__, (kind,), {**methods, **names})


_UNGUARDED = types.SimpleNamespace(
    **{kind.__name__: _without_guards(kind) for kind in (Adam, AdamW, NAdam, RMSprop, SGD)}
)


def is_fused(optimizer: Optimizer) -> bool:
    """Whether the optimiser's step reads the learning rate on the device: its fused form."""
    return all(group.get("fused") for group in optimizer.param_groups)


def set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Set the learning rate of each group; a tensor's in place, because a graph reads it there."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


#: Optimisers. One from elsewhere is a subclass of `torch.optim.Optimizer`, or a function that
#: returns one.
OPTIMIZERS = Registry(
    "optimizer",
    {
        "adam": _adam(Adam, weight_decay=0.0),
        "adamw": _adam(AdamW, weight_decay=0.01),
        "nadam": _adam(NAdam, weight_decay=0.0),
        "rmsprop": rmsprop,
        "sgd": sgd,
    },
    given=("params",),
)
#: Knobs that must stay below 1, and those that must be above 0; all must be at least 0.
_SHARES = ("alpha", "beta1", "beta2", "momentum")
_POSITIVE = ("eps", "lr")


@plain_arguments
def create_optimizer(name: Named, parameters: Iterable[Parameter], **options: Any) -> Optimizer:
    """Make an optimiser of `torch.optim`; its fused form where the parameters' device has one.

    Args:
        name: ``adam``, ``adamw``, ``nadam``, ``rmsprop`` or ``sgd``; ``package.module:Name`` of
            another optimiser, or its class; it is called with the parameters and its options.
        parameters: Parameters to optimise, not groups of them. Weight decay, if any, applies to
            all.
        **options: Knobs; ``lr`` is the peak learning rate.

    Raises:
        UnknownNameError: No such optimiser or knob.
        ArgumentError: A knob outside its bound.
    """
    _check_options(name, options)
    made: Optimizer = OPTIMIZERS.load(name)(parameters, **options)
    return made


def require_trainable(model: Module) -> None:
    """Raise `ArgumentError` if a network has nothing to train, or weights without a shape yet."""
    lazy = [name for name, tensor in tensors_of(model).items() if is_lazy(tensor)]
    if lazy:
        raise ArgumentError(
            f"model must have initialised weights, but '{lazy[0]}' of a lazy module is not; call "
            "the network once on inputs where it is made."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("model must have a parameter that requires a gradient, got none.")


class RowOptimizer:
    """The optimisers of a stack of networks, whose weights are the rows of one matrix.

    The steps of each row are those of `create_optimizer`, to rounding. All knobs are tensors, so a
    CUDA graph can be replayed after a row has begun again with other knobs.

    Args:
        name: One of `OPTIMIZERS`.
        weights: Weights of ``K`` networks, float32 [K, P]; changed in place.
    """

    def __init__(self, name: str, weights: Tensor) -> None:
        if not isinstance(name, str) or name not in _ROWS:
            raise UnknownNameError("optimizer", name, _ROWS)
        self._name = name
        self._weights = weights
        self._defaults = {knob: one.default for knob, one in OPTIMIZERS.options(name).items()}
        self._update, moments = _ROWS[name]
        column = weights.new_zeros(len(weights), 1)
        #: Peak learning rate and every other knob, float32 [K, 1] each.
        self.knobs = {knob: column.clone() for knob in self._defaults}
        self._steps = column.clone()
        # Only as many as the optimiser needs: each takes as much memory as the weights.
        self._moments = [torch.zeros_like(weights) for _ in range(moments)]
        self._product = torch.ones_like(column)

    def begin(self, row: int, **options: Any) -> float:
        """Begin a row again, with knobs as for `create_optimizer`.

        Returns:
            Its peak learning rate.
        """
        _check_options(self._name, options)
        _check_bounds(self._name, options)
        values = {**self._defaults, **options}
        for knob, tensor in self.knobs.items():
            tensor[row] = float(values[knob])
        self._steps[row] = 0
        self._product[row] = 1
        for moment in self._moments:
            moment[row] = 0
        return float(values["lr"])

    def step(self, gradients: Tensor, factor: Tensor) -> None:
        """One step of every row; does not wait for the device.

        Args:
            gradients: Float32 [K, P]; overwritten.
            factor: Share of the peak learning rate, float32 [K, 1].
        """
        self._steps += 1
        if self._name != "adamw":  # Its decay is not part of the gradient.
            gradients.addcmul_(self.knobs["weight_decay"], self._weights)
        self._update(self, gradients, self.knobs["lr"] * factor)

    def _sgd(self, gradients: Tensor, lr: Tensor) -> None:
        momentum = self.knobs["momentum"]
        (moment,) = self._moments
        # The first moment is the gradient itself, as in torch: `_moments` begin at 0.
        moment.mul_(momentum).add_(gradients)
        # A tensor of 0 or 1, because rows differ: it selects the moment, or Nesterov's direction.
        nesterov = self.knobs["nesterov"]
        direction = torch.lerp(moment, gradients.addcmul_(momentum, moment), nesterov)
        self._weights.addcmul_(lr, direction, value=-1)

    def _adamw(self, gradients: Tensor, lr: Tensor) -> None:
        self._weights.mul_(1 - lr * self.knobs["weight_decay"])
        self._adam(gradients, lr)

    def _adam(self, gradients: Tensor, lr: Tensor) -> None:
        first, scale = self._adam_moments(gradients)
        rate = lr / (1 - self.knobs["beta1"] ** self._steps)
        self._weights.addcmul_(rate, first / scale, value=-1)

    def _nadam(self, gradients: Tensor, lr: Tensor) -> None:
        first, scale = self._adam_moments(gradients)
        # The momentum schedule of `torch.optim.NAdam`, momentum_decay = 0.004.
        now, after = (
            self.knobs["beta1"] * (1 - 0.5 * 0.96 ** (0.004 * steps))
            for steps in (self._steps, self._steps + 1)
        )
        self._product *= now
        here = lr * (1 - now) / (1 - self._product)
        ahead = lr * after / (1 - self._product * after)
        self._weights.sub_((here * gradients + ahead * first) / scale)

    def _adam_moments(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The mean gradient, and the root of the bias-corrected mean square, [K, P] each."""
        first, second = self._moments
        first.lerp_(gradients, 1 - self.knobs["beta1"])
        beta = self.knobs["beta2"]
        second.mul_(beta).add_((1 - beta) * gradients * gradients)
        return first, (second / (1 - beta**self._steps)).sqrt_().add_(self.knobs["eps"])

    def _rmsprop(self, gradients: Tensor, lr: Tensor) -> None:
        square, moment = self._moments
        alpha = self.knobs["alpha"]
        square.mul_(alpha).add_((1 - alpha) * gradients * gradients)
        moment.mul_(self.knobs["momentum"]).add_(gradients / (square.sqrt() + self.knobs["eps"]))
        self._weights.addcmul_(lr, moment, value=-1)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that steps change; the first dimension is the row."""
        moments = {f"moment{number}": moment for number, moment in enumerate(self._moments)}
        return {**moments, "steps": self._steps, "product": self._product}


#: The step of each optimiser, and how many moments it keeps.
_ROWS: dict[str, tuple[Callable[[RowOptimizer, Tensor, Tensor], None], int]] = {
    "adam": (RowOptimizer._adam, 2),
    "adamw": (RowOptimizer._adamw, 2),
    "nadam": (RowOptimizer._nadam, 2),
    "rmsprop": (RowOptimizer._rmsprop, 2),
    "sgd": (RowOptimizer._sgd, 1),
}


def _check_options(name: Named, options: Mapping[str, Any]) -> None:
    """Refuse options that are no knobs of the optimiser, or of another type."""
    OPTIMIZERS.check(name, {key: [one] for key, one in options.items()}, section="optimizer")


def _check_bounds(name: str, options: Mapping[str, Any]) -> None:
    """Refuse knobs outside their bounds; ``nesterov``, a boolean, is always within them."""
    for knob, value in options.items():
        bound, good = "at least 0", value >= 0
        if knob in _SHARES:
            bound, good = "in [0, 1)", 0 <= value < 1
        elif knob in _POSITIVE:
            bound, good = "above 0", value > 0
        if value == math.inf:
            bound, good = "finite", False
        if not good:
            raise ArgumentError(f"{knob} of optimizer '{name}' must be {bound}, got {value}.")
