"""Kernels and targets that the tests of the regressions share."""

import pytest
import torch

import nftk


def rbf(a, b, width=1.0):
    return torch.exp(-torch.cdist(a, b).square() / (2 * width**2 * a.shape[1]))


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(name="problem")
def ridge_problem():
    """30 training and 7 test examples, 3 outputs."""
    x, x_test = draw(30, 4), draw(7, 4, seed=1)
    return rbf(x, x), rbf(x_test, x), draw(30, 3, seed=2)


def layers(reduction, n1=30, n2=30, d=3, depth=2):
    """Positive semi-definite layer kernels whose outputs and layers all differ."""
    found = []
    for layer in range(depth):
        x = draw(max(n1, n2), 6, seed=10 + layer)
        tie = draw(d, d, seed=20 + layer)
        tie = tie @ tie.T + torch.eye(d)
        k = rbf(x[:n1], x[:n2], 1 + layer)
        full = torch.einsum("xy,ij->xyij", k, tie) + torch.einsum(
            "xy,ij->xyij", x[:n1] @ x[:n2].T, torch.diag(torch.arange(1.0, d + 1, dtype=torch.float64))
        )
        found.append(
            {
                "full": full,
                "diagonal": full.diagonal(dim1=2, dim2=3),
                "trace": full.diagonal(dim1=2, dim2=3).sum(-1),
                "sum_logits": full.sum((2, 3)),
                "scalar": k,
            }[reduction]
        )
    names = tuple(f"layer {i}" for i in range(depth))
    return nftk.LayerKernels(torch.stack(found), names, reduction, symmetric=n1 == n2)
