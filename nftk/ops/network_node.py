"""The network operation as one node of the autograd graph, for eager calls in torch's own operations.

Autograd sees a training step of the paper's shape as some hundred small operations, and a loop over the readouts
adds as many. Here the hidden states lie side by side in one buffer, so that all readouts, their gradients and what
they send back are one matrix product each (bench/bench_step.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nftk.ops import precision as precisions
from nftk.ops.network_formula import Plan, fold, formula_gradients, is_batched, scaled

# columns behind the hidden states: without them rows of 2,560 float32, ten layers of 256, would be a multiple of
# 2 KiB apart and crowd into the same few sets of the cache
_PADDING = 16


class OneNode(torch.autograd.Function):
    """The whole network as one node of the autograd graph; eager calls only, so no vmap or jvp rule."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        x: Tensor,
        omega: Tensor,
        readout_weight: Tensor,
        output_bias: Tensor | None,
        *layers: Tensor | None,
    ) -> Tensor:
        """Return f of rows x; layers are the L weights, then the L biases."""
        with precisions.full_precision(x):
            return OneNode._forward(ctx, plan, x, omega, readout_weight, output_bias, *layers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients that are wanted, walking back once through the layers."""
        with precisions.full_precision(grad):
            return OneNode._backward(ctx, grad)

    @staticmethod
    def _forward(
        ctx: Any,
        plan: Plan,
        x: Tensor,
        omega: Tensor,
        readout_weight: Tensor,
        output_bias: Tensor | None,
        *layers: Tensor | None,
    ) -> Tensor:
        depth = len(plan.widths)
        buffer = x.new_empty(x.shape[0], sum(plan.widths) + _PADDING)
        states = buffer[:, :-_PADDING]  # [B, n_1 + ... + n_L]
        h, kept = x, []
        for i, (phi, state) in enumerate(zip(plan.activations, states.split(plan.widths, dim=1), strict=True)):
            weight, bias = layers[i], layers[depth + i]
            assert weight is not None
            if phi.in_place is not None:
                phi.in_place(_affine_out(h, weight, bias, plan.weight_scales[i], plan.bias_scales[i], state))
            else:
                g = h.new_empty(state.shape)
                kept.append(_affine_out(h, weight, bias, plan.weight_scales[i], plan.bias_scales[i], g))
                state.copy_(phi.function(g))
            h = state
        folded = fold(readout_weight, scaled(plan.readout_scales, omega), plan.widths)  # [d, n_1 + ... + n_L]
        # this order of the factors is the faster one for d much smaller than the batch
        f = torch.mm(folded, states.t()).t()
        ctx.plan = plan
        ctx.save_for_backward(x, omega, readout_weight, output_bias, *layers, states, folded, *kept)
        f = f.contiguous()
        return f if output_bias is None else f.add_(output_bias)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        depth = len(plan.widths)
        tensors = ctx.saved_tensors  # unpacked anew at every access
        inputs = tensors[: 4 + 2 * depth]
        if torch.is_grad_enabled() or is_batched(grad):
            return (None, *formula_gradients(plan, inputs, ctx.needs_input_grad[1:], grad))
        x, omega, readout_weight, _, *layers = inputs
        states, folded, *kept = tensors[4 + 2 * depth :]
        _, need_x, need_omega, need_readout, need_output_bias, *need_layers = ctx.needs_input_grad
        need_weights, need_biases = need_layers[:depth], need_layers[depth:]

        grad_omega = grad_readout = None
        if need_omega or need_readout:
            grad_folded = torch.mm(grad.t(), states)  # [d, n_1 + ... + n_L]
            if need_omega:
                grad_omega = scaled(plan.readout_scales, _dot_by_layer(grad_folded, readout_weight, plan.widths))
            if need_readout:
                grad_readout = _fold_(grad_folded, scaled(plan.readout_scales, omega), plan.widths)

        grad_weights: list[Tensor | None] = [None] * depth
        grad_biases: list[Tensor | None] = [None] * depth
        grad_x = None
        # the walk back ends at the first layer below which nothing wants a gradient
        first = next((i for i in range(depth) if need_x or need_weights[i] or need_biases[i]), depth)
        if first < depth:
            grad_states, stacked = _grad_of_states(grad, folded, plan.widths)
            by_layer = (x, *states.split(plan.widths, dim=1))
        delta: Tensor | None = None
        for i in reversed(range(first, depth)):
            grad_h = grad_states[i]
            if delta is not None:
                grad_h.addmm_(delta, layers[i + 1], alpha=plan.weight_scales[i + 1])
            phi = plan.activations[i]
            assert phi.gradient is not None
            delta = phi.gradient(grad_h, kept.pop() if phi.in_place is None else by_layer[i + 1])
            if need_weights[i]:
                grad_weights[i] = _times(torch.mm(delta.t(), by_layer[i]), plan.weight_scales[i])
            if need_biases[i] and stacked is None:
                grad_biases[i] = _times(delta.sum(0), plan.bias_scales[i])
        if first < depth and stacked is not None and any(need_biases):
            # each delta was written over its grad_h, so they lie one behind the other and take one sum
            sums = stacked.sum(1).unbind(0)
            grad_biases = [_times(sums[i], plan.bias_scales[i]) if need_biases[i] else None for i in range(depth)]
        if need_x and delta is not None:
            grad_x = _times(torch.mm(delta, layers[0]), plan.weight_scales[0])
        grad_output_bias = grad.sum(0) if need_output_bias else None
        return (None, grad_x, grad_omega, grad_readout, grad_output_bias, *grad_weights, *grad_biases)


def _fold_(readout_weight: Tensor, omega: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Like fold, in place."""
    if len(set(widths)) == 1:
        by_layer: Tensor = readout_weight.unflatten(1, (len(widths), widths[0]))  # [d, L, n]
        by_layer.mul_(omega.unsqueeze(-1))
    else:
        for v, column in zip(readout_weight.split(widths, dim=1), omega.split(1, dim=1), strict=True):
            v.mul_(column)
    return readout_weight


def _dot_by_layer(a: Tensor, b: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Row-wise inner products of a and b over the columns of each layer, shape (d, L)."""
    if len(set(widths)) == 1:
        shape = (len(widths), widths[0])
        dots: Tensor = torch.linalg.vecdot(a.unflatten(1, shape), b.unflatten(1, shape))
        return dots
    pairs = zip(a.split(widths, dim=1), b.split(widths, dim=1), strict=True)
    return torch.stack([torch.linalg.vecdot(u, v) for u, v in pairs], dim=1)


def _grad_of_states(grad: Tensor, folded: Tensor, widths: tuple[int, ...]) -> tuple[Sequence[Tensor], Tensor | None]:
    """What reaches each h_l by its own readout, to be written over; with equal widths also what these are slices of."""
    if len(set(widths)) > 1:
        return torch.mm(grad, folded).split(widths, dim=1), None
    by_layer: Tensor = folded.unflatten(1, (len(widths), widths[0]))  # [d, L, n]
    stacked = torch.bmm(grad.expand(len(widths), *grad.shape), by_layer.transpose(0, 1))
    return stacked.unbind(0), stacked


def _affine_out(
    h: Tensor, weight: Tensor, bias: Tensor | None, weight_scale: float, bias_scale: float, out: Tensor
) -> Tensor:
    """Like affine, into out."""
    if bias is not None:
        return torch.addmm(bias, h, weight.t(), beta=bias_scale, alpha=weight_scale, out=out)
    return _times(torch.mm(h, weight.t(), out=out), weight_scale)


def _times(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else x.mul_(scale)
