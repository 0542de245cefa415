"""The plain formula of the network operation, in differentiable torch operations on any device."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nftk.ops.activations import Activation


class Plan(NamedTuple):
    """What a network is besides its tensors; one entry a layer."""

    widths: tuple[int, ...]
    activations: tuple[Activation, ...]
    weight_scales: tuple[float, ...]
    bias_scales: tuple[float, ...]
    readout_scales: tuple[float, ...]


def formula(
    plan: Plan, x: Tensor, omega: Tensor, readout_weight: Tensor, output_bias: Tensor | None, *layers: Tensor | None
) -> Tensor:
    """Return f; layers are the L weights, then the L biases."""
    states = hidden_states(plan, x, *layers)
    f = weighted_sum(plan.widths, plan.readout_scales, states, readout_weight, omega)
    return f if output_bias is None else f + output_bias.to(f.dtype)


def hidden_states(plan: Plan, x: Tensor, *layers: Tensor | None) -> list[Tensor]:
    """h_1 .. h_L; layers are the L weights, then the L biases."""
    depth = len(plan.widths)
    h, states = x, []
    for i, phi in enumerate(plan.activations):
        weight, bias = layers[i], layers[depth + i]
        assert weight is not None
        h = phi.function(affine(h, weight, bias, plan.weight_scales[i], plan.bias_scales[i]))
        states.append(h)
    return states


def affine(h: Tensor, weight: Tensor, bias: Tensor | None, weight_scale: float, bias_scale: float) -> Tensor:
    """Affine map of one layer, h to g."""
    if weight_scale != 1.0:
        h = h * weight_scale
    if bias is not None and bias_scale != 1.0:
        bias = bias * bias_scale
    return functional.linear(h, weight, bias)


def weighted_sum(
    widths: tuple[int, ...], scales: tuple[float, ...], states: Sequence[Tensor], readout_weight: Tensor, omega: Tensor
) -> Tensor:
    """sum_l omega_l * f_l as one matrix product: Omega goes into V, which is smaller than the states."""
    folded = fold(readout_weight, scaled(scales, omega), widths)
    return functional.linear(torch.cat(tuple(states), dim=-1), folded)


def scaled(scales: tuple[float, ...], omega: Tensor) -> Tensor:
    """r_l omega_l, shape (d, L)."""
    if all(scale == 1.0 for scale in scales):
        return omega
    if len(set(scales)) == 1:
        return omega * scales[0]
    # no tensor made of the scales: on a GPU that would make the host wait
    return torch.stack([column * scale for column, scale in zip(omega.unbind(1), scales, strict=True)], 1)


def fold(readout_weight: Tensor, omega: Tensor, widths: tuple[int, ...]) -> Tensor:
    """diag(omega_l) V_l, side by side, shape (d, n_1 + ... + n_L)."""
    if len(set(widths)) == 1:
        by_layer: Tensor = readout_weight.unflatten(1, (len(widths), widths[0]))  # [d, L, n]
        return (by_layer * omega.unsqueeze(-1)).flatten(1)
    pairs = zip(readout_weight.split(widths, dim=1), omega.split(1, dim=1), strict=True)
    return torch.cat([v * column for v, column in pairs], dim=1)


def formula_gradients(
    plan: Plan, inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients by way of the formula: for second and higher derivatives, and for batches of gradients at once."""
    # autocast, which lets inputs differ in dtype, may have been left since
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in inputs if t is not None))
    places = [i for i, (t, need) in enumerate(zip(inputs, needed, strict=True)) if need and t is not None]

    def of_wanted(*wanted: Tensor) -> Tensor:
        every = list(inputs)
        for i, t in zip(places, wanted, strict=True):
            every[i] = t
        return formula(plan, *(None if t is None else t.to(dtype) for t in every))  # type: ignore[arg-type]

    wanted = [inputs[i] for i in places]
    if transform_active():
        f, pull_back = torch.func.vjp(of_wanted, *wanted)  # type: ignore[misc]
        grads = pull_back(grad.to(f.dtype))
    else:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            # aliases, so that an input which depends on another one is not differentiated through it twice
            aliases = [t.view_as(t) for t in wanted if t is not None]
            f = of_wanted(*aliases)
            grads = torch.autograd.grad(f, aliases, grad.to(f.dtype), create_graph=differentiable)
    found: list[Tensor | None] = [None] * len(inputs)
    for i, g in zip(places, grads, strict=True):
        found[i] = g
    return found


# a private name of torch, in one place; where a future torch lacks one, a transform that meets one node raises
transform_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)

# whether a tensor is one of many inside torch.vmap
is_vmapped: Callable[[Tensor], bool] = getattr(torch._C._functorch, "is_batchedtensor", lambda x: False)

_is_legacy_batched: Callable[[Tensor], bool] = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", lambda grad: False
)


def is_batched(grad: Tensor | None) -> bool:
    """Whether grad is one of torch.autograd.grad(is_grads_batched=True)."""
    return grad is not None and not torch.compiler.is_compiling() and _is_legacy_batched(grad)
