"""The non-negative l1 ball, one for each class."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nftk._checks import check_number
from nftk.constraints.base import Constraint
from nftk.constraints.simplex import project_rows_to_simplex


@dataclass(frozen=True)
class L1Ball(Constraint):
    r"""Each class spreads at most a fixed total over the layers.

    .. math:: S = \{\Omega \ge 0 : \sum_l \omega_{l,i} \le r \text{ for every class } i\}

    Args:
        radius: The largest total r of a row, above 0.

    References:
        Duchi et al., Efficient projections onto the l1-ball for learning in high dimensions, ICML 2008.

    Example:
        >>> import torch
        >>> from nftk.constraints import L1Ball
        >>> L1Ball().project(torch.tensor([[0.25, 0.5, -1.0], [2.0, 1.5, 0.0]]))
        tensor([[0.2500, 0.5000, 0.0000],
                [0.7500, 0.2500, 0.0000]])
    """

    radius: float = 1.0
    name: ClassVar[str] = "l1ball"

    def __post_init__(self) -> None:
        check_number("constraints.L1Ball", "radius", self.radius, above=True)

    def _nearest(self, omega: Tensor) -> Tensor:
        return project_rows_to_l1_ball(omega, self.radius)


def project_rows_to_l1_ball(x: Tensor, radius: float) -> Tensor:
    """Nearest non-negative point with a sum of at most radius to each row."""
    positive = x.clamp(min=0)
    inside = positive.sum(-1, keepdim=True) <= radius
    return torch.where(inside, positive, project_rows_to_simplex(positive, radius))
