"""Philox 4x32-10 in torch's integers, on any device: words from counters, the same everywhere."""

import torch
from torch import Tensor

_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four int32 tensors with the bits of Philox's words, of counters that broadcast.

    Args:
        c0: First words of the counters, int64 in 0 .. 2^32 - 1.
        c1: Second words.
        c2: Third words.
        c3: Fourth words.
        seed: The key, low half first.

    Returns:
        The four words.
    """
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        # products beyond 2^63 wrap, and keep all 64 bits; what is only XORed need not be cut to 32 bits
        left, right = c0 * _ROUND_A, c2 * _ROUND_B
        c0 = (right >> 32).bitwise_xor(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (left >> 32).bitwise_xor(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = right, left
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    # a conversion to 32 bits keeps the low ones
    return c0.to(torch.int32), c1.to(torch.int32), c2.to(torch.int32), c3.to(torch.int32)


def column_words(first: int, count: int, block: int, blocks: int, tag: int, seed: int, like: Tensor) -> Tensor:
    """Words of ``count`` columns from ``first`` and of ``blocks`` blocks from ``block``: ``(count, blocks, 4)``."""
    columns = torch.arange(first, first + count, device=like.device).unsqueeze(1)
    places = torch.arange(block, block + blocks, device=like.device).unsqueeze(0)
    words = philox(columns & _MASK, columns >> 32, places, places.new_full((1, 1), tag), seed)
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)
