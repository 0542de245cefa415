"""A budget on whole layers: columns of Omega vanish together."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nftk._checks import check_integer, check_number
from nftk.constraints.base import Constraint
from nftk.constraints.l1_ball import project_rows_to_l1_ball


@dataclass(frozen=True)
class GroupSparse(Constraint):
    r"""A budget on whole layers, so that layers drop out for every class at once.

    .. math:: S = \{\Omega \ge 0 : \sum_l \lVert \omega_l \rVert_2 \le r \text{ and }
              \#\{l : \omega_l \ne 0\} \le k\}

    Without ``max_layers`` the set is convex (the ball of the group lasso); with it the set is a union of convex
    sets, and the projection keeps the layers whose non-negative parts are longest, of equals those nearer the input.

    Args:
        radius: The budget r on the sum of the column norms, above 0. None means no such budget if ``max_layers``
            is given, and sqrt(d) otherwise: what a uniform Omega = 1/L has.
        max_layers: The largest number k of layers that may be open, at least 1. None means no such limit.

    References:
        Yuan and Lin, Model selection and estimation in regression with grouped variables, JRSS B 68, 2006.
        Beck and Hallak, On the minimization over sparse symmetric sets, Math. of Operations Research 41, 2016.

    Example:
        >>> import torch
        >>> from nftk.constraints import GroupSparse
        >>> GroupSparse(radius=4.0).project(torch.tensor([[3.0, 0.3], [4.0, 0.4]]))
        tensor([[2.4000, 0.0000],
                [3.2000, 0.0000]])
    """

    radius: float | None = None
    max_layers: int | None = None
    name: ClassVar[str] = "groupsparse"

    def __post_init__(self) -> None:
        if self.radius is not None:
            check_number("constraints.GroupSparse", "radius", self.radius, above=True)
        if self.max_layers is not None:
            check_integer("constraints.GroupSparse", "max_layers", self.max_layers, 1)

    def _nearest(self, omega: Tensor) -> Tensor:
        # dropping negative entries first is exact: neither budget grows when an entry is set to zero
        nearest = omega.clamp(min=0)
        norms = torch.linalg.vector_norm(nearest, dim=0)  # [L]
        if self.max_layers is not None and self.max_layers < omega.shape[1]:
            dropped = norms.sort(descending=True, stable=True).indices[self.max_layers :]
            nearest = nearest.index_fill(1, dropped, 0)
            norms = norms.index_fill(0, dropped, 0)
        radius = self.radius
        if radius is None and self.max_layers is None:
            radius = omega.shape[0] ** 0.5
        if radius is not None:
            shorter = project_rows_to_l1_ball(norms[None], radius)[0]
            nearest = nearest * torch.where(norms > 0, shorter / norms, norms)
        return nearest
