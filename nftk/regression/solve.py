"""Solving (K + rho I) alpha = y: Cholesky in float64 with a reported jitter, or block conjugate gradients."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.regression.conjugate_gradients import NotPositive, conjugate_gradients, nystrom
from nftk.regression.gram import Gram
from nftk.tangent.plan import check_budget

# the largest jitter, relative to the mean of the kernel's diagonal; what needs more is no kernel
MOST_JITTER = 1e-6
ESTIMATES = 12


class KernelWarning(RuntimeWarning):
    """A kernel that had to be mended, or a system too ill-conditioned for its digits to mean much."""


class Solution(NamedTuple):
    """Coefficients and what is known of how they were found, one entry a matrix.

    Attributes:
        alpha: ``(n, d)``, float64.
        jitter: What was added to the diagonal beside the ridge.
        condition: Estimate of the condition number of K + rho I; None after conjugate gradients.
        iterations: Of conjugate gradients; None after Cholesky.
        residual: Relative residual there.
    """

    alpha: Tensor
    jitter: Tensor
    condition: Tensor | None = None
    iterations: int | None = None
    residual: float | None = None


def cholesky(op: str, matrices: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Cholesky factors of K + rho I and the jitter that each took.

    Args:
        op: Who asks, for errors.
        matrices: K, ``(p, n, n)``, float64; overwritten.
        ridge: rho.

    Returns:
        Lower factors ``(p, n, n)`` and jitters ``(p,)``, 0 where K + rho I is positive definite in float64.

    Raises:
        ValueError: If a matrix is not positive semi-definite, beyond what rounding explains.
    """
    n = matrices.shape[-1]
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    scales = diagonal.mean(-1).abs() + ridge
    diagonal.add_(ridge)
    jitter = torch.zeros(len(matrices), dtype=torch.float64, device=matrices.device)
    factors, info = torch.linalg.cholesky_ex(matrices)
    for i in info.nonzero().flatten().tolist():
        scale = scales[i].item()
        tau = max(n * torch.finfo(torch.float64).eps * scale, torch.finfo(torch.float64).tiny)
        while True:
            matrices[i].diagonal().add_(tau - jitter[i].item())
            jitter[i] = tau
            factor, failed = torch.linalg.cholesky_ex(matrices[i])
            if not failed:
                factors[i] = factor
                break
            # so written that a NaN ends it too
            if not tau < MOST_JITTER * scale:
                least = torch.linalg.eigvalsh(matrices[i])[0].item() - tau - ridge
                raise ValueError(
                    f"nftk.{op}: the training kernel must be positive semi-definite, got the eigenvalue {least:.3g} "
                    f"where its diagonal has the mean {scale - ridge:.3g}; a larger ridge hides it"
                )
            tau = min(10 * tau, MOST_JITTER * scale)
    if bool((jitter > 0).any()):
        warnings.warn(
            f"nftk.{op}: the training kernel plus ridge {ridge:.3g} is not positive definite in float64; "
            f"{jitter.max().item():.3g} was added to its diagonal (attribute jitter_); a larger ridge avoids it",
            KernelWarning,
            stacklevel=2,
        )
    return factors, jitter


def condition_of(factors: Tensor) -> Tensor:
    """Estimate condition numbers of L L^T, by some power and inverse iterations: at most too small."""
    n = factors.shape[-1]
    # of no kernel an eigenvector, and the same on every run
    start = torch.cos(torch.arange(n, dtype=torch.float64, device=factors.device).square() + 1)
    extremes = []
    for inverse in (False, True):
        v = start.expand(len(factors), n).unsqueeze(-1)
        size = torch.ones(len(factors), dtype=torch.float64, device=factors.device)
        for _ in range(ESTIMATES):
            v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
            v = torch.cholesky_solve(v, factors) if inverse else factors @ (factors.mT @ v)
            size = torch.linalg.vector_norm(v, dim=(1, 2))
        extremes.append(size)
    return extremes[0] * extremes[1]


def solve(
    op: str,
    gram: Gram,
    y: Tensor,
    ridge: float,
    *,
    solver: str = "auto",
    tolerance: float = 1e-8,
    memory_budget: int | None = None,
) -> Solution:
    """Coefficients of kernel ridge regression.

    Args:
        op: Who asks, for errors.
        gram: The training kernel.
        y: Targets ``(n, d)``, float64.
        ridge: rho.
        solver: ``"cholesky"``, ``"cg"``, or ``"auto"``: Cholesky where its matrices fit the budget.
        tolerance: Relative residual at which conjugate gradients stop.
        memory_budget: Bytes for the matrices; None for half of what is free.

    Returns:
        The coefficients and what is known of them.
    """
    budget = check_budget(memory_budget, gram.device, op)
    n = gram.size[0]
    each = 2 * 8 * n * n
    if solver == "cholesky" or (solver == "auto" and each <= budget):
        return _by_cholesky(op, gram, y, ridge, at_once=max(1, budget // max(each, 1)))
    return _by_conjugate_gradients(op, gram, y, ridge, tolerance, budget)


def _by_cholesky(op: str, gram: Gram, y: Tensor, ridge: float, at_once: int) -> Solution:
    found, jitters, conditions = [], [], []
    for first in range(0, gram.pieces, at_once):
        pieces = range(first, min(first + at_once, gram.pieces))
        factors, jitter = cholesky(op, torch.stack([gram.piece(i) for i in pieces]), ridge)
        right = torch.stack([gram.columns(i, y) for i in pieces])
        found += list(torch.cholesky_solve(right, factors))
        jitters.append(jitter)
        conditions.append(condition_of(factors))
    condition = torch.cat(conditions)
    if bool((condition * gram.eps >= 1).any()):
        warnings.warn(
            f"nftk.{op}: the training kernel plus ridge {ridge:.3g} has a condition number near "
            f"{condition.max().item():.1e}, beyond the digits of its dtype (eps {gram.eps:.1e}); predictions rest on "
            "its rounding errors: take a larger ridge, or a kernel in float64",
            KernelWarning,
            stacklevel=2,
        )
    return Solution(gram.gather(found, y.shape[1]), torch.cat(jitters), condition)


def _by_conjugate_gradients(op: str, gram: Gram, y: Tensor, ridge: float, tolerance: float, budget: int) -> Solution:
    if ridge <= 0:
        raise ValueError(f"nftk.{op}: ridge must be above 0 for conjugate gradients, got {ridge}")
    n = gram.size[0]
    # of the preconditioner's matrices three are alive at once
    rank = max(1, min(n // 2, 1000, budget // (3 * 8 * max(n, 1))))
    found, iterations, worst = [], 0, 0.0
    for i in range(gram.pieces):

        def product(x: Tensor, piece: int = i) -> Tensor:
            return gram.product(piece, x)

        preconditioner = nystrom(product, n, rank, ridge, gram.device)
        right = gram.columns(i, y)
        try:
            x, steps, residual = conjugate_gradients(product, right, ridge, preconditioner, tolerance=tolerance)
        except NotPositive:
            raise ValueError(
                f"nftk.{op}: the training kernel must be positive semi-definite, got a direction in which it is "
                f"negative by more than the ridge {ridge:.3g}"
            ) from None
        found.append(x)
        iterations, worst = max(iterations, steps), max(worst, residual)
    if worst > tolerance:
        warnings.warn(
            f"nftk.{op}: conjugate gradients stopped after {iterations} iterations at a relative residual of "
            f"{worst:.1e} (attribute residual_), above the tolerance {tolerance:.1e}; take a larger ridge",
            KernelWarning,
            stacklevel=2,
        )
    jitter = torch.zeros(gram.pieces, dtype=torch.float64, device=gram.device)
    return Solution(gram.gather(found, y.shape[1]), jitter, None, iterations, worst)
