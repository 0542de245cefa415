"""Hermite coefficients of any activation at any scale: E[phi(r a) phi(r' b)] = sum_k c_k(r) c_k(r') cos^k."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nftk.ops.activations import resolve, value_and_slope

# exp(-a^2 / 4) is below 1e-18 there, and what is left of a term of the quadrature bounded
_REACH = 13.0
# narrow around 0, where activations have their corners and, at large scales, their steps
_EDGES = (0.0, 2.0**-12, 2.0**-9, 2.0**-7, 2.0**-5, 2.0**-3, 0.375, *np.arange(0.75, 13.1, 0.6125))
_NODES = 14  # of Gauss-Legendre between two edges


@functools.lru_cache(maxsize=8)
def _quadrature(order: int) -> tuple[Tensor, Tensor]:
    """Nodes, and the weights times the orthonormal Hermite polynomials of degree 0 .. order - 1, [nodes, order]."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    edges = np.minimum(np.array(_EDGES), _REACH)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    right = (middle[:, None] + half[:, None] * points).ravel()
    density = (half[:, None] * weights).ravel() * np.exp(-right * right / 2) / np.sqrt(2 * np.pi)
    nodes, density = np.concatenate([-right[::-1], right]), np.concatenate([density[::-1], density])
    density /= density.sum()
    polynomials = [np.ones_like(nodes), nodes]
    for k in range(1, order - 1):
        polynomials.append((nodes * polynomials[k] - np.sqrt(k) * polynomials[k - 1]) / np.sqrt(k + 1))
    return torch.from_numpy(nodes), torch.from_numpy(density[:, None] * np.stack(polynomials[:order], 1))


def coefficients(function: Callable[[Tensor], Tensor], r: Tensor, order: int) -> tuple[Tensor, Tensor, float]:
    """Norms rho, rows of the series of phi over rho and of phi', and the largest share of a square that is not in it.

    Args:
        function: phi, elementwise.
        r: Scales, ``(n,)``.
        order: Terms. Two more hold what is left of the even and of the odd part, so that both ends, +-1, are exact.

    Returns:
        ``(n,)``; ``(2 (order + 2), n)``; and a bound on the error of E[phi phi] and of E[phi' phi'], relative to the
        roots of what they are for a pair of equal examples.
    """
    nodes, weighted = (t.to(r.device) for t in _quadrature(order))
    even = order % 2  # where the even rest goes: the first even power from order on
    parts, norms, worst = [], [], 0.0
    value, slope = value_and_slope(resolve(function), r[:, None] * nodes)
    for f in (value.double(), slope.double()):
        known = f @ weighted  # [n, order]
        mirrored, density = f.flip(1), weighted[:, 0]
        rests = []
        for parity in (0, 1):
            part = (f + mirrored if parity == 0 else f - mirrored) / 2
            whole = part.square() @ density
            rest = whole - known[:, parity::2].square().sum(1)
            # what rounding left below 0 has no root, and no derivative
            rests.append(torch.where(rest > 0, rest, 0.0))
        square = f.square() @ density
        tail = torch.stack(rests).sum(0) / torch.where(square > 0, square, 1.0)
        worst = max(worst, float(tail.detach().max())) if len(r) else worst
        last = rests if even == 0 else rests[::-1]
        parts.append(torch.cat([known, _root(torch.stack(last, 1))], 1))
        norms.append(_root(square))
    rho = norms[0]
    scaled = parts[0] / torch.where(rho > 0, rho, 1.0)[:, None]
    return rho, torch.cat([scaled.mT, parts[1].mT]), worst


def _root(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)
