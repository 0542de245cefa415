"""Triton kernel of layer_recursion. No checks and no autograd here: nftk/ops/layer_recursion.py owns both."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from nftk.kernels._tiles import expm1
from torch import Tensor

# four pairs a thread: with eight a thread takes 223 registers; wide in j, where memory is contiguous
BLOCK_I, BLOCK_J, WARPS = 8, 64, 4
_COMMON = 3  # rows of an example at every layer: nftk/ops/duals.py, COMMON


@triton.jit
def _below(gap):
    """Whether the sign bit is set: -0.0 stands for opposite directions."""
    return gap.to(tl.int32, bitcast=True) < 0


@triton.jit
def _cosine(gap):
    return tl.where(_below(gap), -1.0 - gap, 1.0 - gap)


@triton.jit
def _gap(cosine):
    size = tl.maximum(1.0 - tl.abs(cosine), 0.0)
    return tl.where(_below(cosine), -size, size)


@triton.jit
def _asin_rest(t):
    """asin(s) / s - 1 with s^2 = t <= 1/2: relative error 2.6e-9, csrc/layer_recursion.cpp's polynomial."""
    p = -0.13591627123984387904 + t * 0.12391349490512974724
    p = 0.10740002130174646693 + t * p
    p = -0.0070205791522944753065 + t * p
    p = 0.035814239284011770615 + t * p
    p = 0.044091616733716873477 + t * p
    p = 0.075027573163524040342 + t * p
    p = 0.16666614237824285502 + t * p
    return t * p


@triton.jit
def _acute(size):
    """Acute angle of a gap without its sign, its sine and cosine, and sine - angle cosine to relative precision."""
    square = size * (2.0 - size)
    sine = tl.sqrt_rn(square)
    cosine = 1.0 - size
    small = square <= cosine * cosine
    rest = _asin_rest(tl.where(small, square, cosine * cosine))
    side = tl.where(small, sine, cosine)
    arc = side + side * rest
    angle = tl.where(small, arc, 1.5707963267948966 - arc)
    bend = tl.where(small, sine * (size + rest * size - rest), sine - angle * cosine)
    return angle, sine, cosine, bend


@triton.jit
def _same(size, one, other):
    """Whether two examples are one, or opposite, to float32's rounding: with depth a rounding of their gap may grow."""
    return (size <= 9e-13) & (tl.abs(one - other) <= 9.5e-7 * tl.abs(other))


@triton.jit
def _own(rows1, k, i, mask_i, n1):
    return tl.load(rows1 + k * n1 + i, mask=mask_i, other=0.0)[:, None]


@triton.jit
def _of(rows2, k, j, mask_j, n2):
    return tl.load(rows2 + k * n2 + j, mask=mask_j, other=0.0)[None, :]


@triton.jit
def _layer_recursion_kernel(
    gap, rows1, rows2, numbers, weights, out,
    n1, n2, depth, gap_row, out_matrix, out_row,
    KIND: tl.constexpr, ROWS: tl.constexpr, BIAS: tl.constexpr, TANGENT: tl.constexpr, WEIGHTED: tl.constexpr,
    SYMMETRIC: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Theta_l, or their sum under a row of weights, of a [BLOCK_I, BLOCK_J] tile of pairs, all layers in registers."""
    # int64 before any product with a size
    i = tl.program_id(1).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = tl.program_id(0).to(tl.int64) * BLOCK_J + tl.arange(0, BLOCK_J)
    which = tl.program_id(2).to(tl.int64)
    wanted = True
    if SYMMETRIC:
        wanted = (tl.program_id(0) + 1) * BLOCK_J > tl.program_id(1) * BLOCK_I
    if wanted:
        mask_i = i < n1
        mask_j = j < n2
        mask = mask_i[:, None] & mask_j[None, :]
        if SYMMETRIC:
            mask = mask & (i[:, None] <= j[None, :])
        z = tl.load(gap + i[:, None] * gap_row + j[None, :], mask=mask, other=1.0)
        n1w = tl.cast(n1, tl.int64)
        n2w = tl.cast(n2, tl.int64)
        kernel = _own(rows1, 0, i, mask_i, n1w) * _of(rows2, 0, j, mask_j, n2w) * _cosine(z)
        passed = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        total = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for layer in range(depth):
            first = 1 + layer * ROWS
            p = numbers + layer * 7
            slope = tl.load(p)
            weight_var = tl.load(p + 1)
            readout_var = tl.load(p + 5)
            rho1 = _own(rows1, first, i, mask_i, n1w)
            rho2 = _of(rows2, first, j, mask_j, n2w)
            if BIAS:
                a1 = _own(rows1, first + 1, i, mask_i, n1w)
                a2 = _of(rows2, first + 1, j, mask_j, n2w)
                b1 = _own(rows1, first + 2, i, mask_i, n1w)
                b2 = _of(rows2, first + 2, j, mask_j, n2w)
                size = tl.abs(z)
                below = _below(z)
                scale = a1 * a2
                shared = b1 * b2
                mismatch = 0.5 * ((a1 - a2) * (a1 - a2) + (b1 - b2) * (b1 - b2))
                up = mismatch + scale * tl.where(below, 2.0 - size, size)
                down = mismatch + 2.0 * shared + scale * tl.where(below, size, 2.0 - size)
                z = tl.where(scale * _cosine(z) + shared < 0, -down, up)
            size = tl.abs(z)
            below = _below(z)
            x1 = _own(rows1, first + 3, i, mask_i, n1w)
            x2 = _of(rows2, first + 3, j, mask_j, n2w)
            if KIND == "leaky_relu":
                angle, sine, cosine, bend = _acute(size)
                own = 0.5 * (1.0 + slope * slope)
                h = (1.0 - slope) * (1.0 - slope) * 0.15915494309189535
                bent = h * bend
                high = 0.5 * (1.0 + slope) * (1.0 + slope)
                low = 0.5 * (1.0 - slope) * (1.0 - slope)
                up = (tl.where(below, high - slope * size, own * size) - bent) / own
                down = (low + slope * size + bent) / own
                out_gap = tl.where(below & (bent < slope * cosine), -down, tl.maximum(up, 0.0))
                z = tl.where(slope == 1.0, z, out_gap)
                slopes = tl.where(below, slope + h * angle, own - h * angle)
                slopes = tl.where(tl.minimum(rho1, rho2) > 0, slopes, x1 * x2)
            elif KIND == "sin":
                y1 = _own(rows1, first + 4, i, mask_i, n1w)
                y2 = _of(rows2, first + 4, j, mask_j, n2w)
                both = x1 * x2
                near = tl.exp(-0.5 * (x1 - x2) * (x1 - x2) - both * size)
                twice = 2.0 * both * (1.0 - size)
                less = expm1(-twice)
                ratio = tl.where(twice < 1e-30, 1.0, -less / tl.maximum(twice, 1e-30))
                out_gap = tl.maximum(1.0 - near * ratio * (1.0 - size) * y1 * y2, 0.0)
                out_gap = tl.where(_same(size, x1, x2), size, out_gap)
                z = tl.where(below, -out_gap, out_gap)
                slopes = near * (1.0 + 0.5 * less)
            else:
                k1 = _own(rows1, first + 4, i, mask_i, n1w)
                k2 = _of(rows2, first + 4, j, mask_j, n2w)
                t = x1 * x2
                k = k1 * k2
                rest = 0.5 * ((x1 - x2) * (x1 - x2) + (k1 - k2) * (k1 - k2)) + k
                angle, sine, _c, _b = _acute(rest + t * size)
                # not before, lest the assembler spills two registers on sm_80
                e1 = _own(rows1, first + 5, i, mask_i, n1w)
                e2 = _of(rows2, first + 5, j, mask_j, n2w)
                i1 = _own(rows1, first + 6, i, mask_i, n1w)
                i2 = _of(rows2, first + 6, j, mask_j, n2w)
                if KIND == "erf":
                    hat = t * (1.0 - size)
                    small = hat * hat < 0.5
                    ratio = 1.0 + _asin_rest(tl.where(small, hat * hat, 0.0))
                    near = ratio * (1.0 - size) * e1 * e2
                    far = (1.5707963267948966 - angle) * i1 * i2
                    out_gap = tl.maximum(1.0 - tl.where(small, near, far), 0.0)
                    out_gap = tl.where(_same(size, x1, x2) & _same(size, k1, k2), size, out_gap)
                    z = tl.where(below, -out_gap, out_gap)
                    slopes = 1.2732395447351628 * k / sine
                else:
                    tl.static_assert(KIND == "gelu")
                    cosine = _cosine(z)
                    inverse = 1.0 / sine
                    square = k * k
                    extra = t * square * cosine * cosine * inverse
                    up = size * (3.141592653589793 - angle) + 3.141592653589793 * (e1 * e2 + e1 + e2)
                    up += (angle - sine) + rest * sine - extra
                    down = cosine * angle + t * sine + extra
                    z = tl.where(below, _gap(down * i1 * i2), tl.maximum(up * i1 * i2, 0.0))
                    slopes = tl.where(below, angle, 3.141592653589793 - angle)
                    slopes += t * cosine * inverse * (rest * (1.0 + t) + square + square * inverse * inverse)
                    slopes *= 0.15915494309189535
            value = readout_var * rho1 * rho2 * _cosine(z)
            if TANGENT:
                passed = slopes * (tl.load(p + 3) * kernel + tl.load(p + 4) + weight_var * passed)
                kernel = rho1 * rho2 * _cosine(z)
                value = tl.load(p + 6) * kernel + readout_var * passed
            if WEIGHTED:
                total += tl.load(weights + which * depth + layer) * value
            else:
                base = out + layer * out_matrix
                tl.store(base + i[:, None] * out_row + j[None, :], value, mask=mask)
                if SYMMETRIC:
                    other = mask & (i[:, None] != j[None, :])
                    tl.store(base + j[None, :] * out_row + i[:, None], value, mask=other)
        if WEIGHTED:
            base = out + which * out_matrix
            tl.store(base + i[:, None] * out_row + j[None, :], total, mask=mask)
            if SYMMETRIC:
                other = mask & (i[:, None] != j[None, :])
                tl.store(base + j[None, :] * out_row + i[:, None], total, mask=other)


def layer_recursion_fwd(
    out: Tensor,
    gap: Tensor,
    rows1: Tensor,
    rows2: Tensor,
    layers: Sequence[Any],
    weights: Tensor | None,
    tangent: bool,
    symmetric: bool,
) -> None:
    """Write all kernels, or their weighted sums: one launch. Layers share one kind of activation."""
    n1, n2 = gap.shape
    outputs = 1 if weights is None else len(weights)
    if outputs > 1:
        # several programs read a tile, and the first of them may be done before the last begins
        gap = gap.clone()
    numbers = torch.tensor([[p.dual.slope, *p[1:]] for p in layers], dtype=torch.float32, device=gap.device)
    factors = numbers if weights is None else weights.detach().float().contiguous()
    grid = (triton.cdiv(n2, BLOCK_J), triton.cdiv(n1, BLOCK_I), outputs)
    _layer_recursion_kernel[grid](
        gap, rows1, rows2, numbers, factors, out,
        n1, n2, len(layers), gap.stride(0), out.stride(0), out.stride(1),
        KIND=layers[0].dual.kind, ROWS=layers[0].dual.rows, BIAS=any(p.bias_var for p in layers), TANGENT=tangent,
        WEIGHTED=weights is not None, SYMMETRIC=symmetric, BLOCK_I=BLOCK_I, BLOCK_J=BLOCK_J, num_warps=WARPS,
    )  # fmt: skip
