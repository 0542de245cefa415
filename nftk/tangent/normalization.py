"""Division of the blocks of LayerKernels by roots of self-kernels."""

import torch
from torch import Tensor

from nftk._checks import check_same, check_shape, check_tensor


def normalize(
    op: str, blocks: Tensor, reduction: str, how: str, own: Tensor | None, rows: Tensor | None, columns: Tensor | None
) -> Tensor:
    """Do the work of ``LayerKernels.normalize``; own is the blocks' diagonal, where rows or columns are None."""
    if own is not None and reduction == "full":
        own = own.diagonal(dim1=2, dim2=3)
    scales = []
    for name, given, n in (("rows", rows, blocks.shape[1]), ("columns", columns, blocks.shape[2])):
        squares = own if given is None else given
        check_tensor(op, name, squares)
        assert squares is not None
        check_same(op, "device", **{name: squares}, blocks=blocks)
        check_shape(op, name, squares, (len(blocks), n, *blocks.shape[3:4]))
        if how == "joint":
            squares = squares.sum(0, keepdim=True)
        positive = squares > 0
        # twice, because 0 times the infinite slope of a root not taken is NaN
        scales.append(torch.where(positive, torch.where(positive, squares, 1).rsqrt(), 0))
    left, right = scales
    if reduction == "full":
        return blocks * (left[:, :, None, :, None] * right[:, None, :, None, :])
    return blocks * (left[:, :, None] * right[:, None])
