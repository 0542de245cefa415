"""Triton kernel of network: the walk up the layers, x to f. No checks and no autograd here."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from nftk.kernels._tiles import activate, dot, pick
from nftk.kernels._walk import block_of_outputs, groups_of, layer_done
from nftk.kernels._workspace import counters
from nftk.kernels.choice import Tiles, options
from torch import Tensor


@triton.jit
def _layer_product(
    below, stride, mask_b, weight, n_in, n_out, cols,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Some columns of W_l h_{l-1} for a block of rows; pointers are those of its first row, so offsets have 32 bits."""
    local = tl.arange(0, BLOCK_B)
    g = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    for k in range(0, n_in, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)
        mask_k = ks < n_in
        h = tl.load(below + local[:, None] * stride + ks[None, :], mask=mask_b[:, None] & mask_k[None, :], other=0.0)
        w_mask = (cols < n_out)[None, :] & mask_k[:, None]
        w = tl.load(weight + cols[None, :] * n_in + ks[:, None], mask=w_mask, other=0.0)
        g = dot(h, w, g, PRECISION)
    return g


@triton.jit
def _readout(
    h_rows, stride, mask_b, width, readout_weight, omega_column, first_column, d, stride_vd, stride_vn, stride_od,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """omega_l * V_l h_l for a block of rows, from the h that its programs have just stored.

    A loop of its own: one with the layer's product made Triton give both the layout of the narrower one, and spill.
    """
    local = tl.arange(0, BLOCK_B)
    outs = tl.arange(0, BLOCK_D)
    mask_d = outs < d
    acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for k in range(0, width, BLOCK_R):
        ks = k + tl.arange(0, BLOCK_R)
        mask_k = ks < width
        h = tl.load(h_rows + local[:, None] * stride + ks[None, :], mask=mask_b[:, None] & mask_k[None, :], other=0.0)
        v_offsets = outs[None, :] * stride_vd + (first_column + ks)[:, None] * stride_vn
        v = tl.load(readout_weight + v_offsets, mask=mask_d[None, :] & mask_k[:, None], other=0.0)
        acc = dot(h, v, acc, PRECISION)
    return acc * tl.load(omega_column + outs * stride_od, mask=mask_d, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["B"])
def _network_fwd_kernel(
    x, weights, biases, readout_weight, omega, output_bias, f, states, pre, arrivals,
    weight_scales, bias_scales, readout_scales,
    B, m, N, d, widest, stride_x, stride_vd, stride_vn, stride_od, stride_ol,
    widths: tl.constexpr, bias_widths: tl.constexpr,
    PHI: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OUTPUT_BIAS: tl.constexpr, SCALED: tl.constexpr,
    TRAINING: tl.constexpr, KEEP: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """X to f: a program owns blocks of rows and walks the layers; COLUMNS programs share a block where there are few.

    TRAINING: states (B, N) takes every h_l, and pre every g_l with KEEP. Else states is scratch for two layers of a
    block of rows, for each block in work.
    """
    L: tl.constexpr = len(widths)
    group = tl.program_id(0) // COLUMNS
    groups = tl.num_programs(0) // COLUMNS
    column_program = tl.program_id(0) % COLUMNS
    local = tl.arange(0, BLOCK_B)
    outs = tl.arange(0, BLOCK_D)
    mask_d = outs < d
    for block in range(group, tl.cdiv(B, BLOCK_B), groups):
        # int64 before any product with a size: rows times a stride passes 2^31 on real data
        start = tl.cast(block, tl.int64) * BLOCK_B
        mask_b = local < B - start
        total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
        below = x + start * stride_x
        below_stride = stride_x
        if TRAINING:
            stride = N
            base = states + start * N
        else:
            stride = widest
            base = states + tl.cast(group, tl.int64) * 2 * BLOCK_B * widest
        n_in = m
        first_column = 0
        for layer in range(L):
            n_out = pick(widths, layer)
            weight = pick(weights, layer)
            weight_scale = 1.0
            bias_scale = 1.0
            if SCALED:
                weight_scale = pick(weight_scales, layer)
                bias_scale = pick(bias_scales, layer)
            if TRAINING:
                target = base + first_column
            else:
                # the two scratch blocks take turns
                target = base + layer % 2 * BLOCK_B * widest
            for n in range(column_program * BLOCK_N, n_out, COLUMNS * BLOCK_N):
                cols = n + tl.arange(0, BLOCK_N)
                g = _layer_product(
                    below, below_stride, mask_b, weight, n_in, n_out, cols, PRECISION, BLOCK_B, BLOCK_N, BLOCK_K
                )  # fmt: skip
                g *= weight_scale
                if HAS_BIAS:
                    bias_mask = cols < pick(bias_widths, layer)
                    bias = tl.load(pick(biases, layer) + cols, mask=bias_mask, other=0.0).to(tl.float32)
                    g += (bias * bias_scale)[None, :]
                mask = mask_b[:, None] & (cols < n_out)[None, :]
                where = local[:, None] * stride + cols[None, :]
                tl.store(target + where, activate(g, PHI).to(states.dtype.element_ty), mask=mask)
                if KEEP:
                    tl.store(pre + start * N + first_column + where, g.to(pre.dtype.element_ty), mask=mask)
            layer_done(arrivals + group, (layer + 1) * COLUMNS, COLUMNS)
            below = target
            below_stride = stride
            n_in = n_out
            if column_program == 0:
                share = _readout(
                    target, stride, mask_b, n_out, readout_weight, omega + layer * stride_ol, first_column,
                    d, stride_vd, stride_vn, stride_od, PRECISION, BLOCK_B, BLOCK_D, BLOCK_R,
                )  # fmt: skip
                if SCALED:
                    share *= pick(readout_scales, layer)
                total += share
            first_column += n_out
        if column_program == 0:
            if HAS_OUTPUT_BIAS:
                total += tl.load(output_bias + outs, mask=mask_d, other=0.0).to(tl.float32)[None, :]
            where = start * d + local[:, None] * d + outs[None, :]
            tl.store(f + where, total.to(f.dtype.element_ty), mask=mask_b[:, None] & mask_d[None, :])
        if COLUMNS > 1:
            # whoever leaves last sets the counter back: nobody waits on it any more
            if tl.atomic_add(arrivals + group, 1, sem="acq_rel") == (L + 1) * COLUMNS - 1:
                tl.store(arrivals + group, 0)
        else:
            # the next block's first layer writes the scratch that the last readout has just read
            tl.debug_barrier()


def network_fwd(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    readout_weight: Tensor,
    omega: Tensor,
    output_bias: Tensor | None,
    phi: str,
    weight_scales: Sequence[float],
    bias_scales: Sequence[float],
    readout_scales: Sequence[float],
    training: bool,
    keep: bool,
    precision: str,
    out_dtype: torch.dtype,
    tiles: Tiles,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return f (B, d), for training all h_l side by side (B, N), and with keep all g_l too.

    One launch. x has unit column stride and the weights are contiguous; what is not kept comes back empty.
    """
    rows, m = x.shape
    widths = tuple(w.shape[0] for w in weights)
    total, widest, d = sum(widths), max(widths), omega.shape[0]
    f = x.new_empty(rows, d, dtype=out_dtype)
    states = x.new_empty((rows, total) if training else (0,))
    pre = x.new_empty((rows, total) if keep else (0,))
    if rows == 0:
        return f, states, pre
    groups = groups_of(rows, tiles, x)
    scratch = states if training else x.new_empty(groups * 2 * tiles.block_b * widest)
    shared = tiles.splits > 1
    scaled = any(s != 1.0 for s in (*weight_scales, *bias_scales, *readout_scales))
    _network_fwd_kernel[(groups * tiles.splits,)](
        x, tuple(weights), tuple(w if b is None else b for w, b in zip(weights, biases, strict=True)),
        readout_weight, omega, f if output_bias is None else output_bias, f, scratch, pre,
        counters(groups, x.device) if shared else f,
        tuple(weight_scales), tuple(bias_scales), tuple(readout_scales),
        rows, m, total, d, widest, x.stride(0), *readout_weight.stride(), *omega.stride(),
        widths=widths, bias_widths=tuple(0 if b is None else len(b) for b in biases),
        PHI=phi, HAS_BIAS=any(b is not None for b in biases), HAS_OUTPUT_BIAS=output_bias is not None, SCALED=scaled,
        TRAINING=training, KEEP=keep, COLUMNS=tiles.splits, PRECISION=precision,
        BLOCK_B=tiles.block_b, BLOCK_D=block_of_outputs(d), BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_m,
        BLOCK_R=max(tiles.block_m, 1024 // tiles.block_b),
        **options(tiles, cooperative=shared, plain=not scaled),
    )  # fmt: skip
    return f, states, pre
