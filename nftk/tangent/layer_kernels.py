"""LayerKernels: kernels of one pair of batches, kept apart by layer."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nftk._checks import check_choice, check_list, check_number, check_shape, check_tensor
from nftk.ops.tangent_gram_torch import as_blocks, as_memory

_OP = "LayerKernels"
Reduction = Literal["full", "trace", "diagonal", "sum_logits", "scalar"]
REDUCTIONS = ("full", "trace", "diagonal", "sum_logits", "scalar")
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "full": ("L", "n1", "n2", "d", "d"),
    "diagonal": ("L", "n1", "n2", "d"),
    **dict.fromkeys(("trace", "sum_logits", "scalar"), ("L", "n1", "n2")),
}
Index = int | slice | Sequence[int] | Tensor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerKernels:
    r"""Kernels of two sets of examples, one a layer (or a module), and what can be done with them.

    Attributes:
        blocks: Theta_l: ``(L, n1, n2)`` for trace, sum_logits and scalar; ``(L, n1, n2, d)`` for diagonal;
            ``(L, n1, n2, d, d)`` for full, a view on memory laid out ``(L, n1, d, n2, d)``.
        names: What each block is of, L of them.
        reduction: Of the (d, d) block of a pair: ``"full"``, all of it; ``"trace"``, the sum of its diagonal;
            ``"diagonal"``; ``"sum_logits"``, the sum of all entries; ``"scalar"``, of an infinitely wide network,
            whose block is a multiple of the identity.
        normalization: How they were normalised: None, ``"cosine"`` or ``"joint"``.
        symmetric: Whether both sets of examples are the same.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equation 15.

    Example:
        >>> import torch, nftk
        >>> model = nftk.NFTKMLP(4, [8, 8], 3)
        >>> k = nftk.empirical_ntk(model, torch.randn(5, 4), reduction="trace")
        >>> k.blocks.shape, k.names
        (torch.Size([2, 5, 5]), ('readout 1', 'readout 2'))
        >>> k[:2, 2:].combine(torch.ones(2)).shape
        torch.Size([2, 3])
    """

    blocks: Tensor
    names: tuple[str, ...]
    reduction: str
    normalization: str | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        check_choice(_OP, "reduction", self.reduction, REDUCTIONS)
        check_tensor(_OP, "blocks", self.blocks)
        want = _SHAPES[self.reduction]
        check_shape(_OP, "blocks", self.blocks, want)
        object.__setattr__(self, "names", tuple(self.names))
        if len(self.names) != len(self):
            raise ValueError(f"nftk.{_OP}: names must have {len(self)} entries, one a block, got {len(self.names)}")
        if self.reduction == "full" and self.blocks.shape[3] != self.blocks.shape[4]:
            raise ValueError(f"nftk.{_OP}: blocks must end in two equal sizes, got {list(self.blocks.shape)}")
        if self.symmetric and self.blocks.shape[1] != self.blocks.shape[2]:
            raise ValueError(
                f"nftk.{_OP}: blocks must be square where symmetric is true, got {list(self.blocks.shape)}"
            )

    def __len__(self) -> int:
        """Number of blocks, L."""
        return self.blocks.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of examples, (n1, n2)."""
        return self.blocks.shape[1], self.blocks.shape[2]

    @property
    def outputs(self) -> int | None:
        """d, where the blocks still know it."""
        return self.blocks.shape[3] if self.blocks.ndim > 3 else None

    def combine(self, omega: Tensor | Sequence[float], power: float = 2) -> Tensor:
        r"""Sum of the blocks weighted by Omega, the kernel of the readouts' weighted sum.

        .. math:: \Theta_\Omega = \sum_l D_l^{p/2} \, \Theta_l \, D_l^{p/2}, \qquad D_l = diag(\omega_l)

        Cross-layer terms of a finite network are not in it (docs/errata.md, 2); ``per="model"`` has them.

        Args:
            omega: ``(d, L)``, or ``(L,)`` for the same weights in every class. Trace and sum_logits take ``(L,)``
                only, because their classes are gone.
            power: p: 2, or 1 for the paper's own equation 15; other than 2 wants omega non-negative.

        Returns:
            full: ``(n1, n2, d, d)``; diagonal: ``(d, n1, n2)``; scalar: ``(d, n1, n2)``, or ``(n1, n2)`` for omega
            ``(L,)``; trace and sum_logits: ``(n1, n2)``. Differentiable in omega and in the blocks.

        Raises:
            ValueError: If the shape of omega does not fit, or a power meets a negative entry.
        """
        omega = torch.as_tensor(omega, dtype=self.blocks.dtype, device=self.blocks.device)
        if omega.ndim == 1:
            check_shape(_OP + ".combine", "omega", omega, (len(self),))
        elif self.reduction in ("trace", "sum_logits"):
            raise ValueError(
                f"nftk.{_OP}.combine: omega must have shape [{len(self)}], because {self.reduction!r} has no classes "
                f"left, got {list(omega.shape)}"
            )
        else:
            check_shape(_OP + ".combine", "omega", omega, (self.outputs or "d", len(self)))
        if power != 2 and bool((omega.detach() < 0).any()):
            raise ValueError(f"nftk.{_OP}.combine: omega must be at least 0 where power is not 2, got {omega.min()}")
        if self.reduction == "full":
            root = omega if power == 2 else omega ** (power / 2)
            if root.ndim == 1:
                return torch.einsum("l,lxyij->xyij", root.square(), self.blocks)
            # summed layer by layer: no weighted copy of all blocks
            total = self.blocks.new_zeros(())
            for block, w in zip(self.blocks, root.unbind(1), strict=True):
                total = total + block * torch.outer(w, w)
            return total
        weights = omega**power
        if self.reduction == "diagonal":
            subscripts = "l,lxyi->ixy" if weights.ndim == 1 else "il,lxyi->ixy"
        else:
            subscripts = "l,lxy->xy" if weights.ndim == 1 else "il,lxy->ixy"
        return torch.einsum(subscripts, weights, self.blocks)

    def matrix(self) -> Tensor:
        """The blocks as matrices, for a solver.

        Returns:
            full: ``(L, n1 d, n2 d)``, rows ordered by example, then output: a view where memory is as documented.
            diagonal: ``(L, d, n1, n2)``. Others: the blocks.
        """
        if self.reduction == "full":
            return self.blocks.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)
        return self.blocks.permute(0, 3, 1, 2) if self.reduction == "diagonal" else self.blocks

    def diagonal(self) -> Tensor:
        """The blocks of every example with itself.

        Returns:
            ``(L, n)``, ``(L, n, d)`` for diagonal, ``(L, n, d, d)`` for full; a view.

        Raises:
            ValueError: If the two sets of examples are not the same.
        """
        if not self.symmetric:
            raise ValueError(
                f"nftk.{_OP}.diagonal: kernels must be of one set of examples with itself, got {self.shape[0]} rows "
                f"and {self.shape[1]} columns of two sets; nftk.tangent.self_kernels computes self-kernels alone"
            )
        return self.blocks.diagonal(dim1=1, dim2=2).movedim(-1, 1)

    def normalize(
        self, how: Literal["cosine", "joint"] = "cosine", rows: Tensor | None = None, columns: Tensor | None = None
    ) -> "LayerKernels":
        r"""Divide by the roots of self-kernels.

        Args:
            how: ``"cosine"``: each block by its own two self-kernels (in full, entry by entry, those of the two
                outputs). ``"joint"``: all blocks by the self-kernels of their sum, so that they still add up.
            rows: Self-kernels of the first examples as :func:`nftk.tangent.self_kernels` gives them, ``(L, n1)``,
                or ``(L, n1, d)`` for diagonal and full. None: from the blocks, if they are symmetric.
            columns: Those of the second examples.

        Returns:
            New kernels. A pair with a self-kernel of 0 gets 0.

        Raises:
            ValueError: If self-kernels are missing or of another shape, or the kernels are normalised already.
        """
        op = _OP + ".normalize"
        check_choice(op, "how", how, ("cosine", "joint"))
        if self.normalization is not None:
            raise ValueError(f"nftk.{op}: kernels must not be normalised yet, got {self.normalization!r}")
        if (rows is None or columns is None) and not self.symmetric:
            raise ValueError(
                f"nftk.{op}: rows and columns must be given for two sets of examples; nftk.tangent.self_kernels "
                "computes them"
            )
        own = None
        if self.symmetric:
            own = self.diagonal()
            own = own.diagonal(dim1=2, dim2=3) if self.reduction == "full" else own
        scales = []
        for name, given, n in (("rows", rows, self.shape[0]), ("columns", columns, self.shape[1])):
            squares = own if given is None else given
            assert squares is not None
            check_shape(op, name, squares, (len(self), n, *([self.outputs] if self.outputs else [])))
            if how == "joint":
                squares = squares.sum(0, keepdim=True)
            scales.append(torch.where(squares > 0, squares.rsqrt(), squares.new_zeros(())))
        left, right = scales
        if self.reduction == "full":
            scale = left[:, :, None, :, None] * right[:, None, :, None, :]
        else:
            scale = left[:, :, None] * right[:, None]
        return dataclasses.replace(self, blocks=self.blocks * scale, normalization=how)

    def __getitem__(self, index: Index | tuple[Index, Index]) -> "LayerKernels":
        """Some examples: ``k[rows, columns]`` or ``k[rows]``; a view for slices and numbers, a copy for lists."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        same = self.symmetric and isinstance(rows, slice) and rows == columns
        blocks = self.blocks
        for dim, part in ((1, rows), (2, columns)):
            blocks = _take(blocks, dim, part)
        if not same and self.symmetric and not isinstance(rows, slice) and type(rows) is type(columns):
            same = bool(torch.equal(torch.as_tensor(rows), torch.as_tensor(columns)))
        return dataclasses.replace(self, blocks=blocks, symmetric=same)

    def select(self, layers: Sequence[int | str]) -> "LayerKernels":
        """Keep some blocks.

        Args:
            layers: Their numbers, from 0, or names.

        Returns:
            Kernels with these blocks, in this order.

        Raises:
            ValueError: If there is no such block.
        """
        check_list(_OP + ".select", "layers", layers)
        places = []
        for wanted in layers:
            known = wanted in self.names if isinstance(wanted, str) else -len(self) <= wanted < len(self)
            if not known:
                known_names = ", ".join(map(repr, self.names))
                raise ValueError(
                    f"nftk.{_OP}.select: layers must be below {len(self)} or among {known_names}, got {wanted!r}"
                )
            places.append(self.names.index(wanted) if isinstance(wanted, str) else wanted % len(self))
        chosen = torch.as_tensor(places, device=self.blocks.device, dtype=torch.int64)
        memory = as_memory(self.reduction, self.blocks).index_select(0, chosen)
        return dataclasses.replace(
            self, blocks=as_blocks(self.reduction, memory), names=tuple(self.names[i] for i in places)
        )

    def to(self, *args: Any, **keywords: Any) -> "LayerKernels":
        """Move or cast the blocks, with the arguments of ``torch.Tensor.to``.

        Returns:
            Kernels with blocks of the same layout.
        """
        return dataclasses.replace(self, blocks=self.blocks.to(*args, **keywords))

    def __add__(self, other: "LayerKernels") -> "LayerKernels":
        """Sum, block by block."""
        return self._with(other, 1)

    def __sub__(self, other: "LayerKernels") -> "LayerKernels":
        """Difference, block by block."""
        return self._with(other, -1)

    def __mul__(self, factor: float) -> "LayerKernels":
        """Multiply by a number."""
        return dataclasses.replace(self, blocks=self.blocks * check_number(_OP, "a factor", factor, -math.inf))

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> "LayerKernels":
        """Divide by a number."""
        divisor = check_number(_OP, "a divisor", factor, -math.inf)
        if divisor == 0:
            raise ValueError(f"nftk.{_OP}: a divisor must not be 0, got {factor}")
        return dataclasses.replace(self, blocks=self.blocks / divisor)

    def _with(self, other: "LayerKernels", sign: int) -> "LayerKernels":
        if not isinstance(other, LayerKernels):
            return NotImplemented
        for what in ("reduction", "normalization", "names"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise ValueError(
                    f"nftk.{_OP}: kernels to be added must share their {what}, got {mine!r} and {theirs!r}"
                )
        if self.blocks.shape != other.blocks.shape:
            raise ValueError(
                f"nftk.{_OP}: kernels to be added must share their shape, got {list(self.blocks.shape)} and "
                f"{list(other.blocks.shape)}"
            )
        blocks = torch.add(self.blocks, other.blocks, alpha=sign)
        return dataclasses.replace(self, blocks=blocks, symmetric=self.symmetric and other.symmetric)

    def save(self, path: str | Path) -> None:
        """Write the kernels to one safetensors file.

        Args:
            path: The file; written beside it and moved into place, so it is whole or not there.
        """
        from nftk.tangent.kernel_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "LayerKernels":
        """Read kernels that :meth:`save` or ``nftk kernel`` wrote.

        Args:
            path: The file. On a CPU its pages are read when they are used.
            device: Where to put the blocks.

        Returns:
            The kernels.

        Raises:
            ValueError: If the file is missing, damaged, or holds no kernels.
        """
        from nftk.tangent.kernel_file import load

        return load(path, device)

    def __repr__(self) -> str:
        n1, n2 = self.shape
        what = f"{self.reduction}, {self.outputs} outputs" if self.outputs else self.reduction
        size = self.blocks.numel() * self.blocks.element_size()
        shown = list(self.names) if len(self) <= 4 else [*self.names[:2], "...", self.names[-1]]
        parts = [
            f"{len(self)} {'block' if len(self) == 1 else 'blocks'} of {n1} x {n2} examples ({what})",
            *(["symmetric"] if self.symmetric else []),
            *([f"normalized: {self.normalization}"] if self.normalization else []),
            f"{str(self.blocks.dtype).removeprefix('torch.')} on {self.blocks.device}, {_size(size)}",
            ", ".join(shown),
        ]
        return f"LayerKernels({'; '.join(parts)})"


def _take(x: Tensor, dim: int, index: Index) -> Tensor:
    if isinstance(index, slice):
        if index.step is not None and index.step < 0:
            return x.index_select(
                dim, torch.arange(x.shape[dim], device=x.device)[list(range(*index.indices(x.shape[dim])))]
            )
        return x[(slice(None),) * dim + (index,)]
    if isinstance(index, int):
        if not -x.shape[dim] <= index < x.shape[dim]:
            raise IndexError(f"nftk.{_OP}: an index must be below {x.shape[dim]}, got {index}")
        return x.narrow(dim, index % x.shape[dim], 1)
    places = torch.as_tensor(index, device=x.device)
    if places.dtype is torch.bool:
        check_shape(_OP, "a mask", places, (x.shape[dim],))
        places = places.nonzero().flatten()
    return x.index_select(dim, places)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
