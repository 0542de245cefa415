r"""Expectations E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of Gaussian pairs, in the form that loses nothing near +-1.

A pair is its *gap*: 1 - cos where cos is at least 0, and -(1 + cos) where it is below (-0.0 for cos = -1), so that both
ends keep all digits. What belongs to one example is computed in float64 beforehand, as rows of numbers: COMMON rows for
the step into a layer, then those of its activation. The same letters stand in csrc/layer_recursion.cpp and
kernels/layer_recursion.py:

    rho      root of E[phi(u)^2], the norm of h over the root of the width; rho_0 = |x| / sqrt(m)
    alpha, beta    sqrt(s^2) rho / r and sqrt(b^2) / r, with r = sqrt(s^2 rho^2 + b^2): a point on the unit circle
    tau, kappa     the same for erf and gelu, whose expectations are angles between vectors with one more dimension
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.ops import hermite

COMMON = 3  # rho, alpha, beta
# extra rows a layer; the series has two for each of its terms
EXTRA = {"leaky_relu": 1, "erf": 4, "sin": 2, "gelu": 4}
KINDS = ("leaky_relu", "erf", "sin", "gelu", "series")


class Dual(NamedTuple):
    """An activation as the recursion knows it."""

    kind: str
    slope: float = 0.0  # of leaky_relu: 0 is relu, 1 the identity
    function: Callable[[Tensor], Tensor] | None = None  # of a series
    order: int = 0

    @property
    def rows(self) -> int:
        """Rows of numbers that an example has at such a layer."""
        return COMMON + (2 * (self.order + 2) if self.kind == "series" else EXTRA[self.kind])


def sample_rows(
    norms: Tensor, duals: list[Dual], weight_var: list[float], bias_var: list[float]
) -> tuple[Tensor, float]:
    """Rows of numbers of every example, float64: rho_0, then those of each layer; and the largest tail of a series."""
    rho = norms.double()
    rows, worst = [rho[None]], 0.0
    for dual, w, b in zip(duals, weight_var, bias_var, strict=True):
        r = torch.hypot(rho * math.sqrt(w), torch.full_like(rho, math.sqrt(b))) if b else rho * math.sqrt(w)
        some = r > 0
        safe = torch.where(some, r, 1.0)
        # a state of zeros without a bias has no direction, and needs none
        alpha = torch.where(some, rho * math.sqrt(w) / safe, 1.0)
        beta = torch.where(some, math.sqrt(b) / safe, 0.0)
        if dual.kind == "series":
            assert dual.function is not None
            rho, extra, tail = hermite.coefficients(dual.function, r, dual.order)
            worst = max(worst, tail)
        else:
            rho, extra = _ROWS[dual.kind](r, some, dual.slope)
        rows += [torch.stack([rho, alpha, beta]), extra]
    return torch.cat(rows), worst


def _leaky_relu_rows(r: Tensor, some: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    # phi'(0) as torch has it
    mean_slope = torch.where(some, (1 + slope) / 2, slope)
    return math.sqrt((1 + slope**2) / 2) * r, mean_slope[None]


def _erf_rows(r: Tensor, some: Tensor, _: float) -> tuple[Tensor, Tensor]:
    root = math.sqrt(2) * r
    length = torch.hypot(root, torch.ones_like(r))
    tau, kappa = root / length, 1 / length
    rho = (2 / math.pi * torch.atan2(tau**2, kappa * (1 + tau**2).sqrt())).sqrt()
    inverse = math.sqrt(2 / math.pi) / torch.where(rho > 0, rho, 1.0)
    return rho, torch.stack([tau, kappa, torch.where(rho > 0, tau * inverse, 1.0), inverse])


def _sin_rows(r: Tensor, some: Tensor, _: float) -> tuple[Tensor, Tensor]:
    rho = (-0.5 * torch.expm1(-2 * r * r)).sqrt()
    return rho, torch.stack([r, torch.where(rho > 0, r / torch.where(rho > 0, rho, 1.0), 1.0)])


def _gelu_rows(r: Tensor, some: Tensor, _: float) -> tuple[Tensor, Tensor]:
    length = torch.hypot(r, torch.ones_like(r))
    # of what is below 1e-18 no digit counts, and float32 has the square of that
    tau, kappa = r / length, (1 / length).clamp_min(1e-18)
    sine = kappa * (1 + tau**2).sqrt()  # of the angle between x and itself, one dimension more each
    excess = (-torch.atan2(sine, tau**2) + tau**2 * (kappa**4 / sine + sine)) / math.pi
    root = (1 + excess).sqrt()
    epsilon = torch.expm1(0.5 * torch.log1p(excess))
    return r * root / math.sqrt(2), torch.stack([tau, kappa, epsilon, 1 / (root * math.sqrt(math.pi))])


_ROWS = {"leaky_relu": _leaky_relu_rows, "erf": _erf_rows, "sin": _sin_rows, "gelu": _gelu_rows}


def cosine(gap: Tensor) -> Tensor:
    """The cosine that a gap stands for."""
    return torch.where(gap.signbit(), -1 - gap, 1 - gap)


def gap_of(cos: Tensor) -> Tensor:
    """The gap of a cosine, with the digits that it has left."""
    return torch.where(cos.signbit(), -(1 + cos).clamp_min(0), (1 - cos).clamp_min(0))


def into_layer(gap: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Gap of the pre-activations from that of what the layer takes in: weights, then a bias shared by all."""
    a1, a2, b1, b2 = i[1][:, None], j[1], i[2][:, None], j[2]
    below, size = gap.signbit(), gap.abs()
    scale, shared = a1 * a2, b1 * b2
    mismatch = 0.5 * ((a1 - a2).square() + (b1 - b2).square())  # 1 - scale - shared
    cos = scale * cosine(gap) + shared
    up = mismatch + scale * torch.where(below, 2 - size, size)
    down = mismatch + 2 * shared + scale * torch.where(below, size, 2 - size)
    return torch.where(cos < 0, -down, up)


def through(dual: Dual, gap: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Gap of phi(u) and phi(v) from that of u and v, and E[phi'(u) phi'(v)]; i, j: rows of the two sets of examples."""
    if dual.kind == "series":
        return _series(gap, i, j)
    return _THROUGH[dual.kind](gap, i, j, dual.slope)


def _angle(size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Acute angle of a gap without its sign, its sine and cosine."""
    sine, cos = (size * (2 - size)).sqrt(), 1 - size
    return torch.atan2(sine, cos), sine, cos


def _bend(angle: Tensor, sine: Tensor, cos: Tensor) -> Tensor:
    """Return sine - angle cos to relative precision: where it is small, angle^3 times its series in angle^2."""
    square = angle.clamp_max(1).square()
    total = torch.zeros_like(square)
    # what is left out is below a rounding
    for n in reversed(range(5 if angle.dtype is torch.float32 else 9)):
        total = total * square + (-1) ** n * (2 * n + 2) / math.factorial(2 * n + 3)
    return torch.where(angle < 1, total * square * angle, sine - angle * cos)


def _leaky_relu(gap: Tensor, i: Tensor, j: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    if slope == 1:
        return gap, torch.ones_like(gap)
    below, size = gap.signbit(), gap.abs()
    angle, sine, cos = _angle(size)
    own, h = (1 + slope**2) / 2, (1 - slope) ** 2 / (2 * math.pi)
    bent = h * _bend(angle, sine, cos)
    up = torch.where(below, (1 + slope) ** 2 / 2 - slope * size - bent, own * size - bent) / own
    down = ((1 - slope) ** 2 / 2 + slope * size + bent) / own
    out = torch.where(below & (bent < slope * cos), -down, up.clamp_min(0))
    slopes = torch.where(below, slope + h * angle, own - h * angle)
    empty = (i[0] == 0)[:, None] | (j[0] == 0)
    return out, torch.where(empty, i[3][:, None] * j[3], slopes)


def _same(gap: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Whether two examples are one, or opposite, to the rounding of a number of theirs: their gap stays.

    Returns:
        Booleans. Where kernels grow apart with depth, a rounding of such a gap would grow as they do.
    """
    eps = torch.finfo(gap.dtype).eps
    return (gap.abs() <= 64 * eps**2) & ((one - other).abs() <= 8 * eps * other.abs())


def _erf(gap: Tensor, i: Tensor, j: Tensor, _: float) -> tuple[Tensor, Tensor]:
    cos = cosine(gap)
    t1, t2, k1, k2 = i[3][:, None], j[3], i[4][:, None], j[4]
    wide = 0.5 * ((t1 - t2).square() + (k1 - k2).square()) + k1 * k2 + t1 * t2 * gap.abs()
    angle, sine, _cos = _angle(wide)
    hat = t1 * t2 * cos.abs()
    # asin(hat) / hat near 0, where both are small
    small = hat * hat < 0.5
    ratio = torch.where(small, torch.asin(hat.clamp_max(0.75)) / hat.clamp_min(1e-30), 1.0)
    ratio = torch.where(hat < 1e-30, 1.0, ratio)
    near = ratio * cos.abs() * (i[5][:, None] * j[5])
    far = (math.pi / 2 - angle) * (i[6][:, None] * j[6])
    size = torch.where(small, near, far)
    out = gap_of(torch.copysign(size, gap))
    kept = _same(gap, t1, t2) & _same(gap, k1, k2)
    return torch.where(kept, torch.copysign(gap, out), out), 4 / math.pi * (k1 * k2) / sine


def _sin(gap: Tensor, i: Tensor, j: Tensor, _: float) -> tuple[Tensor, Tensor]:
    size = gap.abs()
    r1, r2 = i[3][:, None], j[3]
    both = r1 * r2
    near = torch.exp(-0.5 * (r1 - r2).square() - both * size)
    twice = 2 * both * (1 - size)
    less = torch.expm1(-twice)
    ratio = torch.where(twice < 1e-30, 1.0, -less / twice.clamp_min(1e-30))
    cos = near * ratio * (1 - size) * (i[4][:, None] * j[4])
    out = gap_of(torch.copysign(cos, gap))
    return torch.where(_same(gap, r1, r2), torch.copysign(gap, out), out), near * (1 + 0.5 * less)


def _gelu(gap: Tensor, i: Tensor, j: Tensor, _: float) -> tuple[Tensor, Tensor]:
    below, size, cos = gap.signbit(), gap.abs(), cosine(gap)
    t, k = i[3][:, None] * j[3], i[4][:, None] * j[4]
    rest = 0.5 * ((i[3][:, None] - j[3]).square() + (i[4][:, None] - j[4]).square()) + k  # 1 - t
    angle, sine, _cos = _angle(rest + t * size)
    inverse, k = 1 / sine, k * k
    extra = t * k * cos * cos * inverse
    e1, e2 = i[5][:, None], j[5]
    up = size * (math.pi - angle) + math.pi * (e1 * e2 + e1 + e2) + (angle - sine) + rest * sine - extra
    down = cos * angle + t * sine + extra
    scale = i[6][:, None] * j[6]
    out = torch.where(below, gap_of(down * scale), (up * scale).clamp_min(0))
    turned = torch.where(below, angle, math.pi - angle)
    slopes = turned + t * cos * inverse * (rest * (1 + t) + k + k * inverse * inverse)
    return out, slopes / (2 * math.pi)


def _series(gap: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    terms = (len(i) - COMMON) // 2
    cos = cosine(gap)
    sums = []
    for first in (COMMON, COMMON + terms):
        a1, a2 = i[first : first + terms], j[first : first + terms]
        total = torch.zeros_like(gap)
        for k in reversed(range(terms)):
            total = torch.addcmul(total * cos, a1[k][:, None], a2[k])
        sums.append(total)
    out = gap_of(sums[0])
    eps, turned = torch.finfo(out.dtype).eps, (i[COMMON + terms][:, None] - j[COMMON + terms]).abs()
    kept = _same(gap, i[0][:, None], j[0]) & (turned <= 8 * eps) & (out.abs() < 64 * eps)
    return torch.where(kept, torch.copysign(gap, out), out), sums[1]


_THROUGH = {"leaky_relu": _leaky_relu, "erf": _erf, "sin": _sin, "gelu": _gelu}
