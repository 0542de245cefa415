"""Activations by name: the function, and its derivative in the form that the one-node backward pass wants."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nftk._checks import check_choice

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One activation.

    Attributes:
        name: What it is called in ``NFTKMLP(activation=...)``; None for a user's own callable.
        function: phi, elementwise on a tensor.
        gradient: ``(grad, saved) -> grad * phi'(g)``, written over grad; None where only autograd knows it.
        in_place: phi in place, for those whose derivative is a function of ``h = phi(g)``: ``saved`` is then h and
            g need not be kept. None where ``saved`` is g.
    """

    name: str | None
    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    in_place: Callable[[Tensor], Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by name, or by the user's callable."""
        return resolve, (self.function if self.name is None else self.name,)


def _erf_gradient(grad: Tensor, g: Tensor) -> Tensor:
    return grad.mul_((g * g).neg_().exp_().mul_(2 / math.sqrt(math.pi)))


def identity(g: Tensor) -> Tensor:
    """Return g itself."""
    return g


_NAMED = (
    Activation(
        "relu", torch.relu, lambda grad, h: aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad), torch.relu_
    ),
    Activation(
        "leaky_relu",
        functional.leaky_relu,
        lambda grad, h: aten.leaky_relu_backward.grad_input(grad, h, 0.01, True, grad_input=grad),
        functional.leaky_relu_,
    ),
    Activation("gelu", functional.gelu, lambda grad, g: aten.gelu_backward.grad_input(grad, g, grad_input=grad)),
    Activation("silu", functional.silu, lambda grad, g: aten.silu_backward.grad_input(grad, g, grad_input=grad)),
    Activation(
        "tanh", torch.tanh, lambda grad, h: aten.tanh_backward.grad_input(grad, h, grad_input=grad), torch.tanh_
    ),
    Activation("erf", torch.erf, _erf_gradient),
    Activation(
        "elu",
        functional.elu,
        lambda grad, h: aten.elu_backward.grad_input(grad, 1, 1, 1, True, h, grad_input=grad),
        functional.elu_,
    ),
    Activation("sin", torch.sin, lambda grad, g: grad.mul_(torch.cos(g))),
    Activation("identity", identity, lambda grad, h: grad, identity),
)
BY_NAME: dict[str, Activation] = {str(activation.name): activation for activation in _NAMED}


# what people write instead of a name; a torch.nn module counts only while its settings are the defaults
_ALIASES: dict[Callable[[Tensor], Tensor], str] = {
    torch.relu: "relu",
    functional.relu: "relu",
    functional.leaky_relu: "leaky_relu",
    functional.gelu: "gelu",
    functional.silu: "silu",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    torch.erf: "erf",
    functional.elu: "elu",
    torch.sin: "sin",
    identity: "identity",
}
_DEFAULTS: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.ReLU: ("relu", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": 0.01}),
    nn.GELU: ("gelu", {"approximate": "none"}),
    nn.SiLU: ("silu", {}),
    nn.Tanh: ("tanh", {}),
    nn.ELU: ("elu", {"alpha": 1.0}),
    nn.Identity: ("identity", {}),
}


def canonical(op: str, activation: Any) -> str | Callable[[Tensor], Tensor]:
    """Return the name of an activation where it has one, else the callable; raise for anything else."""
    if isinstance(activation, str):
        check_choice(op, "activation", activation, BY_NAME)
        return activation
    if not callable(activation) or isinstance(activation, type):
        raise TypeError(f"nftk.{op}: activation must be a name or a callable on tensors, got {activation!r}")
    if isinstance(activation, nn.Module):
        name, settings = _DEFAULTS.get(type(activation), (None, {}))
        usual = all(getattr(activation, key) == value for key, value in settings.items())
        return name if name is not None and usual else activation
    function: Callable[[Tensor], Tensor] = activation
    return _ALIASES.get(function, function)


def resolve(activation: str | Callable[[Tensor], Tensor]) -> Activation:
    """Look up what :func:`canonical` returned."""
    return BY_NAME[activation] if isinstance(activation, str) else Activation(None, activation)


def value_and_slope(activation: Activation, g: Tensor) -> tuple[Tensor, Tensor]:
    """phi(g) and phi'(g), differentiable where g asks for it; autograd finds the slope of a user's callable."""
    if activation.gradient is not None and not (torch.is_grad_enabled() and g.requires_grad):
        h = activation.function(g)
        return h, activation.gradient(torch.ones_like(g), g if activation.in_place is None else h)
    create = torch.is_grad_enabled() and g.requires_grad
    # a clone, because a tensor of inference mode has no gradients and an in-place function may not change a leaf
    with torch.inference_mode(False), torch.enable_grad():
        point = g if create else g.detach().clone().requires_grad_()
        h = activation.function(point.clone())
        if not h.requires_grad:
            # constant, as a sign or a step is for autograd
            return h, torch.zeros_like(g)
        (slope,) = torch.autograd.grad(h.sum(), point, create_graph=create)
    return (h, slope) if create else (h.detach(), slope)
