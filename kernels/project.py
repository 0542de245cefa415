"""Triton kernels of project and its transpose. No checks and no autograd here: nftk/ops/project.py owns both."""

from typing import Any

import torch
import triton
import triton.language as tl
from nftk.kernels import choice
from nftk.kernels._tiles import dot
from torch import Tensor

# 128 rows of P are what one call of Philox has signs for
BLOCK_K: tl.constexpr = tl.constexpr(128)
BLOCK_N, WARPS = 64, 8
# of the transpose, whose tile of y is 128 deep: with more of either it spills
TRANSPOSE_N, TRANSPOSE_P = 32, 16
# columns at a time; normal numbers in three TF32 products fill the registers
BLOCK_P = {"rademacher": 32, "gaussian": 16}


@triton.jit
def _signs(columns, block, seed):
    """Transposed signs of 128 rows, [columns, 128]: bit i % 32 of word i // 32, and 1 is -1.0."""
    low = columns.to(tl.uint32)
    high = (columns >> 32).to(tl.uint32)
    none = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, none + block.to(tl.uint32), none)
    # joined, not selected: else the compiler calls Philox anew in each thread that holds one of the 128 rows
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (columns.shape[0], 4, 1))
    shifts = (31 - tl.arange(0, 32)).to(tl.uint32)[None, None, :]
    bits = tl.reshape(((words << shifts) & 0x80000000) | 0x3F800000, (columns.shape[0], BLOCK_K))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _uniform(word):
    """23 bits and a half: a float32 without rounding, never 0 nor 1."""
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def _turn(word):
    """Cosine and sine of 2 pi u: quarter turns are exact in the word, and an eighth to either side is a polynomial."""
    steps = (word >> 9).to(tl.int32)
    quarter = (steps + 1048576) >> 21  # nearest, 0 to 4
    angle = ((steps - quarter * 2097152).to(tl.float32) + 0.5) * 7.490140565847157e-07  # pi / 2^22
    square = angle * angle
    # Taylor's: what is left out at pi / 4 is 2e-8 of sine, 2e-9 of cosine
    sine = angle * (1.0 + square * (-0.16666666667 + square * (0.0083333333333 + square * -0.00019841269841)))
    sine += angle * square * square * square * square * 2.7557319224e-06
    cosine = 1.0 + square * (-0.5 + square * (0.041666666667 + square * -0.0013888888889))
    cosine += square * square * square * square * 2.4801587302e-05
    odd = quarter % 2 == 1
    a = tl.where(odd, sine, cosine)
    b = tl.where(odd, cosine, sine)
    a = tl.where((quarter % 4 == 1) | (quarter % 4 == 2), -a, a)
    b = tl.where((quarter % 4 == 2) | (quarter % 4 == 3), -b, b)
    return a, b


@triton.jit
def _normals(columns, block, seed):
    """Transposed normal numbers of 128 rows, [columns, 128]: four to a call, by Box and Muller."""
    low = columns.to(tl.uint32)[:, None]
    high = (columns >> 32).to(tl.uint32)[:, None]
    places = (block * (BLOCK_K // 4) + tl.arange(0, BLOCK_K // 4)).to(tl.uint32)[None, :]
    none = low * 0 + places * 0
    w0, w1, w2, w3 = tl.philox(seed, low + none, high + none, places + none, none + 1)
    first = tl.sqrt(-2.0 * tl.log(_uniform(w0)))
    second = tl.sqrt(-2.0 * tl.log(_uniform(w2)))
    a, b = _turn(w1)
    c, d = _turn(w3)
    # joined so that the four lie side by side
    four = tl.join(tl.join(first * a, second * c), tl.join(first * b, second * d))
    return tl.reshape(four, (columns.shape[0], BLOCK_K))


@triton.jit
def _entries(columns, block, seed, GAUSSIAN: tl.constexpr):
    if GAUSSIAN:
        entries = _normals(columns, block, seed)
    else:
        entries = _signs(columns, block, seed)
    return entries


@triton.jit
def _product(tile, entries, acc, GAUSSIAN: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    """Acc + tile entries; float32 times signs, which bfloat16 has exactly, by the three bfloat16 parts of a float32."""
    if GAUSSIAN or PRECISION != "bf16x3":
        acc = dot(tile, tl.trans(entries) if TRANSPOSED else entries, acc, PRECISION)
    else:
        signs = entries.to(tl.bfloat16)
        if TRANSPOSED:
            signs = tl.trans(signs)
        high = tile.to(tl.bfloat16)
        rest = tile - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        # the small ones first; no chain of the tensor cores, which truncate, is longer than a tile
        part = tl.dot(middle, signs, tl.dot(low, signs))
        acc += tl.dot(high, signs, part)
    return acc


@triton.jit(do_not_specialize=["seed", "offset", "splits", "n", "p"])
def _project_kernel(
    x, out, seed, offset, n, p, k, splits, stride_n, stride_p, scale,
    GAUSSIAN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A [BLOCK_N, 128] tile of x P^T over one split of the columns, of one block; P is made in registers.

    An entry of P costs a 128th of Philox (some 100 integer operations) and seven operations on its sign, against
    BLOCK_N multiply-adds; Gaussian a fourth of Philox and some 20 operations.
    """
    # int64 before any product with a size
    tiles = tl.cdiv(n, BLOCK_N)
    rows = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(1)
    split = tl.program_id(0) // tiles % splits
    repeat = (tl.program_id(0) // tiles // splits).to(tl.int64)
    mask_n = rows < n
    first = offset + repeat * p
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    steps = tl.cdiv(p, BLOCK_P)
    for step in range(split * steps // splits, (split + 1) * steps // splits):
        cols = tl.cast(step, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        mask_p = cols < p
        where = rows[:, None] * stride_n + cols[None, :] * stride_p
        tile = tl.load(x + where, mask=mask_n[:, None] & mask_p[None, :], other=0.0)
        entries = _entries(first + cols, block, seed, GAUSSIAN)
        acc = _product(tile, entries, acc, GAUSSIAN, False, PRECISION)
    lanes = block * BLOCK_K + tl.arange(0, BLOCK_K)
    slot = repeat * splits + split
    where = (slot * n + rows[:, None]) * k + lanes[None, :]
    mask = mask_n[:, None] & (lanes < k)[None, :]
    tl.store(out + where, (acc * scale).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed", "offset", "repeats", "n", "p"])
def _project_transpose_kernel(
    y, out, seed, offset, n, p, k, repeats, stride_b, stride_n, stride_k, scale,
    GAUSSIAN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A [BLOCK_N, BLOCK_P] tile of the sum of y_b P_b over all blocks b."""
    tiles = tl.cdiv(p, BLOCK_P)
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_n = rows < n
    acc = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    across = tl.cdiv(k, BLOCK_K)
    for step in range(repeats * across):
        repeat = tl.cast(step // across, tl.int64)
        block = step % across
        lanes = tl.cast(block, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
        where = repeat * stride_b + rows[:, None] * stride_n + lanes[None, :] * stride_k
        tile = tl.load(y + where, mask=mask_n[:, None] & (lanes < k)[None, :], other=0.0)
        entries = _entries(offset + repeat * p + cols, block, seed, GAUSSIAN)
        acc = _product(tile, entries, acc, GAUSSIAN, True, PRECISION)
    mask = mask_n[:, None] & (cols < p)[None, :]
    tl.store(out + rows[:, None] * p + cols[None, :], (acc * scale).to(out.dtype.element_ty), mask=mask)


def project_fwd(x: Tensor, matrix: Any) -> Tensor:
    """Return x P_b^T for every block b of columns, (blocks, n, k): one launch, and a sum where p is cut."""
    (n, p), k, blocks, block_p = x.shape, matrix.k, matrix.blocks, BLOCK_P[matrix.kind]
    programs = triton.cdiv(n, BLOCK_N) * triton.cdiv(k, BLOCK_K.value) * blocks
    # enough programs to fill the chip twice, none of less than eight steps
    most = max(1, triton.cdiv(p, 8 * block_p))
    splits = max(1, min(most, 2 * choice.programs_at_once(x.device) // max(programs, 1)))
    dtype = x.dtype if splits == 1 else torch.float32
    out = x.new_empty(blocks, splits, n, k, dtype=dtype)
    if out.numel():
        grid = (triton.cdiv(n, BLOCK_N) * blocks * splits, triton.cdiv(k, BLOCK_K.value))
        _project_kernel[grid](
            x, out, matrix.seed, matrix.offset, n, p, k, splits, *x.stride(), matrix.scale,
            GAUSSIAN=matrix.kind == "gaussian", PRECISION=_precision(x.dtype, matrix.kind),
            BLOCK_N=BLOCK_N, BLOCK_P=block_p, num_warps=WARPS,
        )  # fmt: skip
    return out[:, 0] if splits == 1 else out.sum(1).to(x.dtype)


def project_transpose_fwd(y: Tensor, p: int, matrix: Any) -> Tensor:
    """Return the sum of y_b P_b, (n, p): one launch."""
    blocks, n, k = y.shape
    out = y.new_empty(n, p)
    if matrix.kind == "gaussian":
        # 16 bits would be widened in registers, which spill then
        y = y.float()
    if out.numel():
        grid = (triton.cdiv(p, TRANSPOSE_P) * triton.cdiv(n, TRANSPOSE_N),)
        _project_transpose_kernel[grid](
            y, out, matrix.seed, matrix.offset, n, p, k, blocks, *y.stride(), matrix.scale,
            GAUSSIAN=matrix.kind == "gaussian", PRECISION=_precision(y.dtype, matrix.kind),
            BLOCK_N=TRANSPOSE_N, BLOCK_P=TRANSPOSE_P, num_warps=WARPS,
        )  # fmt: skip
    return out


def _precision(dtype: torch.dtype, kind: str) -> str:
    """Signs are exact in 16 bits; normal numbers would be rounded there."""
    if kind == "gaussian":
        return "tf32x3"
    return "bf16x3" if dtype is torch.float32 else choice.kernel_precision(dtype, "highest", dtype)
