"""ProjectedTangents: random projections of the tangents of every example, kept apart by layer."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nftk._checks import check_shape, check_tensor
from nftk.ops.tangent_gram_torch import as_blocks
from nftk.tangent import feature_file
from nftk.tangent.layer_kernels import LayerKernels

_OP = "ProjectedTangents"
# what two sets must share, so that their products mean something
_SHARED = ("names", "reduction", "per", "kind", "seed", "nonzeros", "columns", "order")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ProjectedTangents:
    r"""Projected gradients of a network's outputs, one a layer (or module), example and output.

    Attributes:
        features: P times the gradient: ``(L, n, C, k)``, C outputs, or 1 where they were summed.
        own: The exact kernel of each example with itself, ``(L, n, C, C)``, for the errors.
        names: What each block is of.
        reduction: ``"trace"``, ``"sum_logits"`` or ``"full"``, as in :func:`nftk.empirical_ntk`.
        per: ``"layer"``, ``"module"`` or ``"model"``.
        kind: Of the projection.
        seed: Of the projection.
        nonzeros: Entries of a column, of ``"sjlt"``.
        columns: Number of parameters that were projected, of ``"kronecker"`` the sum of its factors' sizes.
        order: Of the columns: ``"rows"``, each row of a weight and its bias, as multilayer perceptrons have it;
            ``"parameters"``, as ``named_parameters()`` has them.

    Example:
        >>> import torch, nftk
        >>> model, x = nftk.NFTKMLP(4, [16, 16], 3), torch.randn(6, 4)
        >>> p = nftk.tangent.project_tangents(model, x, 256)
        >>> p.features.shape, p.kernel().shape
        (torch.Size([2, 6, 3, 256]), (6, 6))
        >>> exact = nftk.empirical_ntk(model, x, reduction="trace")
        >>> bool(((p.kernel() - exact).blocks.abs() < 6 * p.error().blocks).all())
        True
    """

    features: Tensor
    own: Tensor
    names: tuple[str, ...]
    reduction: str
    per: str
    kind: str
    seed: int
    nonzeros: int
    columns: int
    order: str = "rows"

    def __post_init__(self) -> None:
        for name in ("features", "own"):
            check_tensor(_OP, name, getattr(self, name))
        check_shape(_OP, "features", self.features, ("L", "n", "C", "k"))
        check_shape(_OP, "own", self.own, (*self.features.shape[:3], self.features.shape[2]))

    def __len__(self) -> int:
        return int(self.features.shape[1])

    @property
    def k(self) -> int:
        """Size of a projected gradient."""
        return int(self.features.shape[3])

    @property
    def spread(self) -> float:
        r"""What times :math:`|a|^2 |b|^2 + \langle a, b \rangle^2` bounds the variance of an estimate of <a, b>.

        1 / k; of ``"sjlt"`` the sum over its s blocks of rows of 1 / (s^2 rows), the same where s divides k; of
        ``"kronecker"`` (k1 + k2 + 2) / k, with :math:`2 |a|^2 |b|^2`.
        """
        k, s = self.k, self.nonzeros
        if self.kind == "kronecker":
            k1, k2 = factors(k)
            return (k1 + k2 + 2) / k
        if self.kind == "sjlt":
            return sum(1 / ((t + 1) * k // s - t * k // s) for t in range(s)) / s**2
        return 1 / k

    def kernel(
        self, other: "ProjectedTangents | None" = None, weights: Tensor | Sequence[float] | None = None
    ) -> LayerKernels:
        """Estimates of the blocks of :func:`nftk.empirical_ntk`, unbiased.

        Args:
            other: Of other examples, projected with the same settings; None: these.
            weights: One number a block, for only the weighted sum; differentiable in a tensor.

        Returns:
            The kernels, in the dtype of the features; without ``other`` exactly symmetric.

        Raises:
            ValueError: If other's settings are different, or there are not as many weights as blocks.
        """
        right = self._other(other)
        factors = None if weights is None else self._weights(weights)
        found: list[Tensor] = []
        for i, (a, b) in enumerate(zip(self.features, right.features, strict=True)):
            block = self._product(a, b, other is None)
            if factors is None:
                found.append(block)
            else:
                found = [block * factors[i] + (found[0] if found else 0)]
        return self._kernels(torch.stack(found), other is None, factors is not None)

    def error(
        self, other: "ProjectedTangents | None" = None, weights: Tensor | Sequence[float] | None = None
    ) -> LayerKernels:
        r"""Standard errors of :meth:`kernel`, entry by entry: bounds, from exact lengths.

        For a pair of vectors the variance of signs is :math:`(|a|^2 |b|^2 + \langle a, b \rangle^2 - 2 \sum_i a_i^2
        b_i^2) / k`; the last term is left out, as it is not there for normal numbers. The inner product is the
        estimate, whose square is too large in the mean. A trace, with Gram matrices A and B of the outputs' tangents,
        has at most :math:`(tr(A B) + |A| |B|) / k`.

        Args:
            other: As there.
            weights: As there. Modules have projections of their own, and their variances add up; layers share the
                parameters below, and their errors may.

        Returns:
            The errors, one root of a variance an entry.

        Raises:
            ValueError: As there.
        """
        right, symmetric = self._other(other), other is None
        found: list[Tensor] = []
        for i in range(len(self.names)):
            variance = self._variance(i, right, symmetric) * self.spread
            if weights is None:
                found.append(variance.sqrt())
                continue
            w = self._weights(weights)[i].detach()
            share = variance * w.square() if self.per == "module" else variance.sqrt() * w.abs()
            found = [share + (found[0] if found else 0)]
        total = torch.stack(found)
        if weights is not None and self.per == "module":
            total = total.sqrt()
        return self._kernels(total, symmetric, weights is not None)

    @classmethod
    def load(cls, folder: str | Path) -> "ProjectedTangents":
        """What :func:`nftk.tangent.project_tangents` left in a folder; its pages are read when they are used.

        Args:
            folder: Its ``out``.

        Returns:
            The tangents.

        Raises:
            ValueError: If the folder holds none, or not all of them yet.
        """
        place = Path(folder)
        header = feature_file.read_header(place)
        if header is None:
            raise ValueError(f"nftk.{_OP}.load: {place} must be a folder of projected tangents, got another or none")
        features, own = feature_file.read(place)
        if header["done"] < features.shape[1]:
            raise ValueError(
                f"nftk.{_OP}.load: {place} must be finished, got {header['done']} of {features.shape[1]} examples"
            )
        told, fields = header["settings"], dataclasses.fields(cls)[2:]
        settings = {field.name: told.get(field.name, field.default) for field in fields}
        return cls(features, own, **settings | {"names": tuple(settings["names"])})

    def __repr__(self) -> str:
        blocks, n, outputs, k = self.features.shape
        return (
            f"ProjectedTangents({blocks} {'block' if blocks == 1 else 'blocks'} of {n} examples, {outputs} outputs "
            f"({self.reduction}), k = {k}, {self.kind}, seed {self.seed})"
        )

    def _other(self, other: Any) -> "ProjectedTangents":
        if other is None:
            return self
        if not isinstance(other, ProjectedTangents):
            raise TypeError(f"nftk.{_OP}: other must be ProjectedTangents, got {type(other).__name__}")
        for name in (*_SHARED, "k"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"nftk.{_OP}: other must share {name}, {mine!r}, got {theirs!r}")
        return other

    def _weights(self, weights: Any) -> Tensor:
        found = weights if isinstance(weights, Tensor) else torch.tensor(weights)
        if found.shape != (len(self.names),):
            raise ValueError(
                f"nftk.{_OP}: weights must have {len(self.names)} numbers, one a block, got {list(found.shape)}"
            )
        return found.to(self.features)

    def _product(self, a: Tensor, b: Tensor, symmetric: bool) -> Tensor:
        """One block in the memory order of LayerKernels."""
        rows = slice(0, 2) if self.reduction == "full" else slice(1, 3)
        left, right = (t.flatten(rows.start, rows.stop - 1) for t in (a, b))
        found = left @ right.mT
        if symmetric:
            found = found.triu() + found.triu(1).mT
        if self.reduction == "full":
            found = found.view(a.shape[0], a.shape[1], b.shape[0], b.shape[1])
        return found

    def _variance(self, i: int, right: "ProjectedTangents", symmetric: bool) -> Tensor:
        a, b = self.own[i], right.own[i]  # [n, C, C]
        full = self.reduction == "full"
        one = a.diagonal(dim1=1, dim2=2), b.diagonal(dim1=1, dim2=2)  # [n, C]
        if not full:
            one = one[0].sum(1), one[1].sum(1)
        lengths = torch.outer(one[0].flatten(), one[1].flatten()).view(*one[0].shape, *one[1].shape)
        if self.kind == "kronecker":
            return 2 * lengths
        if full or a.shape[1] == 1:
            estimate = self._product(self.features[i], right.features[i], symmetric)
            return lengths + estimate.square()
        sizes = [torch.linalg.matrix_norm(t) for t in (a, b)]
        return a.flatten(1) @ b.flatten(1).mT + torch.outer(*sizes)

    def _kernels(self, memory: Tensor, symmetric: bool, weighted: bool) -> LayerKernels:
        names = ("weighted sum",) if weighted else self.names
        blocks = as_blocks("full", memory) if self.reduction == "full" else memory
        return LayerKernels(blocks, names, self.reduction, None, symmetric)


def factors(k: int) -> tuple[int, int]:
    """The two numbers of product k that are nearest to each other."""
    k1 = next(i for i in range(math.isqrt(k), 0, -1) if k % i == 0)
    return k1, k // k1
