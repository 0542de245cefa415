"""Random projections in torch operations: P is made in tiles that stay in cache, multiplied, and made again."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.ops.philox import column_words

TAGS = {"rademacher": 0, "gaussian": 1, "sjlt": 2}
# entries of a column that one call of Philox serves
SERVED = {"rademacher": 128, "gaussian": 4}
# rows of P at a time: a tile of 2^18 float32 entries is 1 MiB, a core's second cache
_ROWS, _COLUMNS = 1024, 256
# calls of Philox at a time: enough for torch's overhead on a hundred operations, and 512 KiB for each of the words
_CALLS = 1 << 16
# entries of a sparse projection that are sorted at a time
_SORTED = 1 << 16


class Matrix(NamedTuple):
    """Which P is meant: all that its entries depend on.

    Attributes:
        k: Rows.
        seed: Key.
        kind: One of TAGS.
        offset: The first column.
        blocks: How often the input is projected, each time by the columns that follow.
        nonzeros: Entries of a column, of "sjlt".
    """

    k: int
    seed: int
    kind: str
    offset: int
    blocks: int
    nonzeros: int

    @property
    def scale(self) -> float:
        """What all entries have in common."""
        return 1 / math.sqrt(self.nonzeros if self.kind == "sjlt" else self.k)


def forward(x: Tensor, matrix: Matrix) -> Tensor:
    """Return x P_b^T for every block b of columns, (n, p) to (blocks, n, k), summed in float32 or better."""
    out = x.new_zeros(matrix.blocks, x.shape[0], matrix.k, dtype=_wide(x.dtype))
    if out.numel() and x.shape[1]:
        if matrix.kind == "sjlt":
            _scatter(out, x, matrix)
        else:
            # cut to the same tiles whatever the batch is
            for block, columns, rows, entries in _tiles(matrix, x.shape[1], out):
                out[block, :, rows].addmm_(x[:, columns].to(out.dtype), entries)
    return out.mul_(matrix.scale).to(x.dtype)


def transposed(y: Tensor, p: int, matrix: Matrix) -> Tensor:
    """The adjoint: the sum over b of y_b P_b, (blocks, n, k) to (n, p)."""
    out = y.new_zeros(y.shape[1], p, dtype=_wide(y.dtype))
    if out.numel():
        if matrix.kind == "sjlt":
            _gather(out, y, matrix)
        else:
            for block, columns, rows, entries in _tiles(matrix, p, out):
                out[:, columns].addmm_(y[block, :, rows].to(out.dtype), entries.mT)
    return out.mul_(matrix.scale).to(y.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _tiles(matrix: Matrix, p: int, like: Tensor) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Yield (block, columns of x, rows of P, the transposed entries there without their scale)."""
    # an entry of P costs a 128th of a call of Philox (some 100 integer operations on 64 bits) and three operations on
    # its sign, against one multiply-add a row of x; Gaussian a fourth of a call, and half a logarithm, root and sine
    served = SERVED[matrix.kind]
    for top in range(0, matrix.k, _ROWS):
        rows = slice(top, min(top + _ROWS, matrix.k))
        calls = -(-(rows.stop - top) // served)
        many = max(1, _CALLS // calls)
        for start in range(0, matrix.blocks * p, many):
            stop = min(start + many, matrix.blocks * p)
            words = column_words(
                matrix.offset + start, stop - start, top // served, calls, TAGS[matrix.kind], matrix.seed, like
            )
            at = start
            while at < stop:
                block, column = divmod(at, p)
                end = min(stop, (block + 1) * p, at + _COLUMNS)
                made = _signs if matrix.kind == "rademacher" else _normals
                entries = made(words[at - start : end - start], like.dtype)[:, : rows.stop - top]
                yield block, slice(column, column + end - at), rows, entries
                at = end


def _signs(words: Tensor, dtype: torch.dtype) -> Tensor:
    """One bit an entry, the lowest first: 1 is -1.0. It is moved to where float32 has its sign."""
    shifts = torch.arange(31, -1, -1, dtype=torch.int32, device=words.device)
    bits = words.flatten(1).unsqueeze(-1) << shifts
    return bits.bitwise_and_(-(2**31)).bitwise_or_(0x3F800000).view(torch.float32).flatten(1).to(dtype)


def _normals(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Two a pair of words, by Box and Muller; 23 bits of a word, and a half, are a float32 without rounding."""
    uniform = ((words >> 9) & 0x7FFFFF).to(dtype).add_(0.5).mul_(2.0**-23)
    radius = uniform[..., 0::2].log().mul_(-2).sqrt_()
    angle = uniform[..., 1::2] * (2 * math.pi)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)


def places(matrix: Matrix, first: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and signs of the entries of some columns of an SJLT, both (count, nonzeros)."""
    s, k = matrix.nonzeros, matrix.k
    words = column_words(first, count, 0, -(-s // 4), TAGS["sjlt"], matrix.seed, like).flatten(1)[:, :s].long()
    edges = torch.arange(s + 1, device=like.device) * k // s
    rows = edges[:-1] + (((words >> 1) & 0x7FFFFFFF) * edges.diff() >> 31)
    return rows, (1 - 2 * (words & 1)).to(like.dtype)


def _sparse_tiles(matrix: Matrix, p: int, like: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    # at least as many columns as rows, lest most rows of a tile be empty
    many = max(matrix.k, _SORTED // matrix.nonzeros)
    for block in range(matrix.blocks):
        for start in range(0, p, many):
            columns = slice(start, min(start + many, p))
            first = matrix.offset + block * p + start
            yield block, columns, *places(matrix, first, columns.stop - start, like)


def _scatter(out: Tensor, x: Tensor, matrix: Matrix) -> None:
    """Add each column of x, with its signs, to its rows; those of a row in the order of the columns everywhere."""
    for block, columns, rows, signs in _sparse_tiles(matrix, x.shape[1], out):
        ordered, order = rows.flatten().sort(stable=True)
        starts = torch.searchsorted(ordered, torch.arange(matrix.k, device=x.device))
        found = torch.nn.functional.embedding_bag(
            order // matrix.nonzeros, x[:, columns].mT.to(out.dtype).contiguous(), starts, mode="sum",
            per_sample_weights=signs.flatten()[order],
        )  # fmt: skip
        out[block] += found.mT


def _gather(out: Tensor, y: Tensor, matrix: Matrix) -> None:
    for block, columns, rows, signs in _sparse_tiles(matrix, out.shape[1], out):
        found = torch.nn.functional.embedding_bag(
            rows, y[block].mT.to(out.dtype).contiguous(), mode="sum", per_sample_weights=signs
        )
        out[:, columns] += found.mT
