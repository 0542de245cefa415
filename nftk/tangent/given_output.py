"""Memory that a caller gives for a result."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nftk._checks import check_tensor


def given_output(op: str, out: Any) -> Tensor:
    """The tensor, or the numpy array or memmap as a tensor on its memory; raise unless it can be written to."""
    if isinstance(out, np.ndarray):
        if not out.flags.writeable:
            raise ValueError(f"nftk.{op}: out must be writable, got a read-only array")
        try:
            return torch.from_numpy(out)
        except (TypeError, ValueError) as error:
            rule = "an array that torch can write to"
            raise TypeError(f"nftk.{op}: out must be {rule}, got one it cannot: {error}") from None
    check_tensor(op, "out", out)
    if out.requires_grad:
        raise ValueError(f"nftk.{op}: out must not require gradients, got a tensor that does")
    return out  # type: ignore[no-any-return]
