"""The plain formula of the network operation, in differentiable torch operations on any device."""

from collections.abc import Sequence
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
    depth = len(plan.widths)
    h, states = x, []
    for i, phi in enumerate(plan.activations):
        weight, bias = layers[i], layers[depth + i]
        assert weight is not None
        h = phi.function(affine(h, weight, bias, plan.weight_scales[i], plan.bias_scales[i]))
        states.append(h)
    f = weighted_sum(plan, states, readout_weight, omega)
    return f if output_bias is None else f + output_bias


def affine(h: Tensor, weight: Tensor, bias: Tensor | None, weight_scale: float, bias_scale: float) -> Tensor:
    """Affine map of one layer, h to g."""
    if weight_scale != 1.0:
        h = h * weight_scale
    if bias is not None and bias_scale != 1.0:
        bias = bias * bias_scale
    return functional.linear(h, weight, bias)


def weighted_sum(plan: Plan, states: Sequence[Tensor], readout_weight: Tensor, omega: Tensor) -> Tensor:
    """sum_l omega_l * f_l as one matrix product: Omega goes into V, which is smaller than the states."""
    folded = fold(readout_weight, scaled(plan, omega), plan.widths)
    return functional.linear(torch.cat(tuple(states), dim=-1), folded)


def scaled(plan: Plan, omega: Tensor) -> Tensor:
    """r_l omega_l, shape (d, L)."""
    if all(scale == 1.0 for scale in plan.readout_scales):
        return omega
    if len(set(plan.readout_scales)) == 1:
        return omega * plan.readout_scales[0]
    return omega * torch.tensor(plan.readout_scales, dtype=omega.dtype, device=omega.device)


def fold(readout_weight: Tensor, omega: Tensor, widths: tuple[int, ...]) -> Tensor:
    """diag(omega_l) V_l, side by side, shape (d, n_1 + ... + n_L)."""
    if len(set(widths)) == 1:
        by_layer: Tensor = readout_weight.unflatten(1, (len(widths), widths[0]))  # [d, L, n]
        return (by_layer * omega.unsqueeze(-1)).flatten(1)
    pairs = zip(readout_weight.split(widths, dim=1), omega.split(1, dim=1), strict=True)
    return torch.cat([v * column for v, column in pairs], dim=1)
