"""Learning non-negative weights of layers together with a surrogate."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.regression.gram import weighted
from nftk.surrogate.solver import Solution

Fit = Callable[[Tensor, Solution | None], Solution]
# a lower objective is lower by more than this share of it
ROUNDING = 1e-9


class Learning(NamedTuple):
    """How the weights were learned.

    Attributes:
        objectives: After each step; none is above the one before it.
        gap: How far the last is above the least there is, at most.
        converged: Whether that is small enough.
    """

    objectives: list[float]
    gap: float
    converged: bool


def learn_weights(
    blocks: Tensor, penalty: float, fit: Fit, *, tolerance: float, max_iterations: int
) -> tuple[Tensor, Solution, Learning]:
    r"""Minimise the surrogate's objective over the weights, too.

    .. math:: \min_{w \ge 0, \, \sum_l s_l w_l = \sum_l s_l} J(w), \qquad
        J(w) = \min_{\alpha, b} \mathrm{loss}(K_w \alpha + b) + \frac\lambda2 \mathrm{tr}(\alpha^\top K_w \alpha),
        \quad K_w = \sum_l w_l K_l

    s_l is the mean of the diagonal of K_l. J is convex: in f_l = w_l K_l alpha the penalty is the sum of
    ||f_l||^2 / w_l. It is minimised in turn over f and over w, where the minimum is w_l ~ ||f_l|| / sqrt(s_l); so no
    step raises J. A step twice as long (in log w) is tried first and kept where it lowers J. With
    q_l = tr(alpha^T K_l alpha), which is -2 / lambda times the slope of J in w_l, no weights are lower by more than
    lambda / 2 (S max_l q_l / s_l - sum_l w_l q_l), S = sum_l s_l.

    Args:
        blocks: K_l, ``(L, n, n)``.
        penalty: lambda.
        fit: From a kernel and a solution near by to the solution.
        tolerance: Gap at which to stop, as a share of the objective.
        max_iterations: Of fits at most.

    Returns:
        Weights ``(L,)``, the solution, and how they were learned.

    References:
        Rakotomamonjy et al., SimpleMKL, JMLR 9, 2008; Xu et al., Simple and efficient multiple kernel learning by group
        lasso, ICML 2010.
    """
    scales = blocks.diagonal(dim1=1, dim2=2).to(torch.float64).mean(1)
    size = scales.sum()
    # a layer without a kernel has nothing to say
    weights = (scales > 0).to(torch.float64)
    # as shares, which no scale of kernels takes out of range
    shares = torch.where(scales > 0, scales / size, 1.0)
    best = fit(weighted(blocks, weights), None)
    objectives, fits = [best.objective], 1
    while True:
        q = best.energy * torch.stack([_energy(block, best.alpha) for block in blocks])
        steep = torch.where(weights > 0, q / shares, 0.0)
        gap = float(penalty / 2 * (steep.max() - (weights * q).sum()))
        if gap <= tolerance * abs(best.objective) or fits >= max_iterations:
            return weights, best, Learning(objectives, max(gap, 0.0), gap <= tolerance * abs(best.objective))
        before = best.objective
        for power in (1.0, 0.5):
            tried = weights * (steep / steep.max()) ** power
            tried = tried / (shares * tried).sum()
            found = fit(weighted(blocks, tried), best)
            fits += 1
            if found.objective < before * (1 - ROUNDING):
                break
        else:
            # the shorter step cannot raise J: what is left is the fit's own rounding
            return weights, best, Learning(objectives, max(gap, 0.0), gap <= tolerance * abs(before))
        weights, best = tried, found
        objectives.append(best.objective)


def _energy(block: Tensor, alpha: Tensor) -> Tensor:
    return (alpha * (block.to(torch.float64) @ alpha)).sum()
