"""The closed non-negative orthant, the paper's own constraint."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nftk.constraints.base import Constraint


@dataclass(frozen=True)
class NonNegative(Constraint):
    r"""All matrices without a negative entry.

    .. math:: S = \{\Omega : \omega_{l,i} \ge 0\}

    Equation 12 of the paper writes ``> 0``; that set is open, so its projection does not exist and no zero would
    be feasible. It has to be read as ``>=`` (docs/errata.md, 8).

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 12, 16.

    Example:
        >>> import torch
        >>> from nftk.constraints import NonNegative
        >>> NonNegative().project(torch.tensor([[0.5, -0.2]]))
        tensor([[0.5000, 0.0000]])
    """

    name: ClassVar[str] = "nonnegative"

    def _project_(self, omega: Tensor) -> Tensor:
        # exact in every dtype, so without the way through float64; this runs after every training step
        return omega.clamp_(min=0)
