"""The two objectives of learning eta = omega^2, with their gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.regression.gram import TILE
from nftk.regression.solve import cholesky
from nftk.tangent.layer_kernels import LayerKernels


class Problem(NamedTuple):
    """Targets that share one row of eta, and the L matrices it weighs.

    Attributes:
        blocks: Theta_l, L matrices ``(N, N)`` in the kernel's dtype.
        scales: What each is divided by, ``(L,)``.
        targets: ``(N, k)``, float64.
        ridge: rho.
        examples: n, what errors are averaged over; N is n, or n d for a joint kernel.
        op: Who asks, for errors.
    """

    blocks: list[Tensor]
    scales: Tensor
    targets: Tensor
    ridge: float
    examples: int
    op: str

    def kernel(self, eta: Tensor) -> Tensor:
        """sum_l eta_l Theta_l / scale_l, a new matrix in float64."""
        size = len(self.targets)
        total = torch.zeros(size, size, dtype=torch.float64, device=self.targets.device)
        for block, weight in zip(self.blocks, (eta / self.scales).tolist(), strict=True):
            if weight:
                total.add_(block, alpha=weight)
        return total

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """Tr(left^T Theta_l right) / scale_l of each l, ``(L,)``, for left and right ``(N, k)``."""
        return self._each(lambda rows, tile: (left[rows] * (tile @ right)).sum())

    def dot(self, m: Tensor) -> Tensor:
        """<Theta_l, M> / scale_l of each l, ``(L,)``."""
        return self._each(lambda rows, tile: (tile * m[rows]).sum())

    def _each(self, of_tile: Callable[[slice, Tensor], Tensor]) -> Tensor:
        found = []
        for block in self.blocks:
            tiles = [slice(start, start + TILE) for start in range(0, len(block), TILE)]
            found.append(torch.stack([of_tile(rows, block[rows].to(torch.float64)) for rows in tiles]).sum())
        return torch.stack(found) / self.scales


Objective = Callable[[Problem, Tensor], tuple[float, Tensor]]


def regularized(problem: Problem, eta: Tensor) -> tuple[float, Tensor]:
    r"""Equation 9 in the kernel view, minimised over theta: convex in eta.

    .. math:: J(\eta) = \frac{\rho}{N} \, y^\top \alpha, \quad \alpha = (K_\eta + \rho I)^{-1} y, \qquad
        \frac{\partial J}{\partial \eta_l} = -\frac{\rho}{N} \, \alpha^\top \Theta_l \alpha

    In omega that is -(2 rho / N) omega_l alpha^T Theta_l alpha, which is also the gradient of the loss alone at fixed
    theta; that of the loss at fixed alpha is twice it.

    Args:
        problem: Kernels and targets.
        eta: ``(L,)``, non-negative.

    Returns:
        J and its gradient ``(L,)``.
    """
    factor = cholesky(problem.op, problem.kernel(eta)[None], problem.ridge)[0][0]
    alpha = torch.cholesky_solve(problem.targets, factor)
    share = problem.ridge / problem.examples
    return share * float((problem.targets * alpha).sum()), -share * problem.inner(alpha, alpha)


def leave_one_out(problem: Problem, eta: Tensor) -> tuple[float, Tensor]:
    r"""Mean squared error of each example when the others alone are fitted; not convex in eta.

    .. math:: E(\eta) = \frac{1}{N} \sum_i \lVert e_i \rVert^2, \quad e_i = G_{ii}^{-1} \alpha_i, \quad
        G = (K_\eta + \rho I)^{-1}, \qquad \frac{\partial E}{\partial \eta_l} = \frac{2}{N} \langle \Theta_l,
        \sum_i G_{:i} u_i e_i^\top G_{i:} - G u \alpha^\top \rangle, \quad u_i = G_{ii}^{-1} e_i

    i runs over examples; of a joint kernel each takes its d rows with it, and G_ii is a (d, d) block.

    Args:
        problem: Kernels and targets.
        eta: ``(L,)``, non-negative.

    Returns:
        E and its gradient ``(L,)``.
    """
    factor = cholesky(problem.op, problem.kernel(eta)[None], problem.ridge)[0][0]
    g = torch.cholesky_inverse(factor)
    del factor
    alpha = g @ problem.targets
    d = len(g) // problem.examples
    if d == 1:
        diagonal = g.diagonal()[:, None]
        e = alpha / diagonal
        u = e / diagonal
        m = (g * (u * e).sum(1)) @ g
    else:
        n = problem.examples
        blocks = g.reshape(n, d, n, d).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        e = torch.linalg.solve(blocks, alpha.reshape(n, d, 1))
        u = torch.linalg.solve(blocks, e)
        columns = g.reshape(n * d, n, d)
        left, right = (torch.einsum("ria,ia->ri", columns, x[..., 0]) for x in (u, e))
        m = left @ right.T
        e, u = e.reshape(-1, 1), u.reshape(-1, 1)
    m -= (g @ u) @ alpha.T
    return float(e.square().sum() / problem.examples), 2 / problem.examples * problem.dot(m)


OBJECTIVES: dict[str, Objective] = {"regularized": regularized, "loo": leave_one_out}


def matrices(k: LayerKernels, output: int | None) -> list[Tensor]:
    """The L matrices of layer kernels that one problem weighs: of an output, or the joint ones of full kernels."""
    blocks = k.blocks.detach()
    if k.reduction == "diagonal":
        return list(blocks[..., 0 if output is None else output])
    return list(k.matrix().detach()) if k.reduction == "full" else list(blocks)
