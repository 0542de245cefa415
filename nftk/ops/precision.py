"""How exactly matrix products are taken: names, and torch's own setting held off."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from nftk._checks import check_choice

# ours, and torch.set_float32_matmul_precision's words for the same
_NAMES = {"highest": "highest", "tf32": "tf32", "high": "tf32", "bf16": "bf16", "medium": "bf16"}


def canonical(op: str, precision: str) -> str:
    """Return "highest", "tf32" or "bf16", or raise."""
    check_choice(op, "precision", precision, _NAMES)
    return _NAMES[precision]


def torch_would_round(x: Tensor) -> bool:
    """Whether torch's global setting lets it multiply these float32 tensors less exactly."""
    return x.is_cuda and x.dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Products of tensors like x in their own precision, whatever torch's global setting says."""
    if not torch_would_round(x):
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants products of x in, or None."""
    kind = x.device.type
    if x.dtype is torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
