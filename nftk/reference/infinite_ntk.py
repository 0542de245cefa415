"""Definition of the infinite-width kernels: a Gaussian process by layer, and its tangent kernel."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Dual = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def infinite_ntk_reference(
    x1: Tensor,
    x2: Tensor,
    dual: Dual,
    weight_var: Sequence[float],
    bias_var: Sequence[float],
    readout_var: Sequence[float],
    widths: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Kernels of every readout of an infinitely wide network.

    .. math::
        \Sigma_l = s_l^2 \Lambda_{l-1} + b_l^2, \quad \Lambda_0 = x x'^T / m, \quad
        \Lambda_l = E[\phi(u) \phi(v)], \quad \dot\Lambda_l = E[\phi'(u) \phi'(v)], \quad (u, v) \sim N(0, \Sigma_l) \\
        T_l = \Sigma_l + s_l^2 \dot\Lambda_{l-1} T_{l-1}, \qquad
        \Theta_l = r_l^2 (\Lambda_l + \dot\Lambda_l T_l)

    Args:
        x1: First inputs, ``(n1, m)``.
        x2: Second inputs, ``(n2, m)``.
        dual: The two expectations, of (Sigma of the pair, of x with itself, of x' with itself).
        weight_var: s_l^2, one a layer.
        bias_var: b_l^2.
        readout_var: r_l^2.
        widths: n_l in the standard parameterisation: each parameter then has a coefficient of 1 in the tangent
            kernel, so that of Sigma's two terms there remain n_{l-1} Lambda and 1, and of r_l^2 Lambda_l, n_l Lambda_l.

    Returns:
        The tangent kernels Theta and the covariances r_l^2 Lambda_l of the readouts, each ``(L, n1, n2)``.

    Example:
        >>> x = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
        >>> theta, nngp = infinite_ntk_reference(x, x, relu_dual, [2.0], [0.0], [1.0])
        >>> theta.item(), nngp.item()  # Sigma_1 = 2 * 4 / 2; Lambda_1 = Sigma_1 / 2; its slope's is 1/2
        (4.0, 2.0)
    """
    m = x1.shape[1]
    pair, own1, own2 = x1 @ x2.mT / m, (x1 * x1).sum(1) / m, (x2 * x2).sum(1) / m
    fan_in = None if widths is None else (m, *widths)
    passed = torch.zeros_like(pair)  # s_l^2 dot Lambda_{l-1} T_{l-1}
    theta, nngp = [], []
    for i, (s, b, r) in enumerate(zip(weight_var, bias_var, readout_var, strict=True)):
        sigma, q1, q2 = s * pair + b, (s * own1 + b)[:, None], (s * own2 + b)[None, :]
        tangent = passed * s + (sigma if fan_in is None else fan_in[i] * pair + 1)
        pair, slopes = dual(sigma, q1, q2)
        own1, own2 = dual(q1, q1, q1)[0][:, 0], dual(q2, q2, q2)[0][0]
        passed = slopes * tangent
        theta.append((r if fan_in is None else fan_in[i + 1]) * pair + r * passed)
        nngp.append(r * pair)
    return torch.stack(theta), torch.stack(nngp)


def leaky_relu_dual(slope: float) -> Dual:
    """Expectations of max(u, slope u): Cho and Saul, Kernel methods for deep learning, 2009, from two half planes."""

    def dual(sigma: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        norms = (q1 * q2).sqrt()
        angle = torch.acos((sigma / norms).clamp(-1, 1))
        same = (norms * angle.sin() + (math.pi - angle) * sigma) / (2 * math.pi)
        apart = (norms * angle.sin() - angle * sigma) / (2 * math.pi)
        both = (math.pi - angle) / (2 * math.pi)
        return (1 + slope**2) * same - 2 * slope * apart, (1 + slope**2) * both + 2 * slope * (0.5 - both)

    return dual


relu_dual = leaky_relu_dual(0.0)


def identity_dual(sigma: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """Expectations of u v."""
    return sigma, torch.ones_like(sigma)


def erf_dual(sigma: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """Expectations of the error function: Williams, Computing with infinite networks, 1997."""
    product = (1 + 2 * q1) * (1 + 2 * q2)
    slopes = 4 / math.pi / (product - 4 * sigma**2).sqrt()
    return 2 / math.pi * torch.asin(2 * sigma / product.sqrt()), slopes


def sin_dual(sigma: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """Expectations of the sine, from the characteristic functions of u - v and u + v."""
    minus, plus = torch.exp(sigma - (q1 + q2) / 2), torch.exp(-sigma - (q1 + q2) / 2)
    return (minus - plus) / 2, (minus + plus) / 2


def gelu_dual(sigma: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """Expectations of u Phi(u): Tsuchida et al., Avoiding kernel fixed points, AAAI 2021, arXiv 2002.08517."""
    product = (1 + q1) * (1 + q2)
    root = (product - sigma**2).sqrt()
    angle = math.pi / 2 + torch.asin(sigma / product.sqrt())
    value = sigma * angle + (sigma**2 + q1 * q2 * root**2) / (product * root)
    slopes = angle + sigma / root * (1 + (1 - q1 * q2) / product + 1 / root**2)
    return value / (2 * math.pi), slopes / (2 * math.pi)


def quadrature_dual(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], nodes: int = 200) -> Dual:
    """Expectations of any function by Gauss-Hermite quadrature in two dimensions; slope is its derivative."""

    def dual(sigma: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        import numpy as np

        points, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(nodes))
        weights = weights / weights.sum()
        r1, r2 = (q.sqrt().expand_as(sigma)[..., None, None] for q in (q1, q2))
        cosine = (sigma[..., None, None] / (r1 * r2)).clamp(-1, 1)
        a, b = points[:, None], points[None, :]
        u, v = r1 * a, r2 * (cosine * a + (1 - cosine**2).sqrt() * b)
        both = weights[:, None] * weights
        return (function(u) * function(v) * both).sum((-2, -1)), (slope(u) * slope(v) * both).sum((-2, -1))

    return dual
