"""The simplex, one for each class, and the projection of rows onto it that the l1 ball uses too."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nftk._checks import check_number
from nftk.constraints.base import Constraint


@dataclass(frozen=True)
class Simplex(Constraint):
    r"""Each class spreads a fixed total over the layers.

    .. math:: S = \{\Omega \ge 0 : \sum_l \omega_{l,i} = r \text{ for every class } i\}

    Args:
        radius: The total r of each row, above 0.

    References:
        Held, Wolfe and Crowder, Validation of subgradient optimization, Mathematical Programming 6, 1974.

    Example:
        >>> import torch
        >>> from nftk.constraints import Simplex
        >>> Simplex().project(torch.tensor([[1.0, 0.5, -1.0]]))
        tensor([[0.7500, 0.2500, 0.0000]])
    """

    radius: float = 1.0
    name: ClassVar[str] = "simplex"

    def __post_init__(self) -> None:
        check_number("constraints.Simplex", "radius", self.radius, above=True)

    def _nearest(self, omega: Tensor) -> Tensor:
        return project_rows_to_simplex(omega, self.radius)


def project_rows_to_simplex(x: Tensor, radius: float) -> Tensor:
    """Nearest point of the simplex of size radius to each row: shift by one threshold, clip at zero."""
    # [rows, k]: the threshold is the one for which exactly the entries above it add up to radius
    ordered = x.sort(dim=-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    thresholds = (ordered.cumsum(-1) - radius) / counts
    support = (ordered > thresholds).sum(-1, keepdim=True).clamp(min=1)
    return (x - thresholds.gather(-1, support - 1)).clamp(min=0)
