"""Triton kernel of network: the gradients of all weights, biases and readouts, grouped in one launch."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from nftk.kernels._tiles import arrived_last, dot, find_tile, pick, tiles_before
from nftk.kernels._workspace import counters
from nftk.kernels.choice import Tiles, options
from nftk.kernels.readout import readout_weight_tile
from torch import Tensor


@triton.jit
def _find_weight_tile(tile, widths: tl.constexpr, m, first, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Layer of a tile of grad W, where it lies in it, and where the layer lies among the columns and the weights."""
    layer = 0
    inside = 0
    n_out = 0
    n_in = 0
    column = 0
    offset = tl.zeros((), tl.int64)
    next_tile = 0
    next_column = 0
    next_offset = tl.zeros((), tl.int64)
    below = m
    for j in tl.static_range(len(widths)):
        wanted = first <= j
        reached = wanted & (tile >= next_tile)
        layer = tl.where(reached, j, layer)
        inside = tl.where(reached, tile - next_tile, inside)
        n_out = tl.where(reached, widths[j], n_out)
        n_in = tl.where(reached, below, n_in)
        column = tl.where(reached, next_column, column)
        offset = tl.where(reached, next_offset, offset)
        next_tile += tl.where(wanted, tl.cdiv(widths[j], BLOCK_M) * tl.cdiv(below, BLOCK_N), 0)
        next_column += widths[j]
        next_offset += tl.cast(below, tl.int64) * widths[j]
        below = widths[j]
    return layer, inside, n_out, n_in, column, offset


@triton.jit(do_not_specialize=["B", "first", "weight_tiles", "splits"])
def _network_bwd_weights_kernel(
    grad, x, states, deltas, readout_weight, omega,
    grad_weights, grad_biases, grad_readout_weight, grad_omega, grad_output_bias,
    partials, readout_partials, omega_partials, arrivals,
    weight_scales, bias_scales, readout_scales,
    B, m, N, d, first, weight_tiles, splits,
    stride_x, stride_gb, stride_gd, stride_vd, stride_vn, stride_od, stride_ol,
    widths: tl.constexpr,
    SCALED: tl.constexpr, NEED_BIAS: tl.constexpr, NEED_OUTPUT_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grad W_l = delta_l^T h_{l-1}, grad b_l = sum delta_l for every l from first on, then the readout's gradients.

    One program per tile of a weight and split of the rows; the last split to arrive adds all in their order.
    """
    program = tl.program_id(0)
    L: tl.constexpr = len(widths)
    if program < weight_tiles * splits:
        tile = program % weight_tiles
        split = program // weight_tiles
        layer, inside, n_out, n_in, first_column, offset = _find_weight_tile(tile, widths, m, first, BLOCK_M, BLOCK_N)
        across = tl.cdiv(n_in, BLOCK_N)
        ms = inside // across * BLOCK_M + tl.arange(0, BLOCK_M)
        ns = inside % across * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_m = ms < n_out
        mask_n = ns < n_in
        # layer first reads x only if it is the first of all
        below = tl.where(layer == 0, x, states + (first_column - n_in))
        below_stride = tl.where(layer == 0, stride_x, N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        bias = tl.zeros([BLOCK_M], tl.float32)
        blocks = tl.cdiv(B, BLOCK_B)
        for block in range(split * blocks // splits, (split + 1) * blocks // splits):
            rows = tl.arange(0, BLOCK_B).to(tl.int64) + block * BLOCK_B
            mask_b = rows < B
            d_offsets = rows[:, None] * N + (first_column + ms)[None, :]
            delta = tl.load(deltas + d_offsets, mask=mask_b[:, None] & mask_m[None, :], other=0.0)
            h_offsets = rows[:, None] * below_stride + ns[None, :]
            h = tl.load(below + h_offsets, mask=mask_b[:, None] & mask_n[None, :], other=0.0)
            acc = dot(tl.trans(delta), h, acc, PRECISION)
            if NEED_BIAS:
                bias += tl.sum(delta.to(tl.float32), 0)
        done = splits == 1
        if not done:
            size: tl.constexpr = BLOCK_M * BLOCK_N + BLOCK_M
            here = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
            lanes = BLOCK_M * BLOCK_N + tl.arange(0, BLOCK_M)
            stride = tl.cast(weight_tiles, tl.int64) * size
            base = partials + tl.cast(tile, tl.int64) * size
            tl.store(base + split * stride + here, acc)
            if NEED_BIAS:
                tl.store(base + split * stride + lanes, bias)
            done = arrived_last(arrivals + tile, splits)
            if done:
                acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                bias = tl.zeros([BLOCK_M], tl.float32)
                for s in range(splits):
                    acc += tl.load(base + s * stride + here, cache_modifier=".cg")
                    if NEED_BIAS:
                        bias += tl.load(base + s * stride + lanes, cache_modifier=".cg")
        if done:
            if SCALED:
                acc *= pick(weight_scales, layer)
                bias *= pick(bias_scales, layer)
            where = offset + ms[:, None].to(tl.int64) * n_in + ns[None, :]
            tl.store(
                grad_weights + where, acc.to(grad_weights.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :]
            )
            if NEED_BIAS:
                if inside % across == 0:
                    tl.store(grad_biases + first_column + ms, bias.to(grad_biases.dtype.element_ty), mask=mask_m)
    else:
        rest = program - weight_tiles * splits
        tiles = tiles_before(L, widths, BLOCK_N)
        tile = rest % tiles
        layer, column, width, first_column, first_tile, after = find_tile(tile, widths, BLOCK_N)
        scale = 1.0
        if SCALED:
            scale = pick(readout_scales, layer)
        readout_weight_tile(
            grad, grad, states + first_column, readout_weight, omega, grad_readout_weight, grad_omega, grad_output_bias,
            readout_partials, omega_partials, arrivals + weight_tiles,
            tile, tiles, rest // tiles, splits, 0, 1, layer, column, width, first_column, first_tile, after, scale,
            B, N, d, L, N, 1,
            stride_gb, stride_gd, 0, 0, 0, stride_vd, stride_vn, stride_od, stride_ol,
            grad,
            False, False, True, NEED_OUTPUT_BIAS, PRECISION, BLOCK_B, BLOCK_D, BLOCK_N,
        )  # fmt: skip


def network_bwd_weights(
    grad: Tensor,
    x: Tensor,
    states: Tensor,
    deltas: Tensor,
    readout_weight: Tensor,
    omega: Tensor,
    widths: Sequence[int],
    weight_scales: Sequence[float],
    bias_scales: Sequence[float],
    readout_scales: Sequence[float],
    first: int,
    need_weights: bool,
    need_biases: bool,
    need_readout: bool,
    need_output_bias: bool,
    precision: str,
    tiles: Tiles,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return grad W of all layers one after the other, grad b likewise, grad V, grad Omega, grad output bias.

    One launch; W and b of the layers below first are unwritten, and what is not needed comes back empty.
    """
    rows, m = x.shape
    total, d, depth = sum(widths), omega.shape[0], len(widths)
    fan_in = (m, *widths[:-1])
    readout = need_readout or need_output_bias
    sizes = sum(n * k for n, k in zip(widths, fan_in, strict=True))
    grad_weights = readout_weight.new_empty(sizes if need_weights else 0)
    grad_biases = readout_weight.new_empty(total if need_biases else 0)
    grad_readout_weight = readout_weight.new_empty((d, total) if readout else (0,))
    grad_omega = omega.new_empty((d, depth) if readout else (0,))
    grad_output_bias = omega.new_empty(d if need_output_bias else 0)
    count = 0
    if need_weights:
        pairs = list(zip(widths, fan_in, strict=True))[first:]
        count = sum(triton.cdiv(n, tiles.block_m) * triton.cdiv(k, tiles.block_n) for n, k in pairs)
    columns = sum(triton.cdiv(n, tiles.block_n) for n in widths) if readout else 0
    if count + columns == 0:
        return grad_weights, grad_biases, grad_readout_weight, grad_omega, grad_output_bias
    block_d = max(16, triton.next_power_of_2(d))
    splits = tiles.splits
    partial, readout_partial = count * tiles.block_m * (tiles.block_n + 1), columns * block_d * (tiles.block_n + 1)
    scaled = any(s != 1.0 for s in (*weight_scales, *bias_scales, *readout_scales))
    scratch = [
        grad.new_empty(size, dtype=torch.float32)
        for size in (
            splits * partial if splits > 1 else 0,
            splits * readout_partial if splits > 1 else 0,
            columns * block_d,
        )
    ]
    _network_bwd_weights_kernel[((count + columns) * splits,)](
        grad, x, states, deltas, readout_weight, omega,
        grad_weights, grad_biases, grad_readout_weight, grad_omega, grad_output_bias,
        *scratch, counters(count + columns + depth, grad.device),
        tuple(weight_scales), tuple(bias_scales), tuple(readout_scales),
        rows, m, total, d, first, count, splits,
        x.stride(0), *grad.stride(), *readout_weight.stride(), *omega.stride(),
        widths=tuple(widths), SCALED=scaled,
        NEED_BIAS=need_biases, NEED_OUTPUT_BIAS=need_output_bias, PRECISION=precision,
        BLOCK_B=tiles.block_b, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_D=block_d,
        **options(tiles, plain=not scaled),
    )  # fmt: skip
    return grad_weights, grad_biases, grad_readout_weight, grad_omega, grad_output_bias
