"""Kernels and targets that the tests of the regressions share."""

import numpy as np
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


WIDTHS = (0.5, 1.0, 2.0, 4.0)


def kernels(x1, x2):
    """Four matrices of very different smoothness, ``(4, n1, n2)``."""
    return torch.stack([torch.exp(-torch.cdist(x1, x2).square() / (2 * w**2 * x1.shape[1])) for w in WIDTHS])


@pytest.fixture(name="data")
def layered_problem():
    """40 examples, four kernels, 3 outputs."""
    x = draw(40, 3)
    y = torch.stack((torch.sin(3 * x[:, 0]), x[:, 1] ** 2, x[:, 2] + 0.1 * draw(40, seed=3)), 1)
    return x, kernels(x, x), y


def objective(k, y, eta, ridge):
    """J of one output, written down: (rho / N) y^T (K + rho I)^-1 y."""
    system = torch.einsum("l,lxy->xy", eta, k) + ridge * torch.eye(len(y)).double()
    return ridge / len(y) * torch.dot(y, torch.linalg.solve(system, y))


def independent(k, y, ridge):
    """Minimum over the simplex by scipy's SLSQP, with numerical derivatives of the objective written down."""
    from scipy.optimize import minimize

    best = minimize(
        lambda eta: float(objective(k, y, torch.from_numpy(eta), ridge)) * 1e3,
        np.full(len(k), 1 / len(k)),
        method="SLSQP",
        bounds=[(0, 1)] * len(k),
        constraints={"type": "eq", "fun": lambda eta: eta.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return best.x, best.fun / 1e3
