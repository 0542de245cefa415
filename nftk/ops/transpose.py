"""One matrix written across another."""

import torch
from torch import Tensor

from nftk import _dispatch

# smaller ones are done before C++ is called
_SMALL = 1 << 10


def copy_transposed_(out: Tensor, x: Tensor) -> None:
    """Write x, shape ``(m, n)``, transposed over out, shape ``(n, m)``: as ``out.copy_(x.mT)``, on a CPU in C++."""
    if x.numel() < _SMALL or not _in_rows(out) or not _in_rows(x) or out.dtype is not x.dtype:
        out.copy_(x.mT)
        return
    if x.dtype not in (torch.float32, torch.float64) or _dispatch.why_not("cpp", x.device.type) is not None:
        out.copy_(x.mT)
        return
    from nftk import _C

    _C.transpose(
        out=out.data_ptr(), out_stride=out.stride(0), x=x.data_ptr(), x_stride=x.stride(0),
        sizes=(x.shape[0], x.shape[1]), number="float32" if x.dtype is torch.float32 else "float64",
    )  # fmt: skip


def _in_rows(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.stride(1) == 1 and x.stride(0) >= x.shape[1]
