"""Triton kernel of network: the walk back, down the layers. No checks and no autograd here."""

from collections.abc import Sequence

import triton
import triton.language as tl
from nftk.kernels._tiles import activation_slope, dot, pick
from nftk.kernels._walk import block_of_outputs, groups_of, layer_done
from nftk.kernels._workspace import counters
from nftk.kernels.choice import Tiles, options
from torch import Tensor


@triton.jit(do_not_specialize=["B", "first"])
def _network_bwd_kernel(
    grad, weights, readout_weight, omega, saved, deltas, grad_x, arrivals,
    weight_scales, readout_scales,
    B, m, N, d, first, stride_gb, stride_gd, stride_vd, stride_vn, stride_od, stride_ol,
    widths: tl.constexpr,
    PHI: tl.constexpr, SCALED: tl.constexpr, NEED_X: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The walk back: delta_l = (V_l^T (omega_l * grad) + W_{l+1}^T delta_{l+1}) * phi'(g_l), from layer L to first.

    deltas (B, N) takes every delta_l; grad_x is W_1^T delta_1. saved holds h, or g where phi' is a function of g.
    """
    L: tl.constexpr = len(widths)
    group = tl.program_id(0) // COLUMNS
    groups = tl.num_programs(0) // COLUMNS
    column_program = tl.program_id(0) % COLUMNS
    local = tl.arange(0, BLOCK_B)
    outs = tl.arange(0, BLOCK_D)
    mask_d = outs < d
    for block in range(group, tl.cdiv(B, BLOCK_B), groups):
        start = tl.cast(block, tl.int64) * BLOCK_B
        mask_b = local < B - start
        g_offsets = local[:, None] * stride_gb + outs[None, :] * stride_gd
        mask_g = mask_b[:, None] & mask_d[None, :]
        g = tl.load(grad + start * stride_gb + g_offsets, mask=mask_g, other=0.0).to(tl.float32)
        rows_saved = saved + start * N
        rows_deltas = deltas + start * N
        n_above = 0
        above_column = N
        for back in range(L - first):
            layer = L - 1 - back
            n_out = pick(widths, layer)
            first_column = above_column - n_out
            # of the layer above; the last layer has none, and n_above 0 leaves it out
            above = pick(weights, tl.minimum(layer + 1, L - 1))
            weight_scale = 1.0
            readout_scale = 1.0
            if SCALED:
                weight_scale = pick(weight_scales, tl.minimum(layer + 1, L - 1))
                readout_scale = pick(readout_scales, layer)
            omega_column = tl.load(omega + outs * stride_od + layer * stride_ol, mask=mask_d, other=0.0).to(tl.float32)
            readout_column = omega_column * readout_scale
            u = g * readout_column[None, :]
            for n in range(column_program * BLOCK_N, n_out, COLUMNS * BLOCK_N):
                cols = n + tl.arange(0, BLOCK_N)
                mask_n = cols < n_out
                mask = mask_b[:, None] & mask_n[None, :]
                acc = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
                for k in range(0, n_above, BLOCK_K):
                    ks = k + tl.arange(0, BLOCK_K)
                    mask_k = ks < n_above
                    d_offsets = local[:, None] * N + (above_column + ks)[None, :]
                    delta = tl.load(rows_deltas + d_offsets, mask=mask_b[:, None] & mask_k[None, :], other=0.0)
                    w_offsets = ks[:, None] * n_out + cols[None, :]
                    w = tl.load(above + w_offsets, mask=mask_k[:, None] & mask_n[None, :], other=0.0)
                    acc = dot(delta, w, acc, PRECISION)
                acc *= weight_scale
                v_offsets = outs[:, None] * stride_vd + (first_column + cols)[None, :] * stride_vn
                v = tl.load(readout_weight + v_offsets, mask=mask_d[:, None] & mask_n[None, :], other=0.0)
                if PRECISION == "fp16":
                    # as in dot_weighted: u can be beyond float16
                    acc = dot(g, v.to(tl.float32) * readout_column[:, None], acc, PRECISION)
                else:
                    acc = dot(u, v, acc, PRECISION)
                where = local[:, None] * N + (first_column + cols)[None, :]
                slope = activation_slope(tl.load(rows_saved + where, mask=mask, other=0.0).to(tl.float32), PHI)
                tl.store(rows_deltas + where, (acc * slope).to(deltas.dtype.element_ty), mask=mask)
            layer_done(arrivals + group, (back + 1) * COLUMNS, COLUMNS)
            n_above = n_out
            above_column = first_column
        if NEED_X:
            scale = 1.0
            if SCALED:
                scale = weight_scales[0]
            for n in range(column_program * BLOCK_N, m, COLUMNS * BLOCK_N):
                cols = n + tl.arange(0, BLOCK_N)
                mask_n = cols < m
                acc = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
                for k in range(0, widths[0], BLOCK_K):
                    ks = k + tl.arange(0, BLOCK_K)
                    mask_k = ks < widths[0]
                    delta = tl.load(
                        rows_deltas + local[:, None] * N + ks[None, :],
                        mask=mask_b[:, None] & mask_k[None, :],
                        other=0.0,
                    )
                    w_offsets = ks[:, None] * m + cols[None, :]
                    w = tl.load(weights[0] + w_offsets, mask=mask_k[:, None] & mask_n[None, :], other=0.0)
                    acc = dot(delta, w, acc, PRECISION)
                where = local[:, None] * m + cols[None, :]
                value = (acc * scale).to(grad_x.dtype.element_ty)
                tl.store(grad_x + start * m + where, value, mask=mask_b[:, None] & mask_n[None, :])
        if COLUMNS > 1:
            if tl.atomic_add(arrivals + group, 1, sem="acq_rel") == (L - first + 1) * COLUMNS - 1:
                tl.store(arrivals + group, 0)


def network_bwd(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    readout_weight: Tensor,
    omega: Tensor,
    saved: Tensor,
    phi: str,
    weight_scales: Sequence[float],
    readout_scales: Sequence[float],
    first: int,
    need_x: bool,
    precision: str,
    tiles: Tiles,
) -> tuple[Tensor, Tensor]:
    """Return all delta_l side by side (B, N), those below layer first unwritten, and grad x: one launch.

    saved is what forward kept for phi': all g_l where it kept them, else all h_l.
    """
    rows, m = x.shape
    widths = tuple(w.shape[0] for w in weights)
    total, d = sum(widths), omega.shape[0]
    deltas = x.new_empty(rows, total)
    grad_x = x.new_empty((rows, m) if need_x else (0,))
    if rows == 0:
        return deltas, grad_x
    groups = groups_of(rows, tiles, x)
    shared = tiles.splits > 1
    scaled = any(s != 1.0 for s in (*weight_scales, *readout_scales))
    _network_bwd_kernel[(groups * tiles.splits,)](
        grad, tuple(weights), readout_weight, omega, saved, deltas, grad_x,
        counters(groups, x.device) if shared else deltas,
        tuple(weight_scales), tuple(readout_scales),
        rows, m, total, d, first, *grad.stride(), *readout_weight.stride(), *omega.stride(),
        widths=widths, PHI=phi, SCALED=scaled, NEED_X=need_x, COLUMNS=tiles.splits, PRECISION=precision,
        BLOCK_B=tiles.block_b, BLOCK_D=block_of_outputs(d), BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_m,
        **options(tiles, cooperative=shared, plain=not scaled),
    )  # fmt: skip
    return deltas, grad_x
