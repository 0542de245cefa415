"""cosine_gap: how far the angle of each pair is from 0 or 180 degrees, exact where a Gram matrix is not."""

import torch
from torch import Tensor

from nftk import _dispatch
from nftk._checks import check_same, check_shape, check_tensor
from nftk.ops import precision as precisions
from nftk.ops.network_formula import transform_active

_OP = "ops.cosine_gap"
# beyond it a Gram matrix's own rounding moves an angle by no more than some roundings
NEAR = {torch.float32: 2.0**-6, torch.float64: 2.0**-12}
# differences of so many entries at once
_CHUNK = 1 << 20


def cosine_gap(x1: Tensor, x2: Tensor | None = None) -> Tensor:
    r"""Gap of every pair: 1 - cos(x, x') where that is at most 1, else -(1 + cos(x, x')).

    A cosine near 1 has lost the angle: its rounding of 1e-7 is an angle of 5e-4. So near pairs, and nearly opposite
    ones, take theirs from the difference, or the sum, of the two directions: 1 - cos = |u - u'|^2 / 2.

    Args:
        x1: First inputs, ``(n1, m)``, float32 or float64.
        x2: Second inputs, ``(n2, m)``. None: the first; the result is then exactly symmetric, its diagonal 0.

    Returns:
        ``(n1, n2)``, in -1 .. 1; -0.0 stands for opposite directions. An input of zeros has a gap of 1 to all.

    Raises:
        ValueError: If shapes, dtypes or devices disagree.
        TypeError: If an input is no dense floating tensor.

    Derivatives:
        In both inputs; not defined where two directions are the same, or an input is zero.

    Example:
        >>> x = torch.tensor([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0]])
        >>> cosine_gap(x)
        tensor([[0., -0., 1.],
                [-0., 0., 1.],
                [1., 1., 0.]])
    """
    check_tensor(_OP, "x1", x1)
    if x1.dtype not in NEAR:
        raise TypeError(f"nftk.{_OP}: x1 must be torch.float32 or torch.float64, got {x1.dtype}")
    check_shape(_OP, "x1", x1, ("n1", "m"))
    if x2 is not None:
        check_tensor(_OP, "x2", x2)
        check_shape(_OP, "x2", x2, ("n2", x1.shape[1]))
        check_same(_OP, "dtype", x1=x1, x2=x2)
        check_same(_OP, "device", x1=x1, x2=x2)
    u1 = directions(x1)[0]
    u2 = u1 if x2 is None else directions(x2)[0]
    with precisions.full_precision(x1):
        gram = u1.to(x1.dtype) @ u2.to(x1.dtype).mT
    gap = from_gram(gram, u1, u2)
    if x2 is not None:
        return gap
    # a diagonal of 0, but for inputs of zeros; whole numbers below it, because adding would lose the sign of -0.0
    above = torch.ones_like(gap, dtype=torch.bool).triu(1)
    return torch.where(above, gap, torch.where(above.mT, gap.mT, torch.where(gap < 0.5, 0.0, gap)))


def directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x / |x|, 0 for 0, and |x|, in float64; norms that float64 itself cannot square included."""
    wide = x.double()
    largest = wide.abs().amax(1, keepdim=True) if x.shape[1] else wide.new_zeros(len(x), 1)
    # a power of two, so that nothing is rounded
    scale = torch.where(
        largest > 0, torch.exp2(torch.log2(torch.where(largest > 0, largest, 1.0)).floor()), 1.0
    ).detach()
    scaled = wide / scale
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(norms > 0, norms, 1.0), (norms * scale)[:, 0]


def from_gram(gram: Tensor, u1: Tensor, u2: Tensor, upper: bool = False) -> Tensor:
    """Turn the Gram matrix of directions, themselves in float64, into gaps; in place unless it has a graph.

    Args:
        gram: Their Gram matrix, ``(n1, n2)``, in the dtype of the result.
        u1: First directions, ``(n1, m)``.
        u2: Second directions, ``(n2, m)``.
        upper: Whether both are one, and only the upper triangle will be read.

    Returns:
        The gaps, ``(n1, n2)``.
    """
    if not _dispatch.why_not("cpp", str(gram.device)) and _plain_memory(gram, u1, u2):
        from nftk import _C

        u1, u2 = u1.contiguous(), u2.contiguous()
        _C.gaps_from_gram(
            gram=gram.data_ptr(), stride=gram.stride(0), sizes=(*gram.shape, u1.shape[1]), u1=u1.data_ptr(),
            u2=u2.data_ptr(), near=NEAR[gram.dtype], upper=upper,
            number="float32" if gram.dtype is torch.float32 else "float64", threads=torch.get_num_threads(),
        )  # fmt: skip
        return gram
    tracked = gram.requires_grad and torch.is_grad_enabled()
    cos = gram if tracked else gram.detach()
    near = cos.detach().abs() > 1 - NEAR[gram.dtype]
    where = (near.triu_(1) if upper else near).nonzero()
    out = torch.where(cos.signbit(), -1 - cos, 1 - cos) if tracked else _plain_(gram)
    for rows in where.split(max(1, _CHUNK // max(u1.shape[1], 1))):
        i, j = rows[:, 0], rows[:, 1]
        sign = torch.where(out.detach()[i, j].signbit(), -1.0, 1.0).double()
        value = (0.5 * (u1[i] - sign[:, None] * u2[j]).square().sum(1) * sign).to(out.dtype)
        out = out.index_put((i, j), value) if tracked else out.index_put_((i, j), value)
    if upper:
        own = out.diagonal()
        own.copy_(torch.where(own < 0.5, 0.0, own))
    return out


def _plain_(gram: Tensor) -> Tensor:
    """1 - cos, or -(1 + cos), in place and a few rows at a time; rounding beyond +-1 counts as that."""
    for part in gram.split(max(1, _CHUNK // max(gram.shape[1], 1))):
        part.copy_(torch.where(part.signbit(), -(1 + part).clamp_min_(0), (1 - part).clamp_min_(0)))
    return gram


def _plain_memory(gram: Tensor, u1: Tensor, u2: Tensor) -> bool:
    """Whether C++ may work in a Gram matrix: no graph and no transform needs to see what it does."""
    if torch.compiler.is_compiling() or transform_active():
        return False
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in (gram, u1, u2))
    return not tracked and (gram.stride(1) == 1 or gram.shape[1] <= 1)
