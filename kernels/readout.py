"""Triton kernels of readout. No checks and no autograd here: nftk/ops/readout.py owns both."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from nftk.kernels._tiles import arrived_last, dot, dot_weighted, find_tile, pick, tiles_before
from nftk.kernels._workspace import counters
from nftk.kernels.choice import Tiles, options
from torch import Tensor


@triton.jit(do_not_specialize=["B", "splits"])
def _readout_fwd_kernel(
    hs, readout_weight, omega, f, readouts, partials, arrivals,
    row_strides, col_strides, scales,
    B, d, splits, stride_vd, stride_vn, stride_od, stride_ol,
    widths: tl.constexpr, DENSE: tl.constexpr, SCALED: tl.constexpr, WITH_READOUTS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """F = sum_l omega_l * f_l: one program per [BLOCK_B, BLOCK_D] tile of f and per split of the layers.

    All layers' columns are one loop of tiles, so loads are in flight across the layers' borders.
    """
    # int64 before any product with a size: rows times a stride passes 2^31 on real data
    rows = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    outs = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(2)
    L: tl.constexpr = len(widths)
    mask_b = rows < B
    mask_d = outs < d
    first = tiles_before(split * L // splits, widths, BLOCK_N)
    last = tiles_before((split + 1) * L // splits, widths, BLOCK_N)

    total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for tile in range(first, last):
        layer, column, width, first_column, _, _ = find_tile(tile, widths, BLOCK_N)
        cols = column + tl.arange(0, BLOCK_N)
        mask_n = cols < width
        offsets = rows[:, None] * pick(row_strides, layer)
        if DENSE:
            offsets += cols[None, :]
        else:
            offsets += cols[None, :].to(tl.int64) * pick(col_strides, layer)
        h = tl.load(pick(hs, layer) + offsets, mask=mask_b[:, None] & mask_n[None, :], other=0.0)
        v_offsets = outs[None, :].to(tl.int64) * stride_vd + (first_column + cols)[:, None] * stride_vn
        v = tl.load(readout_weight + v_offsets, mask=mask_d[None, :] & mask_n[:, None], other=0.0)
        acc = dot(h, v, acc, PRECISION)
        if column + BLOCK_N >= width:
            if SCALED:
                acc *= pick(scales, layer)
            if WITH_READOUTS:
                where = (rows[:, None] * L + layer) * d + outs[None, :]
                tl.store(readouts + where, acc.to(readouts.dtype.element_ty), mask=mask_b[:, None] & mask_d[None, :])
            weight = tl.load(omega + outs * stride_od + layer * stride_ol, mask=mask_d, other=0.0).to(tl.float32)
            total += acc * weight[None, :]
            acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)

    mask = mask_b[:, None] & mask_d[None, :]
    where = rows[:, None] * d + outs[None, :]
    if splits == 1:
        tl.store(f + where, total.to(f.dtype.element_ty), mask=mask)
    else:
        # the last split to arrive adds all of them in their own order, so the sum does not depend on who that was
        size = B.to(tl.int64) * d
        tl.store(partials + split * size + where, total, mask=mask)
        counter = arrivals + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        if arrived_last(counter, splits):
            total = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
            for s in range(splits):
                total += tl.load(partials + s * size + where, mask=mask, other=0.0, cache_modifier=".cg")
            tl.store(f + where, total.to(f.dtype.element_ty), mask=mask)


@triton.jit
def readout_weight_tile(
    grad, grad_readouts, h, readout_weight, omega, grad_readout_weight, grad_omega, grad_output_bias,
    partials, omega_partials, arrivals,
    tile, tiles, split, splits, out_tile, out_tiles, layer, column, width, first_column, first_tile, after, scale,
    B, N, d, L: tl.constexpr, h_row, h_col,
    stride_gb, stride_gd, stride_rb, stride_rl, stride_rd, stride_vd, stride_vn, stride_od, stride_ol,
    grad_h,
    WITH_READOUTS: tl.constexpr, NEED_H: tl.constexpr, NEED_V: tl.constexpr, NEED_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of V and its share of Omega's, from one split of the rows; with NEED_H grad h as well.

    With G = grad^T h: grad V = omega * G and grad omega_i = sum_n V[i, n] G[i, n], so no f_l is needed.
    """
    cols = column + tl.arange(0, BLOCK_N)
    outs = out_tile * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_n = cols < width
    mask_d = outs < d
    mask_v = mask_d[:, None] & mask_n[None, :]
    v_offsets = outs[:, None].to(tl.int64) * stride_vd + (first_column + cols)[None, :] * stride_vn
    v = tl.load(readout_weight + v_offsets, mask=mask_v, other=0.0)  # [BLOCK_D, BLOCK_N]
    weight = tl.load(omega + outs * stride_od + layer * stride_ol, mask=mask_d, other=0.0).to(tl.float32) * scale
    sums = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)  # of grad^T h
    sums_v = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)  # of grad_readouts^T h
    bias = tl.zeros([BLOCK_D], tl.float32)
    blocks = tl.cdiv(B, BLOCK_B)
    for block in range(split * blocks // splits, (split + 1) * blocks // splits):
        rows = tl.arange(0, BLOCK_B).to(tl.int64) + block * BLOCK_B
        mask_b = rows < B
        mask_g = mask_b[:, None] & mask_d[None, :]
        g = tl.load(grad + rows[:, None] * stride_gb + outs[None, :] * stride_gd, mask=mask_g, other=0.0)
        g = g.to(tl.float32)  # [BLOCK_B, BLOCK_D]
        if WITH_READOUTS:
            offsets = rows[:, None] * stride_rb + layer * stride_rl + outs[None, :] * stride_rd
            r = tl.load(grad_readouts + offsets, mask=mask_g, other=0.0).to(tl.float32) * scale
        mask_h = mask_b[:, None] & mask_n[None, :]
        if NEED_H:
            if not WITH_READOUTS:
                r = g
            grad_tile = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
            grad_tile = dot_weighted(g, weight, r, v, grad_tile, WITH_READOUTS, PRECISION)
            where = rows[:, None] * N + (first_column + cols)[None, :]
            tl.store(grad_h + where, grad_tile.to(grad_h.dtype.element_ty), mask=mask_h)
        if NEED_V:
            tile_h = tl.load(h + rows[:, None] * h_row + cols[None, :].to(tl.int64) * h_col, mask=mask_h, other=0.0)
            sums = dot(tl.trans(g), tile_h, sums, PRECISION)
            if WITH_READOUTS:
                sums_v = dot(tl.trans(r), tile_h, sums_v, PRECISION)
        if NEED_BIAS:
            bias += tl.sum(g, 0)

    if NEED_V:
        done = splits == 1
        slot = out_tile * tiles + tile
        if not done:
            size: tl.constexpr = BLOCK_D * BLOCK_N
            here = tl.arange(0, BLOCK_D)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
            kinds: tl.constexpr = 2 if WITH_READOUTS else 1
            stride = tl.cast(out_tiles * tiles, tl.int64) * (kinds * size + BLOCK_D)
            base = partials + tl.cast(slot, tl.int64) * (kinds * size + BLOCK_D)
            tl.store(base + split * stride + here, sums)
            if WITH_READOUTS:
                tl.store(base + split * stride + size + here, sums_v)
            if NEED_BIAS:
                tl.store(base + split * stride + kinds * size + tl.arange(0, BLOCK_D), bias)
            done = arrived_last(arrivals + slot, splits)
            if done:
                # in the order of the splits, whoever came last
                sums = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
                sums_v = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
                bias = tl.zeros([BLOCK_D], tl.float32)
                for s in range(splits):
                    sums += tl.load(base + s * stride + here, cache_modifier=".cg")
                    if WITH_READOUTS:
                        sums_v += tl.load(base + s * stride + size + here, cache_modifier=".cg")
                    if NEED_BIAS:
                        bias += tl.load(base + s * stride + kinds * size + tl.arange(0, BLOCK_D), cache_modifier=".cg")
        if done:
            grad_v = sums * weight[:, None]
            if WITH_READOUTS:
                grad_v += sums_v
            where = outs[:, None].to(tl.int64) * N + (first_column + cols)[None, :]
            tl.store(grad_readout_weight + where, grad_v.to(grad_readout_weight.dtype.element_ty), mask=mask_v)
            if NEED_BIAS:
                if tile == 0:
                    tl.store(grad_output_bias + outs, bias.to(grad_output_bias.dtype.element_ty), mask=mask_d)
            # grad omega: the last tile of a layer adds up the layer's tiles, again in their order
            share = tl.sum(sums * v.to(tl.float32), 1) * scale  # [BLOCK_D]
            where_omega = grad_omega + outs * L + layer
            layer_tiles = after - first_tile
            lanes = tl.arange(0, BLOCK_D)
            if layer_tiles == 1:
                tl.store(where_omega, share.to(grad_omega.dtype.element_ty), mask=mask_d)
            else:
                tl.store(omega_partials + slot * BLOCK_D + lanes, share)
                if arrived_last(arrivals + out_tiles * tiles + out_tile * L + layer, layer_tiles):
                    share = tl.zeros([BLOCK_D], tl.float32)
                    for t in range(first_tile, after):
                        other = omega_partials + (out_tile * tiles + t) * BLOCK_D + lanes
                        share += tl.load(other, cache_modifier=".cg")
                    tl.store(where_omega, share.to(grad_omega.dtype.element_ty), mask=mask_d)


@triton.jit(do_not_specialize=["B", "grad_tiles", "splits"])
def _readout_bwd_kernel(
    grad, grad_readouts, hs, readout_weight, omega, grad_h, grad_readout_weight, grad_omega,
    partials, omega_partials, arrivals,
    row_strides, col_strides, scales,
    B, N, d, grad_tiles, splits,
    stride_gb, stride_gd, stride_rb, stride_rl, stride_rd, stride_vd, stride_vn, stride_od, stride_ol,
    widths: tl.constexpr, DENSE: tl.constexpr, SCALED: tl.constexpr, WITH_READOUTS: tl.constexpr,
    NEED_H: tl.constexpr, NEED_V: tl.constexpr, FUSED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """All gradients in one launch; a program owns one column tile of one layer.

    FUSED (d fits one tile): it walks a split of the rows and does grad h and the weight sums from the same tile of h.
    Else the first grad_tiles programs do one tile of grad h each, the others the weight sums of one tile of outputs.
    """
    L: tl.constexpr = len(widths)
    tiles = tiles_before(L, widths, BLOCK_N)
    program = tl.program_id(0)
    if program < grad_tiles:
        tile = program % tiles
        layer, column, width, first_column, _, _ = find_tile(tile, widths, BLOCK_N)
        scale = 1.0
        if SCALED:
            scale = pick(scales, layer)
        rows = (program // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
        cols = column + tl.arange(0, BLOCK_N)
        mask_b = rows < B
        mask_n = cols < width
        acc = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
        for k in range(0, d, BLOCK_D):
            outs = k + tl.arange(0, BLOCK_D)
            mask_d = outs < d
            mask_g = mask_b[:, None] & mask_d[None, :]
            g = tl.load(grad + rows[:, None] * stride_gb + outs[None, :] * stride_gd, mask=mask_g, other=0.0)
            weight = tl.load(omega + outs * stride_od + layer * stride_ol, mask=mask_d, other=0.0).to(tl.float32)
            v_offsets = outs[:, None].to(tl.int64) * stride_vd + (first_column + cols)[None, :] * stride_vn
            v = tl.load(readout_weight + v_offsets, mask=mask_d[:, None] & mask_n[None, :], other=0.0)
            r = g
            if WITH_READOUTS:
                offsets = rows[:, None] * stride_rb + layer * stride_rl + outs[None, :] * stride_rd
                r = tl.load(grad_readouts + offsets, mask=mask_g, other=0.0)
            acc = dot_weighted(g, weight, r, v, acc, WITH_READOUTS, PRECISION)
        where = rows[:, None] * N + (first_column + cols)[None, :]
        tile_grad = (acc * scale).to(grad_h.dtype.element_ty)
        tl.store(grad_h + where, tile_grad, mask=mask_b[:, None] & mask_n[None, :])
    else:
        rest = program - grad_tiles
        tile = rest % tiles
        split = rest // tiles % splits
        out_tile = rest // tiles // splits
        layer, column, width, first_column, first_tile, after = find_tile(tile, widths, BLOCK_N)
        scale = 1.0
        if SCALED:
            scale = pick(scales, layer)
        h_col = 1
        if not DENSE:
            h_col = pick(col_strides, layer)
        readout_weight_tile(
            grad, grad_readouts, pick(hs, layer), readout_weight, omega, grad_readout_weight, grad_omega, grad_omega,
            partials, omega_partials, arrivals,
            tile, tiles, split, splits, out_tile, tl.cdiv(d, BLOCK_D),
            layer, column, width, first_column, first_tile, after, scale,
            B, N, d, L, pick(row_strides, layer), h_col,
            stride_gb, stride_gd, stride_rb, stride_rl, stride_rd, stride_vd, stride_vn, stride_od, stride_ol,
            grad_h,
            WITH_READOUTS, NEED_H and FUSED, NEED_V, False, PRECISION, BLOCK_B, BLOCK_D, BLOCK_N,
        )  # fmt: skip


def readout_fwd(
    hs: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: Sequence[float],
    with_readouts: bool,
    precision: str,
    out_dtype: torch.dtype,
    tiles: Tiles,
) -> tuple[Tensor, Tensor]:
    """Return f (B, d) and all f_l (B, L, d), the latter empty unless asked for: one launch."""
    rows, d, depth = hs[0].shape[0], omega.shape[0], len(hs)
    f = hs[0].new_empty(rows, d, dtype=out_dtype)
    readouts = hs[0].new_empty((rows, depth, d) if with_readouts else (0,), dtype=out_dtype)
    grid = (triton.cdiv(rows, tiles.block_b), triton.cdiv(d, tiles.block_m), tiles.splits)
    if rows == 0:
        return f, readouts
    split = tiles.splits > 1
    partials = hs[0].new_empty(tiles.splits * rows * d if split else 0, dtype=torch.float32)
    dense, scaled = all(h.stride(1) == 1 for h in hs), any(s != 1.0 for s in scales)
    _readout_fwd_kernel[grid](
        tuple(hs), readout_weight, omega, f, readouts, partials,
        counters(grid[0] * grid[1] if split else 0, f.device),
        tuple(h.stride(0) for h in hs), tuple(h.stride(1) for h in hs), tuple(scales),
        rows, d, tiles.splits, *readout_weight.stride(), *omega.stride(),
        widths=tuple(h.shape[1] for h in hs),
        DENSE=dense, SCALED=scaled, WITH_READOUTS=with_readouts,
        PRECISION=precision,
        BLOCK_B=tiles.block_b, BLOCK_D=tiles.block_m, BLOCK_N=tiles.block_n,
        **options(tiles, plain=dense and not scaled and not with_readouts),
    )  # fmt: skip
    return f, readouts


def readout_bwd(
    grad: Tensor,
    grad_readouts: Tensor | None,
    hs: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    scales: Sequence[float],
    need_h: bool,
    need_v: bool,
    precision: str,
    tiles: Tiles,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return grad h, all layers side by side (B, n_1 + ... + n_L), grad V and grad Omega: one launch.

    What is not needed comes back empty.
    """
    rows, d, depth = hs[0].shape[0], omega.shape[0], len(hs)
    widths = tuple(h.shape[1] for h in hs)
    total = sum(widths)
    grad_h = hs[0].new_empty((rows, total) if need_h else (0,))
    grad_readout_weight = readout_weight.new_empty((d, total) if need_v else (0,))
    grad_omega = omega.new_empty((d, depth) if need_v else (0,))
    column_tiles = sum(triton.cdiv(n, tiles.block_n) for n in widths)
    out_tiles = triton.cdiv(d, tiles.block_m)
    fused = out_tiles == 1
    grad_tiles = column_tiles * triton.cdiv(rows, tiles.block_b) if need_h and not fused else 0
    splits = tiles.splits if need_v or fused else 0
    kinds = 1 if grad_readouts is None else 2
    partial = out_tiles * column_tiles * tiles.block_m * (kinds * tiles.block_n + 1)
    partials = grad.new_empty(splits * partial if splits > 1 and need_v else 0, dtype=torch.float32)
    omega_partials = grad.new_empty(out_tiles * column_tiles * tiles.block_m, dtype=torch.float32)
    dense, scaled = all(h.stride(1) == 1 for h in hs), any(s != 1.0 for s in scales)
    strides = (0, 0, 0) if grad_readouts is None else grad_readouts.stride()
    _readout_bwd_kernel[(grad_tiles + splits * column_tiles * out_tiles,)](
        grad, grad if grad_readouts is None else grad_readouts, tuple(hs), readout_weight, omega,
        grad_h, grad_readout_weight, grad_omega,
        partials, omega_partials, counters(out_tiles * (column_tiles + depth), grad.device),
        tuple(h.stride(0) for h in hs), tuple(h.stride(1) for h in hs), tuple(scales),
        rows, total, d, grad_tiles, splits,
        *grad.stride(), *strides, *readout_weight.stride(), *omega.stride(),
        widths=widths, DENSE=dense, SCALED=scaled,
        WITH_READOUTS=grad_readouts is not None, NEED_H=need_h, NEED_V=need_v, FUSED=fused, PRECISION=precision,
        BLOCK_B=tiles.block_b, BLOCK_D=tiles.block_m, BLOCK_N=tiles.block_n,
        **options(tiles, plain=dense and not scaled and grad_readouts is None),
    )  # fmt: skip
    return grad_h, grad_readout_weight, grad_omega
