"""LayerKernels of random features, in every reduction."""

import torch

from nftk import LayerKernels


def make(reduction, n1=4, n2=None, d=3, depth=2, dtype=torch.float64):
    """Symmetric, positive kernels without n2."""
    a = torch.randn(depth, n1, d, 7, dtype=dtype)
    b = a if n2 is None else torch.randn(depth, n2, d, 7, dtype=dtype)
    full = torch.einsum("laic,lbjc->laibj", a, b).permute(0, 1, 3, 2, 4)
    blocks = {
        "full": full,
        "diagonal": full.diagonal(dim1=3, dim2=4),
        "trace": full.diagonal(dim1=3, dim2=4).sum(-1),
        "sum_logits": full.sum((3, 4)),
        "scalar": full[..., 0, 0],
    }[reduction]
    return LayerKernels(blocks, tuple(f"readout {i + 1}" for i in range(depth)), reduction, symmetric=n2 is None)
