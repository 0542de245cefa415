"""Kernel multinomial logistic regression: a convex problem, solved in the eigenbasis of the kernel."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import Tensor

from nftk.surrogate.solver import Solution, check_definite, unit_of

Matrix = npt.NDArray[np.float64]
# pairs of gradients that L-BFGS keeps, and what multiplies the intercept, whose curvature is at most 1/2
MEMORY, UNIT = 20, 2**0.5
# Newton steps after L-BFGS, and its conjugate-gradient steps for each of them
NEWTON, STEPS = 50, 400
# norm of what alpha may add to outputs through a direction that the kernel has by its rounding alone
MOVED = 1e-2


class Multinomial:
    r"""The problem of one kernel: everything that does not depend on the penalty.

    .. math:: \min_{\alpha, b} \; \frac1n \sum_i \Big( \log \sum_c e^{f_{ic}} - \sum_c y_{ic} f_{ic} \Big)
        + \frac\lambda2 \, \mathrm{tr}(\alpha^\top K \alpha), \qquad f = K \alpha + 1 b^\top

    In K = U S U^T and theta = S^1/2 U^T alpha the penalty is that of plain logistic regression on U S^1/2. Curvature
    is at most S/2n + lambda (Boehning), by which each coordinate is scaled. K and lambda are taken in K's own unit.

    The loss does not tell alpha in directions that K does not have, nor, to any tolerance, in those it hardly has. What
    is returned is near (Y - p) / (n lambda) in all of them, by one more step from where the solver stopped, with
    G = (p - Y) / n + lambda alpha:

    .. math:: \alpha \leftarrow \alpha - U (S / 2n + \lambda)^{-1} U^\top G

    It is a step of length 1 down the preconditioned gradient r, of the intercept too. The Hessian is at most 2 (1 for
    alpha and for the intercept alone), so neither the objective nor |r| grows; outputs move by at most 2 sqrt(n) |r|,
    and alpha is left within 2 |r| / (sqrt(n) lambda) of that value. Only where this times the kernel's rounding would
    be seen in outputs, as at tiny penalties on kernels in float32, is it less.
    """

    def __init__(self, op: str, k: Tensor, y: Tensor) -> None:
        s, u = torch.linalg.eigh(k)
        check_definite(op, s)
        # what is left of directions that the kernel does not have is rounding
        kept = s > len(s) * torch.finfo(torch.float64).eps * float(s[-1])
        self.unit = unit_of(k)
        self.values: Matrix = (s[kept] / self.unit).numpy()
        self.vectors: Matrix = u[:, kept].numpy()
        self.rest: Matrix = u[:, ~kept].numpy()
        # rounding of either sign, of a kernel in float32 up to 1e-6 of the largest
        self.rounding: Matrix = (s[~kept].abs() / self.unit).numpy()
        self.targets: Matrix = y.numpy()

    def solve(
        self,
        penalty: float,
        *,
        tolerance: float,
        max_iterations: int,
        start: Solution | None = None,
        polish: bool = True,
    ) -> Solution:
        """Minimise: L-BFGS, then, with polish, Newton steps by conjugate gradients.

        Args:
            penalty: lambda, above 0.
            tolerance: Norm of the preconditioned gradient that is small enough.
            max_iterations: Of L-BFGS.
            start: A solution near this one, as for another penalty or for a kernel near this one.
            polish: Whether Newton's quadratic convergence follows.

        Returns:
            The solution; ``residual`` says whether the tolerance was met.
        """
        y, n = self.targets, len(self.targets)
        classes, penalty = y.shape[1], penalty / self.unit
        curvature = self.values / (2 * n) + penalty
        scale = np.sqrt(self.values / curvature)
        features = np.hstack((self.vectors * scale, np.full((n, 1), UNIT)))
        ridge = np.append(penalty / curvature, 0.0)[:, None]
        seen: dict[str, Matrix] = {}

        def value(v: Matrix) -> tuple[float, Matrix]:
            theta = v.reshape(-1, classes)
            f = features @ theta
            p = softmax(f, axis=1)
            seen["p"] = p
            loss = float((logsumexp(f, axis=1) - (y * f).sum(1)).mean() + 0.5 * (ridge * theta * theta).sum())
            return loss, (features.T @ ((p - y) / n) + ridge * theta).ravel()

        def curve(v: Matrix, d: Matrix) -> Matrix:
            # asked for where value was asked for last
            p, direction = seen["p"], d.reshape(-1, classes)
            g = features @ direction
            g = p * (g - (p * g).sum(1, keepdims=True)) / n
            found: Matrix = (features.T @ g + ridge * direction).ravel()
            return found

        v = np.zeros(features.shape[1] * classes)
        if start is not None:
            theta = np.sqrt(self.values * curvature)[:, None] * (self.vectors.T @ (start.alpha.numpy() * self.unit))
            v = np.vstack((theta, start.intercept.numpy()[None] / UNIT)).ravel()
        options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "maxcor": MEMORY, "ftol": 0.0}
        coarse = max(tolerance, 1e-5) if polish else tolerance
        found = minimize(value, v, jac=True, method="L-BFGS-B", options=options | {"gtol": coarse / classes})
        v, iterations = found.x, int(found.nit)
        if polish:
            v, more = _newton(value, curve, v, tolerance)
            iterations += more
        v = v - value(v)[1]
        loss, gradient = value(v)
        theta = v.reshape(-1, classes)
        alpha = self.vectors @ (theta[:-1] / np.sqrt(self.values * curvature)[:, None])
        unseen = self.rest.T @ (y - seen["p"]) / (n * penalty)
        moved = self.rounding * np.linalg.norm(unseen, axis=1)
        alpha += self.rest @ (unseen / np.maximum(1.0, moved / MOVED)[:, None])
        return Solution(
            torch.from_numpy(alpha / self.unit),
            torch.from_numpy(theta[-1] * UNIT),
            loss,
            residual=float(np.linalg.norm(gradient)),
            iterations=iterations,
        )


def _newton(value: Any, curve: Any, v: Matrix, tolerance: float) -> tuple[Matrix, int]:
    """Newton's method by conjugate gradients, each step halved until the objective falls."""
    loss, gradient = value(v)
    for iteration in range(NEWTON):
        size = float(np.linalg.norm(gradient))
        if size <= tolerance:
            return v, iteration
        step = _conjugate_gradients(lambda d, at=v: curve(at, d), -gradient, min(0.5, size**0.5) * size)
        slope, length = float(gradient @ step), 1.0
        while True:
            tried, tried_gradient = value(v + length * step)
            # near the minimum the objective's rounding hides its fall, which the gradient's still shows
            if tried <= loss + 1e-4 * length * slope or float(np.linalg.norm(tried_gradient)) <= 0.9 * size:
                break
            length /= 2
            if length < 1e-6:
                value(v)
                return v, iteration
        v, loss, gradient = v + length * step, tried, tried_gradient
    return v, NEWTON


def _conjugate_gradients(product: Any, right: Matrix, small: float) -> Matrix:
    x = np.zeros_like(right)
    residual, direction = right.copy(), right.copy()
    square = float(residual @ residual)
    for _ in range(STEPS):
        moved = product(direction)
        bend = float(direction @ moved)
        # the Hessian is positive definite but for the sum over classes, in which nothing moves
        if bend <= 0:
            break
        length = square / bend
        x += length * direction
        residual -= length * moved
        before, square = square, float(residual @ residual)
        if square <= small * small:
            break
        direction = residual + (square / before) * direction
    return x
