"""Gram: a kernel between two sets of examples in the three forms that ridge regression meets."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nftk._checks import check_shape, check_symmetric, is_finite
from nftk.tangent.layer_kernels import LayerKernels

Form = Literal["shared", "by_output", "joint"]
# rows at a time where a whole matrix in float64 need not exist, 16 MiB of it at 4,096 columns
TILE = 512


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gram:
    """Kernel of n1 with n2 examples: one matrix for all outputs, one an output, or one of outputs and examples.

    Attributes:
        form: ``"shared"``; ``"by_output"``; or ``"joint"``, a matrix ``(n1 d, n2 d)`` by example, then output.
        shape: (n1, n2).
        outputs: d, None where the form does not know it.
        make: From the number of a piece and a range of its rows to these rows, in the dtype of the kernel; a new
            tensor or a view.
        eps: Relative rounding of the kernel's dtype.
        device: Where it is.
        symmetric: Whether both sets are known to be the same.
    """

    form: Form
    shape: tuple[int, int]
    outputs: int | None
    make: Callable[[int, slice], Tensor]
    eps: float
    device: torch.device
    symmetric: bool = False

    @property
    def pieces(self) -> int:
        """Number of matrices."""
        return self.outputs or 1 if self.form == "by_output" else 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of one."""
        repeat = self.outputs or 1 if self.form == "joint" else 1
        return self.shape[0] * repeat, self.shape[1] * repeat

    def rows(self, piece: int, start: int, stop: int) -> Tensor:
        """Some rows of one matrix, in float64."""
        return self.make(piece, slice(start, min(stop, self.size[0]))).to(torch.float64)

    def piece(self, piece: int) -> Tensor:
        """One matrix, a new one in float64."""
        out = torch.empty(self.size, dtype=torch.float64, device=self.device)
        for start in range(0, self.size[0], TILE):
            out[start : start + TILE] = self.make(piece, slice(start, min(start + TILE, self.size[0])))
        return out

    def product(self, piece: int, x: Tensor) -> Tensor:
        """One matrix times x ``(columns, k)``, without the matrix in float64."""
        tiles = [self.rows(piece, start, start + TILE) @ x for start in range(0, self.size[0], TILE)]
        return torch.cat(tiles) if tiles else x.new_zeros(0, x.shape[1])

    def columns(self, piece: int, y: Tensor) -> Tensor:
        """What of y ``(n, d)`` one matrix meets: all outputs, its own, or outputs and examples in one column."""
        if self.form == "joint":
            return y.reshape(-1, 1)
        return y if self.form == "shared" else y[:, piece : piece + 1]

    def gather(self, found: list[Tensor], d: int) -> Tensor:
        """From one result a piece back to ``(n, d)``."""
        return found[0].reshape(-1, d) if self.form == "joint" else torch.cat(found, dim=1)

    def apply(self, alpha: Tensor) -> Tensor:
        """Kernel times coefficients ``(n2, d)``."""
        found = [self.product(i, self.columns(i, alpha)) for i in range(self.pieces)]
        return self.gather(found, alpha.shape[1])


class Common(NamedTuple):
    """What all forms have."""

    eps: float
    device: torch.device
    symmetric: bool


def from_tensor(op: str, name: str, k: Tensor, *, symmetric: bool = False) -> Gram:
    """Take a kernel given as a tensor: ``(n1, n2)``, ``(d, n1, n2)`` by output, or ``(n1, n2, d, d)`` in full."""
    if k.ndim not in (2, 3, 4) or (k.ndim == 4 and k.shape[2] != k.shape[3]):
        raise ValueError(
            f"nftk.{op}: {name} must have shape [n1, n2], [d, n1, n2] or [n1, n2, d, d], got {list(k.shape)}"
        )
    if not k.is_floating_point():
        k = k.to(torch.float64)
    if not bool(torch.isfinite(k.sum())) and not bool(torch.isfinite(k).all()):
        raise ValueError(f"nftk.{op}: {name} must be finite, got NaN or infinity")
    k = k.detach()
    common = Common(torch.finfo(k.dtype).eps, k.device, symmetric)
    if k.ndim == 2:
        return Gram("shared", (k.shape[0], k.shape[1]), None, lambda piece, rows: k[rows], *common)
    if k.ndim == 3:
        return Gram("by_output", (k.shape[1], k.shape[2]), len(k), lambda piece, rows: k[piece, rows], *common)
    return _joint(k.permute(0, 2, 1, 3), common)


def from_layers(op: str, k: LayerKernels, omega: Tensor) -> Gram:
    """Take the sum of layer kernels, weighted by Omega ``(L,)`` or ``(d, L)``: what ``k.combine(omega)`` is."""
    if not is_finite(k.blocks):
        raise ValueError(f"nftk.{op}: kernels must be finite, got NaN or infinity")
    common = Common(torch.finfo(k.blocks.dtype).eps, k.blocks.device, k.symmetric)
    omega = omega.detach().to(k.blocks.device, torch.float64)
    d, blocks = k.outputs, k.blocks.detach()
    if omega.ndim == 1:
        check_shape(op, "omega", omega, (len(k),))
    elif k.reduction in ("trace", "sum_logits"):
        raise ValueError(
            f"nftk.{op}: omega must have shape [{len(k)}], because {k.reduction!r} has no classes left, got "
            f"{list(omega.shape)}"
        )
    else:
        check_shape(op, "omega", omega, (d or "d", len(k)))
    if k.reduction == "full":
        # (b, d, n2, d) of rows of examples
        scale = omega if omega.ndim == 2 else omega.expand(d or 1, -1)

        def examples(rows: slice) -> Tensor:
            total: Tensor | None = None
            for block, w in zip(blocks, scale.unbind(1), strict=True):
                part = block[rows].to(torch.float64) * torch.outer(w, w)
                total = part if total is None else total.add_(part)
            assert total is not None
            return total.permute(0, 2, 1, 3)

        return _joint_by_examples(examples, k.shape, d or 1, common)
    weights = omega.square()
    if k.reduction == "diagonal":
        rows_of = weights if weights.ndim == 2 else weights.expand(d or 1, -1)
        return Gram(
            "by_output", k.shape, d, lambda piece, rows: weighted(blocks[:, rows, :, piece], rows_of[piece]), *common
        )
    if weights.ndim == 2 and not bool((weights == weights[0]).all()):
        return Gram(
            "by_output",
            k.shape,
            len(weights),
            lambda piece, rows: weighted(blocks[:, rows], weights[piece]),
            *common,
        )
    # equal rows: one matrix serves all outputs
    one, outputs = (weights, None) if weights.ndim == 1 else (weights[0], len(weights))
    return Gram("shared", k.shape, outputs, lambda piece, rows: weighted(blocks[:, rows], one), *common)


def weighted(blocks: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of blocks ``(L, rows, n2)`` in float64; a layer of weight 0 is not read."""
    total = torch.zeros(blocks.shape[1:], dtype=torch.float64, device=blocks.device)
    for block, w in zip(blocks, weights.tolist(), strict=True):
        if w:
            total.add_(block, alpha=w)
    return total


def _joint(memory: Tensor, common: Common) -> Gram:
    n1, d, n2, _ = memory.shape
    return _joint_by_examples(lambda rows: memory[rows], (n1, n2), d, common)


def _joint_by_examples(examples: Callable[[slice], Tensor], shape: tuple[int, int], d: int, common: Common) -> Gram:
    """Rows of the joint matrix from whole examples ``(b, d, n2, d)``, more than asked for where need be."""

    def make(piece: int, rows: slice) -> Tensor:
        first, last = rows.start // d, -(-rows.stop // d)
        tile = examples(slice(first, last)).reshape((last - first) * d, shape[1] * d)
        return tile[rows.start - first * d : rows.stop - first * d]

    return Gram("joint", shape, d, make, *common)


def lazy(rows_of: Callable[[slice], Gram], n: int, eps: float, device: torch.device) -> Gram:
    """Take a kernel whose rows are computed whenever they are needed, and never kept."""
    like, common = rows_of(slice(0, 1)), Common(eps, device, symmetric=True)
    if like.form == "joint":
        d = like.outputs or 1

        def examples(rows: slice) -> Tensor:
            return rows_of(rows).piece(0).reshape(-1, d, like.shape[1], d)

        return _joint_by_examples(examples, (n, like.shape[1]), d, common)

    def make(piece: int, rows: slice) -> Tensor:
        return rows_of(rows).make(piece, slice(0, rows.stop - rows.start))

    return Gram(like.form, (n, like.shape[1]), like.outputs, make, *common)


def check_training(op: str, gram: Gram) -> None:
    """Raise ValueError unless the training kernel is square and symmetric to the rounding of its dtype."""
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(
            f"nftk.{op}: the training kernel must be square, a kernel of the training examples with themselves, got "
            f"shape {list(gram.shape)}"
        )
    if gram.symmetric:
        return
    for i in range(gram.pieces):
        check_symmetric(op, "the training kernel", gram.piece(i), gram.eps)
