"""project: random projections whose matrix is never stored, because a counter makes its entries anew."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nftk._checks import check_choice, check_integer, check_tensor
from nftk._dispatch import resolve
from nftk.ops import precision as precisions
from nftk.ops.batching import rows_of
from nftk.ops.project_torch import TAGS, Matrix, forward, transposed

SUPPORTED = ("triton", "torch")  # fastest first
_LARGEST = 2**63 - 1


def project(
    x: Tensor,
    k: int,
    *,
    seed: int,
    kind: str = "rademacher",
    offset: int = 0,
    blocks: int | None = None,
    nonzeros: int = 4,
    backend: str = "auto",
) -> Tensor:
    r"""Random projection to k numbers that keeps inner products in the mean.

    .. math:: (P x)_i = \sum_j P_{i, offset + j} x_j, \qquad E \langle P x, P y \rangle = \langle x, y \rangle

    P is never stored: entry (i, j) is a function of seed, kind, i and j by Philox 4x32-10, see
    :func:`nftk.reference.projection_reference`. So a seed means the same on every device, for any batch, and for
    inputs that come in pieces. Signs and places are the same to the bit; Gaussian entries to rounding.

    Args:
        x: Inputs, ``(..., p)``. Any strides.
        k: Size of the results.
        seed: Which P, from 0 to 2^63 - 1.
        kind: ``"rademacher"``: entries +-1 / sqrt(k). ``"gaussian"``: normal ones, of the same error and many times
            the work to make. ``"sjlt"``: a sparse Johnson-Lindenstrauss transform, ``nonzeros`` entries in a column,
            one in each of as many equal blocks of rows.
        offset: P's column for x's first; for pieces of one long vector, where they begin.
        blocks: Project so many times, each time by the p columns that follow: e_b (x) x for b = 0, 1, ... None: once.
        nonzeros: s of ``"sjlt"``, at most k.
        backend: ``"auto"``: ``"triton"`` on a GPU for all but float64 and ``"sjlt"``; else ``"torch"``. A named one
            is used or raises.

    Returns:
        ``(..., k)``; with ``blocks`` ``(blocks, ..., k)``. In x's dtype, summed in float32 or better.

    Raises:
        ValueError: If a number is out of range, or a name unknown.
        TypeError: If x is no dense floating tensor, or a number no integer.
        NotImplementedError: If ``backend`` has no code for this call: float64, ``"sjlt"``, forward-mode derivatives.
        RuntimeError: If ``backend`` cannot run here; the message says why.

    Derivatives:
        Any order in x, by :func:`project_transpose`. ``vmap`` and ``jacrev`` work; ``jvp`` on ``"torch"``. Results and
        gradients are bit-identical from run to run.

    Memory:
        The result; ``"torch"`` some MiB for a tile of P; ``"triton"`` a partial result for each part that a long x is
        cut into. Backward saves nothing.

    References:
        Achlioptas, Database-friendly random projections, JCSS 2003; Kane and Nelson, Sparser Johnson-Lindenstrauss
        transforms, JACM 2014, arXiv 1012.1577, section 3.2; Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
        SC 2011.

    Example:
        >>> import torch, nftk
        >>> nftk.ops.project(torch.eye(4), 1, seed=0).flatten()
        tensor([-1.,  1., -1., -1.])
    """
    op = "ops.project"
    check_tensor(op, "x", x)
    _check_dimensions(op, "x", x)
    matrix = checked_matrix(op, k, seed, kind, offset, 1 if blocks is None else blocks, nonzeros, x.shape[-1])
    chosen = resolve(op, backend, SUPPORTED, str(x.device), {"triton": _lacking(x, kind)})
    rows = rows_of(x)
    out: Tensor = _apply(_Project, _ProjectForward, rows, (matrix, rows.shape[1], chosen))
    out = out if x.ndim == 2 else out.reshape(matrix.blocks, *x.shape[:-1], k)
    return out[0] if blocks is None else out


def project_transpose(
    y: Tensor,
    p: int,
    *,
    seed: int,
    kind: str = "rademacher",
    offset: int = 0,
    nonzeros: int = 4,
    backend: str = "auto",
) -> Tensor:
    r"""The transpose of :func:`project`, for the same seed, kind and offset.

    .. math:: (P^T y)_j = \sum_i P_{i, offset + j} y_i

    Args:
        y: Projected vectors, ``(..., k)``. Any strides.
        p: Size of the results.
        seed: As there.
        kind: As there.
        offset: As there.
        nonzeros: As there.
        backend: As there.

    Returns:
        ``(..., p)``, in y's dtype.

    Raises:
        ValueError: As there.
        TypeError: As there.
        NotImplementedError: As there.
        RuntimeError: As there.

    Derivatives:
        As there.

    Example:
        >>> import torch, nftk
        >>> nftk.ops.project_transpose(torch.ones(1), 4, seed=0)
        tensor([-1.,  1., -1., -1.])
    """
    op = "ops.project_transpose"
    check_tensor(op, "y", y)
    _check_dimensions(op, "y", y)
    check_integer(op, "p", p, 0)
    matrix = checked_matrix(op, y.shape[-1], seed, kind, offset, 1, nonzeros, p)
    chosen = resolve(op, backend, SUPPORTED, str(y.device), {"triton": _lacking(y, kind)})
    out: Tensor = _apply(_Transpose, _TransposeForward, rows_of(y).unsqueeze(0), (matrix, p, chosen))
    return out if y.ndim == 2 else out.reshape(*y.shape[:-1], p)


def checked_matrix(op: str, k: Any, seed: Any, kind: Any, offset: Any, blocks: Any, nonzeros: Any, p: int) -> Matrix:
    """The matrix that is meant, or an error for what is none."""
    check_choice(op, "kind", kind, TAGS)
    numbers = {"k": (k, 1), "seed": (seed, 0), "offset": (offset, 0), "blocks": (blocks, 0), "nonzeros": (nonzeros, 1)}
    k, seed, offset, blocks, nonzeros = (check_integer(op, name, *given) for name, given in numbers.items())
    if k >= 2**31:
        raise ValueError(f"nftk.{op}: k must be below 2^31, got {k}")
    if seed > _LARGEST:
        raise ValueError(f"nftk.{op}: seed must be below 2^63, got {seed}")
    if offset + blocks * p > _LARGEST:
        raise ValueError(f"nftk.{op}: offset must leave the last column below 2^63, got {offset}")
    if kind == "sjlt" and nonzeros > k:
        raise ValueError(f"nftk.{op}: nonzeros must be at most k, {k}, got {nonzeros}")
    return Matrix(k, seed, kind, offset, blocks, nonzeros)


def _check_dimensions(op: str, name: str, x: Tensor) -> None:
    if x.ndim == 0:
        raise ValueError(f"nftk.{op}: {name} must have at least one dimension, got none")


def _lacking(x: Tensor, kind: str) -> str | None:
    if x.dtype is torch.float64:
        return "torch.float64, because Triton sums in float32"
    if kind == "sjlt":
        return "kind 'sjlt'"
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode derivatives (jvp)"
    return None


def _apply(usual: Any, with_jvp: Any, x: Tensor, settings: tuple[Matrix, int, str]) -> Any:
    # torch has no autograd.Function that is traced by torch.compile and differentiated forward
    return (with_jvp if getattr(forward_ad, "_current_level", -1) >= 0 else usual).apply(settings, x)


_SCHEMA = (
    "(Tensor x, SymInt k, SymInt p, SymInt seed, str kind, SymInt offset, SymInt blocks, SymInt nonzeros, str backend) "
    "-> Tensor"
)


@torch.library.custom_op("nftk::project", mutates_args=(), schema=_SCHEMA)
def _fwd(
    x: Tensor, k: int, p: int, seed: int, kind: str, offset: int, blocks: int, nonzeros: int, backend: str
) -> Tensor:
    matrix = Matrix(k, seed, kind, offset, blocks, nonzeros)
    if backend == "triton":
        from nftk.kernels.project import project_fwd

        with torch.cuda.device_of(x):
            return project_fwd(x, matrix)  # type: ignore[no-any-return]
    with precisions.full_precision(x):
        return forward(x, matrix)


@_fwd.register_fake
def _(x: Tensor, k: int, p: int, seed: int, kind: str, offset: int, blocks: int, nonzeros: int, backend: str) -> Tensor:
    return x.new_empty(blocks, x.shape[0], k)


@torch.library.custom_op("nftk::project_transpose", mutates_args=(), schema=_SCHEMA)
def _bwd(
    x: Tensor, k: int, p: int, seed: int, kind: str, offset: int, blocks: int, nonzeros: int, backend: str
) -> Tensor:
    matrix = Matrix(k, seed, kind, offset, blocks, nonzeros)
    if backend == "triton":
        from nftk.kernels.project import project_transpose_fwd

        with torch.cuda.device_of(x):
            return project_transpose_fwd(x, p, matrix)  # type: ignore[no-any-return]
    with precisions.full_precision(x):
        return transposed(x, p, matrix)


@_bwd.register_fake
def _(x: Tensor, k: int, p: int, seed: int, kind: str, offset: int, blocks: int, nonzeros: int, backend: str) -> Tensor:
    return x.new_empty(x.shape[1], p)


def _register_rows(op: Any, dim: int) -> None:
    """Batching rule: a batch of inputs are more rows, and those stand at ``dim`` of what goes in, 1 - dim out of it."""

    def rule(info: Any, in_dims: tuple[Any, ...], x: Tensor, *settings: Any) -> tuple[Tensor, int]:
        rows = x.movedim(in_dims[0], dim)
        out = op(rows.flatten(dim, dim + 1), *settings)
        return out.unflatten(1 - dim, rows.shape[dim : dim + 2]), 1 - dim

    op.register_vmap(rule)


_register_rows(_fwd, 0)
_register_rows(_bwd, 1)


def _call(op: Any, x: Tensor, settings: tuple[Matrix, int, str]) -> Any:
    (k, *numbers), p, backend = settings
    return op(x, k, p, *numbers, backend)


class _Project(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(settings: Any, x: Tensor) -> Any:
        return _call(_fwd, x, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.settings = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, _Transpose.apply(ctx.settings, grad)  # type: ignore[no-untyped-call]


class _Transpose(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(settings: Any, y: Tensor) -> Any:
        return _call(_bwd, y, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.settings = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, _Project.apply(ctx.settings, grad)  # type: ignore[no-untyped-call]


class _ProjectForward(_Project):
    generate_vmap_rule = False

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor) -> Any:
        return _call(_fwd, tangent, ctx.settings)


class _TransposeForward(_Transpose):
    generate_vmap_rule = False

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor) -> Any:
        return _call(_bwd, tangent, ctx.settings)
