"""LayerKernels: kernels of one pair of batches, kept apart by layer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from nftk._checks import check_choice, check_shape, check_tensor
from nftk.ops.tangent_gram_torch import as_blocks, as_memory
from nftk.tangent.combination import as_factor, combine, is_zero
from nftk.tangent.normalization import normalize
from nftk.tangent.selection import Index, layer_places, parts, places, same, take

_OP = "LayerKernels"
Reduction = Literal["full", "trace", "diagonal", "sum_logits", "scalar"]
REDUCTIONS = ("full", "trace", "diagonal", "sum_logits", "scalar")
SHAPES: dict[str, tuple[int | str, ...]] = {
    "full": ("L", "n1", "n2", "d", "d"),
    "diagonal": ("L", "n1", "n2", "d"),
    **dict.fromkeys(("trace", "sum_logits", "scalar"), ("L", "n1", "n2")),
}


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

    # numpy's numbers leave multiplication to __rmul__
    __array_ufunc__ = None
    # Python would walk back over examples, as if they were blocks
    __reversed__ = None

    def __post_init__(self) -> None:
        check_choice(_OP, "reduction", self.reduction, REDUCTIONS)
        check_tensor(_OP, "blocks", self.blocks)
        check_shape(_OP, "blocks", self.blocks, SHAPES[self.reduction])
        names: object = self.names
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise TypeError(f"nftk.{_OP}: names must be a list of strings, got {names!r}")
        object.__setattr__(self, "names", tuple(names))
        if self.normalization not in (None, "cosine", "joint"):
            raise ValueError(
                f"nftk.{_OP}: normalization must be None or one of 'cosine', 'joint', got {self.normalization!r}"
            )
        if not isinstance(self.symmetric, bool):
            raise TypeError(f"nftk.{_OP}: symmetric must be True or False, got {self.symmetric!r}")
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

    def __iter__(self) -> NoReturn:
        raise TypeError(
            f"nftk.{_OP}: a loop must be over k.blocks or k.names, which have an entry a layer, got the kernels "
            "themselves; k[i] is of examples"
        )

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
            power: p, above 0: 2, or 1 for the paper's own equation 15; other than 2 wants omega non-negative.

        Returns:
            full: ``(n1, n2, d, d)``; diagonal: ``(d, n1, n2)``; scalar: ``(d, n1, n2)``, or ``(n1, n2)`` for omega
            ``(L,)``; trace and sum_logits: ``(n1, n2)``. Differentiable in omega and in the blocks. A slope that does
            not exist at a weight of 0 is taken as 0: in full that of two classes' entries for p below 2, else for p
            below 1.

        Raises:
            TypeError: If omega or power are no numbers.
            ValueError: If they are not finite, the shape of omega does not fit, or a power meets a negative entry.
                Under torch.vmap and torch.compile the entries of omega are not looked at.
        """
        return combine(_OP + ".combine", self.blocks, self.reduction, omega, power)

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
            New kernels. A pair with a self-kernel of 0 gets 0, with a gradient of 0.

        Raises:
            TypeError: If rows or columns are no floating tensors.
            ValueError: If self-kernels are missing, of another shape or on another device, or the kernels are
                normalised already.
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
        own = self.diagonal() if rows is None or columns is None else None
        blocks = normalize(op, self.blocks, self.reduction, how, own, rows, columns)
        return dataclasses.replace(self, blocks=blocks, normalization=how)

    def __getitem__(self, index: Index | tuple[Index, Index]) -> "LayerKernels":
        """Some examples: ``k[rows, columns]`` or ``k[rows]``; a view for numbers and ascending slices, else a copy."""
        rows, columns = (places(_OP, part, n) for part, n in zip(parts(_OP, index), self.shape, strict=True))
        blocks = take(take(self.blocks, 1, rows), 2, columns)
        return dataclasses.replace(self, blocks=blocks, symmetric=self.symmetric and same(rows, columns))

    def select(self, layers: Sequence[int | str]) -> "LayerKernels":
        """Keep some blocks.

        Args:
            layers: Their numbers, from 0, or names.

        Returns:
            Kernels with these blocks, in this order.

        Raises:
            ValueError: If there is no such block.
        """
        chosen = layer_places(_OP + ".select", layers, self.names)
        memory = take(as_memory(self.reduction, self.blocks), 0, chosen)
        return dataclasses.replace(
            self, blocks=as_blocks(self.reduction, memory), names=tuple(self.names[i] for i in chosen)
        )

    def to(self, *args: Any, **keywords: Any) -> "LayerKernels":
        """Move or cast the blocks, with the arguments of ``torch.Tensor.to``.

        Returns:
            Kernels with blocks of the same layout.
        """
        return dataclasses.replace(self, blocks=self.blocks.to(*args, **keywords))

    def __add__(self, other: "LayerKernels | int") -> "LayerKernels":
        """Sum, block by block; with 0 the kernels themselves, so that ``sum`` works."""
        if isinstance(other, LayerKernels):
            return self._with(other, 1)
        return self if isinstance(other, int | float) and not isinstance(other, bool) and other == 0 else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: "LayerKernels") -> "LayerKernels":
        """Difference, block by block."""
        return self._with(other, -1) if isinstance(other, LayerKernels) else NotImplemented

    def __neg__(self) -> "LayerKernels":
        """All blocks with the other sign."""
        return dataclasses.replace(self, blocks=-self.blocks)

    def __mul__(self, factor: float | Tensor) -> "LayerKernels":
        """Multiply by a number, or by a tensor ``()``, differentiable."""
        found = as_factor(_OP, "a factor", factor)
        if found is None:
            return NotImplemented
        return dataclasses.replace(self, blocks=self.blocks * found)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> "LayerKernels":
        """Divide by a number, or by a tensor ``()``, differentiable."""
        found = as_factor(_OP, "a divisor", divisor)
        if found is None:
            return NotImplemented
        if is_zero(found):
            raise ValueError(f"nftk.{_OP}: a divisor must not be 0, got {found:g}")
        return dataclasses.replace(self, blocks=self.blocks / found)

    def _with(self, other: "LayerKernels", sign: int) -> "LayerKernels":
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

        Raises:
            ValueError: If path is a folder, or in none.
            OSError: If the file cannot be written.
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
            ValueError: If the device cannot be used, or the file is missing, damaged, or holds no kernels.
        """
        from nftk.tangent.kernel_file import load

        return load(path, device)

    def __repr__(self) -> str:
        n1, n2 = self.shape
        what = f"{self.reduction}, {self.outputs} outputs" if self.outputs else self.reduction
        size = self.blocks.numel() * self.blocks.element_size()
        shown = list(self.names) if len(self) <= 4 else [*self.names[:2], "...", self.names[-1]]
        told = [
            f"{len(self)} {'block' if len(self) == 1 else 'blocks'} of {n1} x {n2} examples ({what})",
            *(["symmetric"] if self.symmetric else []),
            *([f"normalized: {self.normalization}"] if self.normalization else []),
            f"{str(self.blocks.dtype).removeprefix('torch.')} on {self.blocks.device}, {_size(size)}",
            ", ".join(shown),
        ]
        return f"LayerKernels({'; '.join(told)})"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
