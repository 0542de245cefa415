"""Definition of the random projections: the matrix whole, entry by entry, from Philox in Python's own integers."""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def philox_reference(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words: Philox 4x32-10 of Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.

    Args:
        counter: Four words.
        key: Two words.

    Returns:
        Four words.

    Example:
        >>> [hex(word) for word in philox_reference((0, 0, 0, 0), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = right >> 32 ^ c1 ^ k0, right & _MASK, left >> 32 ^ c3 ^ k1, left & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def projection_reference(
    k: int, p: int, *, seed: int, kind: str = "rademacher", offset: int = 0, nonzeros: int = 4
) -> Tensor:
    r"""The matrix P of a random projection, columns ``offset`` to ``offset + p``.

    .. math:: E[P^T P] = I

    Column j takes its words from Philox with the seed's two halves as the key and the counter (j's low half, j's high
    half, b, kind). Rademacher, kind 0: bit i % 32 of word i // 32 % 4 at b = i // 128 is set where
    P[i, j] = -1 / sqrt(k). Gaussian, kind 1: the words at b = i // 4 are two pairs for Box and Muller, of 23 bits each.
    SJLT, kind 2: entry t of ``nonzeros`` lies in the t-th of as many equal blocks of rows; of word t % 4 at b = t // 4
    the lowest bit is its sign, the others its row.

    Args:
        k: Rows.
        p: Columns.
        seed: Key, below 2^63.
        kind: ``"rademacher"``, ``"gaussian"`` or ``"sjlt"``.
        offset: The first column.
        nonzeros: Entries of a column that are not 0, of ``"sjlt"``.

    Returns:
        P, ``(k, p)``, float64.

    Example:
        >>> projection_reference(1, 4, seed=0).tolist()
        [[-1.0, 1.0, -1.0, -1.0]]
    """
    matrix = torch.zeros(k, p, dtype=torch.float64)
    for column in range(p):
        j = offset + column

        def words(block: int, tag: int, j: int = j) -> tuple[int, int, int, int]:
            return philox_reference((j & _MASK, j >> 32, block, tag), (seed & _MASK, seed >> 32))

        if kind == "rademacher":
            for i in range(k):
                bit = words(i // 128, 0)[i // 32 % 4] >> i % 32 & 1
                matrix[i, column] = (1 - 2 * bit) / math.sqrt(k)
        elif kind == "gaussian":
            for i in range(k):
                four = words(i // 4, 1)
                u, v = (((w >> 9) + 0.5) * 2.0**-23 for w in four[i % 4 // 2 * 2 :][:2])
                turn = math.sin if i % 2 else math.cos
                matrix[i, column] = math.sqrt(-2 * math.log(u)) * turn(2 * math.pi * v) / math.sqrt(k)
        else:
            for t in range(nonzeros):
                word, first, after = words(t // 4, 2)[t % 4], t * k // nonzeros, (t + 1) * k // nonzeros
                row = first + ((word >> 1) * (after - first) >> 31)
                matrix[row, column] = (1 - 2 * (word & 1)) / math.sqrt(nonzeros)
    return matrix
