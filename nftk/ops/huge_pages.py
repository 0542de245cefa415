"""Large memory that the system finds at once."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from nftk.ops.network_formula import transform_active

# smaller memory is often what was freed before
_LARGE = 32 << 20


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """As ``like.new_empty(shape)``; on a CPU large memory comes in pages of 2 MiB where the system has them.

    In pages of 4 KiB, each of which is found when it is first written, that alone can take as long as a tenth of the
    products that fill it.

    Args:
        shape: Of the tensor.
        like: Gives its dtype and device.

    Returns:
        The tensor, with any contents.
    """
    size = math.prod(shape) * like.element_size()
    # private memory alone has such pages for the asking
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if size < _LARGE or advice is None or like.device.type != "cpu" or transform_active():
        return like.new_empty(shape)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(advice)
    except OSError:  # no such pages, or no memory, which torch says better
        return like.new_empty(shape)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
