"""The network operation by Triton kernels: one launch forward, two backward, and the rule for what they serve."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nftk.ops import precision as precisions
from nftk.ops.batching import addressable, register_loop, rows_of
from nftk.ops.network_formula import Plan, formula_gradients, is_batched, transform_active

# the activations whose slope is a function of h, so that g is not kept for backward (kernels/_tiles.py)
SLOPE_FROM_H = frozenset(("relu", "leaky_relu", "tanh", "elu", "identity"))
# a program keeps f of its rows in registers, [64, 64] at most
MOST_OUTPUTS = 64
# wider layers are bound by their products, at which torch.matmul is the better kernel
_WIDEST = 1024
# three pointers and as many numbers a layer fit into a launch's arguments
_MOST_LAYERS = 100


def unserved(plan: Plan, tensors: Sequence[Tensor | None], fan_in: int, outputs: int, backend: str) -> str | None:
    """Return what of a call the kernels have no code for; None for nothing."""
    if any(t is not None and t.dtype is torch.float64 for t in tensors):
        return "torch.float64, because Triton sums in float32"
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode derivatives (jvp)"
    if backend == "auto" and transform_active():
        return "torch.func transforms as fast as torch's own operations"
    if len({t.dtype for t in tensors[1:] if t is not None}) > 1:
        return "parameters of different dtypes"
    return unserved_shape(plan, fan_in, outputs)


def unserved_shape(plan: Plan, fan_in: int, outputs: int) -> str | None:
    """Return what of a network's shape the kernels have no code for; None for nothing."""
    names = {phi.name for phi in plan.activations}
    if None in names:
        return "an activation without a name"
    if len(names) > 1:
        return f"different activations, got {', '.join(sorted(map(str, names)))}"
    if outputs > MOST_OUTPUTS:
        return f"more than {MOST_OUTPUTS} outputs, got {outputs}"
    if max(plan.widths) > _WIDEST:
        return f"layers wider than {_WIDEST}, got {max(plan.widths)}"
    if len(plan.widths) > _MOST_LAYERS:
        return f"more than {_MOST_LAYERS} layers, got {len(plan.widths)}"
    if fan_in * max(plan.widths[0], 64) >= 2**31:
        return f"64 inputs, or a first weight, of 2^31 entries or more, got {plan.widths[0]} x {fan_in}"
    return None


def run(
    plan: Plan,
    precision: str,
    x: Tensor,
    omega: Tensor,
    readout_weight: Tensor,
    output_bias: Tensor | None,
    *layers: Tensor | None,
) -> Tensor:
    """Return f by the kernels; layers are the L weights, then the L biases."""
    rows = rows_of(x)
    tensors = (omega, readout_weight, output_bias, *layers)
    out_dtype = precisions.autocast_dtype(x) or x.dtype
    f: Tensor
    if transform_active() or torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors)):
        f = _Network.apply(plan, precision, out_dtype, rows, *tensors)[0]  # type: ignore[no-untyped-call]
    else:
        f = _forward(plan, precision, out_dtype, False, rows, *tensors)[0]
    return f if x.ndim == 2 else f.view(*x.shape[:-1], f.shape[-1])


def _forward(
    plan: Plan, precision: str, out_dtype: torch.dtype, training: bool, x: Tensor, *tensors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    omega, readout_weight, output_bias, *layers = tensors
    depth = len(plan.widths)
    return _fwd(  # type: ignore[no-any-return]
        x, omega, readout_weight, output_bias, layers[:depth], layers[depth:], str(plan.activations[0].name),
        plan.weight_scales, plan.bias_scales, plan.readout_scales, training, precision, out_dtype,
    )  # fmt: skip


_SCHEMA = (
    "(Tensor x, Tensor omega, Tensor readout_weight, Tensor? output_bias, Tensor[] weights, Tensor?[] biases, str phi, "
    "float[] weight_scales, float[] bias_scales, float[] readout_scales, bool training, str precision, "
    "ScalarType out_dtype) -> (Tensor, Tensor, Tensor)"
)
_SCHEMA_BWD = (
    "(Tensor grad, Tensor x, Tensor omega, Tensor readout_weight, Tensor[] weights, Tensor states, Tensor pre, "
    "str phi, float[] weight_scales, float[] bias_scales, float[] readout_scales, int first, bool[] needs, "
    "str precision) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("nftk::network", mutates_args=(), schema=_SCHEMA)
def _fwd(
    x: Tensor,
    omega: Tensor,
    readout_weight: Tensor,
    output_bias: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    phi: str,
    weight_scales: Sequence[float],
    bias_scales: Sequence[float],
    readout_scales: Sequence[float],
    training: bool,
    precision: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """f, and for training all h_l side by side and all g_l where phi' is a function of them."""
    from nftk.kernels import choice
    from nftk.kernels.network import network_fwd

    word = choice.kernel_precision(x.dtype, precision, out_dtype)
    keep = training and phi not in SLOPE_FROM_H
    scaled = any(s != 1.0 for s in (*weight_scales, *bias_scales, *readout_scales))
    tiles = choice.walk_tiles("network_fwd", x, [w.shape[0] for w in weights], omega.shape[0], word, scaled)
    with torch.cuda.device_of(x):
        return network_fwd(  # type: ignore[no-any-return]
            _rows(x), [w.contiguous() for w in weights], biases, addressable(readout_weight), addressable(omega),
            output_bias, phi, weight_scales, bias_scales, readout_scales, training, keep, word, out_dtype, tiles,
        )  # fmt: skip


@_fwd.register_fake
def _(
    x: Tensor,
    omega: Tensor,
    readout_weight: Tensor,
    output_bias: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    phi: str,
    weight_scales: Sequence[float],
    bias_scales: Sequence[float],
    readout_scales: Sequence[float],
    training: bool,
    precision: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, total = x.shape[0], readout_weight.shape[1]
    keep = training and phi not in SLOPE_FROM_H
    return (
        x.new_empty(rows, omega.shape[0], dtype=out_dtype),
        x.new_empty((rows, total) if training else (0,)),
        x.new_empty((rows, total) if keep else (0,)),
    )


@torch.library.custom_op("nftk::network_bwd", mutates_args=(), schema=_SCHEMA_BWD)
def _bwd(
    grad: Tensor,
    x: Tensor,
    omega: Tensor,
    readout_weight: Tensor,
    weights: Sequence[Tensor],
    states: Tensor,
    pre: Tensor,
    phi: str,
    weight_scales: Sequence[float],
    bias_scales: Sequence[float],
    readout_scales: Sequence[float],
    first: int,
    needs: Sequence[bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # gradients of x, all W one after the other, all b, V, Omega and the output bias; what is not needed is empty
    # first: the lowest layer that needs anything; needs: of x, weights, biases, readout and output bias
    from nftk.kernels import choice
    from nftk.kernels.network_bwd import network_bwd
    from nftk.kernels.network_weights import network_bwd_weights

    need_x, need_weights, need_biases, need_readout, need_output_bias = needs
    widths, d = [w.shape[0] for w in weights], omega.shape[0]
    word = choice.kernel_precision(x.dtype, precision, grad.dtype)
    x, weights = _rows(x), [w.contiguous() for w in weights]
    grad, readout_weight, omega = addressable(grad), addressable(readout_weight), addressable(omega)
    with torch.cuda.device_of(x):
        deltas = grad_x = x.new_empty(0)
        if need_x or need_weights or need_biases:
            tiles = choice.walk_tiles("network_bwd", x, widths, d, word)
            deltas, grad_x = network_bwd(
                grad, x, weights, readout_weight, omega, pre if pre.numel() else states, phi,
                weight_scales, readout_scales, first, need_x, word, tiles,
            )  # fmt: skip
        tiles = choice.weight_tiles(x, widths, d, word)
        return grad_x, *network_bwd_weights(
            grad, x, states, deltas, readout_weight, omega, widths, weight_scales, bias_scales, readout_scales,
            first, need_weights or need_biases, need_biases, need_readout, need_output_bias, word, tiles,
        )  # fmt: skip


@_bwd.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    omega: Tensor,
    readout_weight: Tensor,
    weights: Sequence[Tensor],
    states: Tensor,
    pre: Tensor,
    phi: str,
    weight_scales: Sequence[float],
    bias_scales: Sequence[float],
    readout_scales: Sequence[float],
    first: int,
    needs: Sequence[bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    need_x, need_weights, need_biases, need_readout, need_output_bias = needs
    readout = need_readout or need_output_bias
    sizes = sum(w.numel() for w in weights)
    return (
        x.new_empty(x.shape if need_x else (0,)),
        readout_weight.new_empty(sizes if need_weights or need_biases else 0),
        readout_weight.new_empty(readout_weight.shape[1] if need_biases else 0),
        readout_weight.new_empty(readout_weight.shape if readout else (0,)),
        omega.new_empty(omega.shape if readout else (0,)),
        omega.new_empty(omega.shape[0] if need_output_bias else 0),
    )


register_loop(_fwd)
register_loop(_bwd)


class _Network(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(plan: Plan, precision: str, out_dtype: torch.dtype, x: Tensor, *tensors: Tensor | None) -> Any:
        return _forward(plan, precision, out_dtype, True, x, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.plan, ctx.precision, _, *tensors = inputs
        _, states, pre = output
        ctx.mark_non_differentiable(states, pre)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, states, pre)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        plan: Plan = ctx.plan
        depth = len(plan.widths)
        *inputs, states, pre = ctx.saved_tensors
        need = ctx.needs_input_grad[3:]
        if grad is None:
            return (None,) * (3 + len(need))
        if torch.is_grad_enabled() or is_batched(grad):
            # the gradients are to be differentiated themselves, or come many at once
            return None, None, None, *formula_gradients(plan, inputs, need, grad)
        x, omega, readout_weight, _, *layers = inputs
        need_x, need_omega, need_readout, need_output_bias, *need_layers = need
        needs_weights, needs_biases = need_layers[:depth], need_layers[depth:]
        first = next((i for i in range(depth) if need_x or needs_weights[i] or needs_biases[i]), depth)
        needs = [need_x, any(needs_weights), any(needs_biases), need_omega or need_readout, need_output_bias]
        grad_x, grad_weights, grad_biases, grad_readout, grad_omega, grad_output_bias = _bwd(
            grad, x, omega, readout_weight, layers[:depth], states, pre, str(plan.activations[0].name),
            plan.weight_scales, plan.bias_scales, plan.readout_scales, first, needs, ctx.precision,
        )  # fmt: skip
        per_weight: Sequence[Tensor | None] = [None] * depth
        per_bias: Sequence[Tensor | None] = [None] * depth
        if any(needs_weights):
            shapes = [w.shape for w in layers[:depth]]
            pieces = grad_weights.split([shape.numel() for shape in shapes])
            per_weight = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        if any(needs_biases):
            per_bias = grad_biases.split(plan.widths)
        every = [grad_x, grad_omega, grad_readout, grad_output_bias, *per_weight, *per_bias]
        return None, None, None, *(g if wanted else None for g, wanted in zip(every, need, strict=True))


def _rows(x: Tensor) -> Tensor:
    # offsets inside a block of 64 rows have 32 bits; a stride of one row can be anything
    small = x.stride(1) == 1 and x.stride(0) * 64 < 2**31
    return x if small else x.clone(memory_format=torch.contiguous_format)
