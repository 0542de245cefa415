"""Numbers that say what a layer's kernel is like: alignment with the targets, rank, spectrum, drift."""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nftk._checks import (
    check_choice,
    check_flag,
    check_integer,
    check_same,
    check_shape,
    check_symmetric,
    check_tensor,
    is_finite,
)
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.scale import magnitude
from nftk.tangent.targets import are_labels, as_array, as_numbers, classes_of, one_hot

Kernels = LayerKernels | Tensor
# eigenvalues below this share of the largest, times n and eps of the kernel's dtype, are rounding
ROUNDING = 4.0


def alignment(k: Kernels, y: Any, *, centred: bool = False) -> Tensor:
    r"""Cosine between each layer's kernel and that of the targets: how much of it speaks of them.

    .. math:: A_l = \frac{\langle \Theta_l, Y Y^\top \rangle}{\lVert \Theta_l \rVert \, \lVert Y Y^\top \rVert}

    1 where the kernel is the targets' own, 0 where it is orthogonal to them. Plain alignment is large for any kernel
    with a large mean; centred alignment takes the means of rows and columns away first.

    Args:
        k: Kernels of examples with themselves: LayerKernels, or ``(n, n)`` or ``(L, n, n)``.
        y: Labels (one-hot targets), a row or a column of integers, booleans or strings; else targets ``(n,)`` or
            ``(n, d)``; as for :class:`nftk.KernelRidge`.
        centred: Whether to centre both (which for full kernels centres over examples, each pair of outputs apart).

    Returns:
        ``(L,)``, float64; for diagonal kernels ``(L, d)``, each output with its own target.

    Raises:
        ValueError: If shapes do not fit, entries are not finite, or a kernel is not square or not symmetric.
        TypeError: If k is no floating tensor, y is not numbers or labels, or centred no boolean.

    References:
        Cristianini et al., On kernel-target alignment, NIPS 2001; Cortes, Mohri and Rostamizadeh, Algorithms for
        learning kernels based on centered alignment, JMLR 13, 2012.

    Example:
        >>> import torch, nftk
        >>> y = torch.tensor([1.0, -1.0])
        >>> nftk.tangent.alignment(torch.stack((torch.outer(y, y), torch.eye(2))), y)
        tensor([1.0000, 0.7071], dtype=torch.float64)
    """
    op = "tangent.alignment"
    check_flag(op, "centred", centred)
    k = _layers(op, k)
    target = _targets(op, y, k.shape[0]).to(k.blocks.device)
    if k.outputs not in (None, target.shape[1]):
        raise ValueError(f"nftk.{op}: y must have {k.outputs} classes or columns, as k, got {target.shape[1]}")
    found = []
    for block in k.matrix().detach():
        if k.reduction == "diagonal":
            parts = zip(block, target.unbind(1), strict=True)
            found.append(torch.stack([_cosine(matrix, one[:, None], centred, 1) for matrix, one in parts]))
        elif k.reduction == "full":
            found.append(_cosine(block, target.reshape(-1, 1), centred, target.shape[1]))
        else:
            found.append(_cosine(block, target, centred, 1))
    return torch.stack(found)


def effective_rank(k: Kernels, kind: Literal["entropy", "participation"] = "entropy") -> Tensor:
    r"""How many directions each layer's kernel has, counted by weight.

    .. math:: \exp(-\sum_i p_i \log p_i) \quad \text{or} \quad 1 / \sum_i p_i^2, \qquad
        p_i = \lambda_i / \sum_j \lambda_j

    Args:
        k: As for :func:`alignment`.
        kind: ``"entropy"``; or ``"participation"``, which needs no eigenvalues, and is never larger.

    Returns:
        ``(L,)``, between 1 and the size; for diagonal kernels ``(L, d)``. A kernel of zeros has 0.

    Raises:
        ValueError: If k is not square, symmetric and finite, or kind unknown.

    References:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.

    Example:
        >>> import torch, nftk
        >>> nftk.tangent.effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0])))
        tensor([2.], dtype=torch.float64)
    """
    op = "tangent.effective_rank"
    check_choice(op, "kind", kind, ("entropy", "participation"))
    k = _layers(op, k)
    if kind == "participation":
        found = []
        for matrix, _ in _matrices(k):
            size = matrix.square().sum()
            found.append(matrix.trace().square() / torch.where(size > 0, size, 1.0))
        return torch.stack(found).reshape(k.matrix().shape[:-2])
    values, _ = _eigenvalues(k)
    total = values.sum(-1, keepdim=True)
    share = values / torch.where(total > 0, total, 1.0)
    return torch.where(total[..., 0] > 0, torch.special.entr(share).sum(-1).exp(), total[..., 0])


class Spectrum(NamedTuple):
    """Eigenvalues of kernels and how they fall.

    Attributes:
        values: Descending, ``(L, N)``, float64, those below 0 by rounding set to 0; ``(L, d, n)`` for diagonal kernels.
        exponent: a of the power law lambda_i ~ i^-a that fits best, by least squares in logarithms over ``counted``
            eigenvalues, ``(L,)``, or ``(L, d)``; NaN where fewer than 3 are left.
        counted: How many lie above rounding, and within the range asked for.
    """

    values: Tensor
    exponent: Tensor
    counted: Tensor


def spectrum(k: Kernels, *, first: int = 2, last: int | None = None) -> Spectrum:
    """Eigenvalues of each layer's kernel, and the exponent of their decay.

    Args:
        k: As for :func:`alignment`.
        first: The fit begins at this eigenvalue, counted from 1: the largest is often the mean and lies apart.
        last: It ends there; None for the last one above rounding.

    Returns:
        The spectrum.

    Raises:
        ValueError: If k is not square, symmetric and finite, or the range is empty.
        TypeError: If first or last is no integer.

    Example:
        >>> import torch, nftk
        >>> falls = torch.arange(1, 51, dtype=torch.float64) ** -2.0
        >>> round(nftk.tangent.spectrum(torch.diag(falls)).exponent.item(), 6)
        2.0
    """
    op = "tangent.spectrum"
    k = _layers(op, k)
    first = check_integer(op, "first", first, 1)
    last = None if last is None else check_integer(op, "last", last, first)
    values, scales = _eigenvalues(k)
    size = values.shape[-1]
    rounding = ROUNDING * size * torch.finfo(k.blocks.dtype).eps * values[..., :1]
    place = torch.arange(1, size + 1, device=values.device)
    used = (values > rounding) & (place >= first) & (place <= (size if last is None else last))
    x = place.to(torch.float64).log().expand_as(values)
    y = torch.where(used, values, 1.0).log()
    count = used.sum(-1)
    weight = used.to(torch.float64) / count.clamp(min=1)[..., None]
    x_mean, y_mean = (x * weight).sum(-1, keepdim=True), (y * weight).sum(-1, keepdim=True)
    slope = ((x - x_mean) * (y - y_mean) * weight).sum(-1) / ((x - x_mean).square() * weight).sum(-1)
    return Spectrum(values * scales[..., None], torch.where(count >= 3, -slope, torch.nan), count)


class Drift(NamedTuple):
    """How far each layer's kernel has moved between two checkpoints, ``(L,)``, float64.

    Attributes:
        relative: ||second - first|| / ||first||; 0 is lazy training, in which the kernel stays. From zeros to anything
            else it is infinite.
        turned: 1 - cosine of the two: what is left when growing as a whole does not count. Zeros have no direction: 1
            from or to them.
        grown: ||second|| / ||first||; infinite from zeros.

    Where both are zeros nothing has moved: 0, 0 and 1.
    """

    relative: Tensor
    turned: Tensor
    grown: Tensor


def drift(first: Kernels, second: Kernels) -> Drift:
    """How far kernels have moved from one checkpoint to another: how far from lazy the training was.

    Args:
        first: Kernels of some examples at the first checkpoint, of any reduction and shape.
        second: Those of the same examples at the second.

    Returns:
        The drift of each layer.

    Raises:
        ValueError: If the two are not finite, or not alike in shape, device, reduction, normalisation, and names, where
            both have some.

    References:
        Fort et al., Deep learning versus kernel learning, NeurIPS 2020, arXiv 2010.15110, section 3 (``turned``).

    Example:
        >>> import torch, nftk
        >>> moved = nftk.tangent.drift(torch.eye(2), 3 * torch.eye(2))
        >>> moved.relative, moved.turned < 1e-12
        (tensor([2.], dtype=torch.float64), tensor([True]))
    """
    op = "tangent.drift"
    for name, one in (("first", first), ("second", second)):
        if isinstance(one, Tensor) and one.ndim not in (2, 3):
            raise ValueError(f"nftk.{op}: {name} must have shape [n1, n2] or [L, n1, n2], got {list(one.shape)}")
    before, after = (_as_layers(op, one) for one in (first, second))
    named = isinstance(first, LayerKernels) and isinstance(second, LayerKernels)
    for what in ("reduction", "normalization", *(("names",) if named else ())):
        if getattr(before, what) != getattr(after, what):
            raise ValueError(
                f"nftk.{op}: first and second must share their {what}, got {getattr(before, what)!r} and "
                f"{getattr(after, what)!r}"
            )
    check_shape(op, "second", after.blocks, tuple(before.blocks.shape))
    check_same(op, "device", first=before.blocks, second=after.blocks)
    for name, one in (("first", before), ("second", after)):
        if not is_finite(one.blocks):
            raise ValueError(f"nftk.{op}: {name} must be finite, got NaN or infinity")
    pairs = zip(before.blocks.detach(), after.blocks.detach(), strict=True)
    found = [_moved(one.to(torch.float64), other.to(torch.float64)) for one, other in pairs]
    return Drift(*torch.tensor(found, dtype=torch.float64, device=before.blocks.device).unbind(1))


def _moved(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """Drift of one layer."""
    (a, a_scale), (b, b_scale) = _sized(first), _sized(second)
    size, new = float(torch.linalg.vector_norm(a)), float(torch.linalg.vector_norm(b))
    if not size:
        return (math.inf, 1.0, math.inf) if new else (0.0, 0.0, 1.0)
    if not new:
        return 1.0, 1.0, 0.0
    scale = max(a_scale, b_scale)
    step, step_scale = _sized(first / scale - second / scale)
    # as a distance of directions: 1 - cosine would lose all digits of a small turn
    turned = float(torch.linalg.vector_norm(a / size - b / new)) ** 2 / 2
    relative = float(torch.linalg.vector_norm(step)) / size * step_scale * (scale / a_scale)
    return relative, turned, new / size * (b_scale / a_scale)


def _sized(x: Tensor) -> tuple[Tensor, float]:
    """What can be squared, and what it was divided by."""
    scale = magnitude(x)
    return x / scale, scale


def _as_layers(op: str, k: Kernels) -> LayerKernels:
    if isinstance(k, LayerKernels):
        return k
    check_tensor(op, "k", k)
    blocks = k[None] if k.ndim == 2 else k
    check_shape(op, "k", blocks, ("L", "n", "n"))
    return LayerKernels(blocks, tuple(f"layer {i + 1}" for i in range(len(blocks))), "scalar")


def _layers(op: str, k: Kernels) -> LayerKernels:
    k = _as_layers(op, k)
    if k.shape[0] != k.shape[1]:
        raise ValueError(f"nftk.{op}: k must be square, kernels of examples with themselves, got shape {list(k.shape)}")
    if not is_finite(k.blocks):
        raise ValueError(f"nftk.{op}: k must be finite, got NaN or infinity")
    if not k.symmetric:
        for name, block in zip(k.names, k.matrix().detach(), strict=True):
            check_symmetric(op, f"k of {name}", block, torch.finfo(block.dtype).eps)
    return k


def _targets(op: str, y: Any, n: int) -> Tensor:
    values = as_array(op, y)
    if values.ndim not in (1, 2) or len(values) != n:
        raise ValueError(f"nftk.{op}: y must have shape [{n}] or [{n}, d], got {list(values.shape)}")
    if are_labels(values):
        return one_hot(*classes_of(op, values))
    return torch.from_numpy(as_numbers(op, values).reshape(n, -1))


def _cosine(matrix: Tensor, target: Tensor, centred: bool, d: int) -> Tensor:
    """Cosine of a matrix with target target^T; with centred, of both without means over examples, d rows each."""
    matrix, target = _sized(matrix.to(torch.float64))[0], _sized(target)[0]
    if centred:
        shape = matrix.shape
        matrix = matrix.reshape(shape[0] // d, d, shape[1] // d, d)
        matrix = matrix - matrix.mean(0, keepdim=True)
        matrix = (matrix - matrix.mean(2, keepdim=True)).reshape(shape)
        target = target.reshape(shape[0] // d, -1)
        target = (target - target.mean(0)).reshape(shape[0], -1)
    own = torch.linalg.matrix_norm(target.T @ target)
    size = torch.linalg.matrix_norm(matrix) * own
    # a kernel or a target of zeros is aligned with nothing
    return (target * (matrix @ target)).sum() / torch.where(size > 0, size, 1.0)


def _matrices(k: LayerKernels) -> Iterator[tuple[Tensor, float]]:
    """Each matrix in float64, divided by a power of two, and that."""
    for block in k.matrix().detach():
        for matrix in block if block.ndim == 3 else (block,):
            yield _sized(matrix.to(torch.float64))


def _eigenvalues(k: LayerKernels) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(L, N)`` or ``(L, d, n)``, descending, each matrix's by its own unit; and these units."""
    found = [(torch.linalg.eigvalsh(matrix).flip(-1).clamp(min=0), scale) for matrix, scale in _matrices(k)]
    shape = k.matrix().shape[:-2]
    scales = torch.tensor([scale for _, scale in found], dtype=torch.float64, device=k.blocks.device)
    return torch.stack([values for values, _ in found]).reshape(*shape, -1), scales.reshape(shape)
