"""Block conjugate gradients with a Nystrom preconditioner, for kernels that no Cholesky factor fits beside.

Own code, because no well-kept library has it in one piece: scipy's cg takes one right-hand side at a time, so it reads
the kernel d times an iteration, and lives on the CPU; falkon's solver is for inducing points, and linear_operator's has
another preconditioner and its own kernel classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
# of the largest curvature along a block of directions: what is farther below 0 is no rounding
MOST_NEGATIVE = 1e-6


class Preconditioner(NamedTuple):
    """P = U diag((values + rho) / (least + rho)) U^T + (I - U U^T), of which the inverse square root is applied."""

    vectors: Tensor  # [n, r]
    roots: Tensor  # [r]: ((least + rho) / (values + rho))^(1/2)

    def __call__(self, x: Tensor) -> Tensor:
        """P^(-1/2) x."""
        return x + self.vectors @ ((self.roots - 1)[:, None] * (self.vectors.T @ x))

    def undo(self, x: Tensor) -> Tensor:
        """P^(1/2) x."""
        return x + self.vectors @ ((1 / self.roots - 1)[:, None] * (self.vectors.T @ x))


class NotPositive(ArithmeticError):
    """A direction along which the matrix is negative: it has no conjugate gradients."""


def nystrom(product: Product, n: int, rank: int, ridge: float, device: torch.device, seed: int = 0) -> Preconditioner:
    """Randomised Nystrom preconditioner of K + rho I.

    Args:
        product: K times a block ``(n, k)``.
        n: Size of K.
        rank: Columns of the random sketch.
        ridge: rho.
        device: Where to work.
        seed: Of the sketch.

    Returns:
        The preconditioner; the condition number after it is near (lambda_rank + rho) / rho.

    References:
        Frangella, Tropp and Udell, Randomized Nystrom preconditioning, SIAM J. Matrix Anal. Appl. 44, 2023,
        arXiv 2110.02820, algorithms 2.1 and 5.1.
    """
    generator = torch.Generator().manual_seed(seed)
    sketch = torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64, generator=generator).to(device))[0]
    image = product(sketch)
    shift = torch.finfo(torch.float64).eps ** 0.5 * torch.linalg.matrix_norm(image).item() / n**0.5
    image = image + shift * sketch
    core = sketch.T @ image
    values, basis = torch.linalg.eigh((core + core.T) / 2)
    keep = values > torch.finfo(torch.float64).eps * values.abs().max()
    half = image @ (basis[:, keep] * values[keep].rsqrt())
    vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
    values = (singular.square() - shift).clamp(min=0)
    least = values[-1] if len(values) else values.new_zeros(())
    return Preconditioner(vectors, ((least + ridge) / (values + ridge)).sqrt())


def conjugate_gradients(
    product: Product,
    y: Tensor,
    ridge: float,
    preconditioner: Preconditioner,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
) -> tuple[Tensor, int, float]:
    """Solve (K + rho I) X = Y for all columns in one Krylov space.

    Args:
        product: K times a block ``(n, k)``.
        y: Y, ``(n, k)``, float64; k at most n.
        ridge: rho.
        preconditioner: Of K + rho I.
        tolerance: On the largest relative residual of a column.
        max_iterations: Most products with K.

    Returns:
        X, the products taken, and the largest relative residual of a column, computed anew.

    Raises:
        NotPositive: If a direction shows that K + rho I is not positive definite.

    References:
        Dubrulle, Retooling the method of block conjugate gradients, ETNA 12, 2001, algorithm BCGrQ: residuals are kept
        as Q C with orthonormal Q, so columns that depend on each other, or are 0, break nothing.
    """

    def operator(x: Tensor) -> Tensor:
        inner = preconditioner(x)
        return preconditioner(product(inner) + ridge * inner)

    def relative(residual: Tensor) -> float:
        found = torch.linalg.vector_norm(residual, dim=0) / scale
        return float(found.max()) if found.numel() else 0.0

    scale = torch.linalg.vector_norm(y, dim=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    right = preconditioner(y)
    x = torch.zeros_like(right)
    q, c = torch.linalg.qr(right)
    p, steps = q, 0
    # half the tolerance: what is carried along drifts from the residual itself
    while steps < max_iterations and relative(preconditioner.undo(q @ c)) > tolerance / 2:
        steps += 1
        image = operator(p)
        curvature = torch.linalg.eigvalsh(p.T @ image)
        if bool(curvature[0] < -MOST_NEGATIVE * curvature[-1].abs()):
            raise NotPositive
        step = torch.linalg.solve(p.T @ image, torch.cat((torch.eye(len(c), dtype=c.dtype, device=c.device), c), 1))
        x = x + p @ step[:, len(c) :]
        q, s = torch.linalg.qr(q - image @ step[:, : len(c)])
        c = s @ c
        p = q + p @ s.T
    x = preconditioner(x)
    return x, steps, relative(y - product(x) - ridge * x)
