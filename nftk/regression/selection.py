"""Choosing the ridge by exact leave-one-out or generalised cross-validation, from one eigendecomposition."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nftk.regression.gram import Gram
from nftk.regression.solve import MOST_JITTER, KernelWarning
from nftk.tangent.scale import magnitude

# of the continuous search: points of the first, logarithmic grid, and steps of golden section in its best cell
GRID, REFINEMENTS = 49, 30
# errors that differ by this share of them are the same
SAME = 1e-12


class Spectra(NamedTuple):
    """Eigendecompositions of a training kernel and the targets in their bases: all that any ridge needs.

    Attributes:
        values: ``(p, N)``.
        vectors: ``(p, N, N)``.
        targets: ``(p, N, k)``: vectors^T y.
        block: Rows that belong to one example, d of a joint kernel, else 1.
        least: The smallest eigenvalue before rounding below 0 was set to 0.
    """

    values: Tensor
    vectors: Tensor
    targets: Tensor
    block: int
    least: float

    @classmethod
    def of(cls, op: str, gram: Gram, y: Tensor) -> "Spectra":
        """Decompose; memory: 8 bytes for each entry of each matrix, and twice one matrix."""
        values, vectors, targets, least = [], [], [], math.inf
        for i in range(gram.pieces):
            s, u = torch.linalg.eigh(gram.piece(i))
            least, scale = min(least, float(s[0])), max(float(s.mean()), 0.0)
            if float(s[0]) < -MOST_JITTER * scale:
                raise ValueError(
                    f"nftk.{op}: the training kernel must be positive semi-definite, got the eigenvalue "
                    f"{float(s[0]):.3g} where its diagonal has the mean {float(s.mean()):.3g}; a ridge given as a "
                    "number may hide it"
                )
            # what rounding left below 0 is 0
            values.append(s.clamp(min=0))
            vectors.append(u)
            targets.append(u.T @ gram.columns(i, y))
        block = y.shape[1] if gram.form == "joint" else 1
        return cls(torch.stack(values), torch.stack(vectors), torch.stack(targets), block, least)

    def coefficients(self, ridge: float) -> Tensor:
        """(K + rho I)^-1 y of each matrix, ``(p, N, k)``."""
        return self.vectors @ (self.targets / (self.values + ridge)[..., None])

    def leave_one_out(self, ridge: float) -> float:
        """Mean over examples of the squared error that each has when the others alone are fitted."""
        alpha = self.coefficients(ridge)
        inverse = 1 / (self.values + ridge)
        if self.block == 1:
            diagonal = torch.einsum("pij,pj->pi", self.vectors.square(), inverse)
            return float((alpha / diagonal[..., None]).square().sum() / alpha.shape[1])
        # (n, d, N): an example left out takes its d rows with it
        rows = self.vectors[0].reshape(-1, self.block, self.vectors.shape[-1])
        blocks = (rows * inverse[0]) @ rows.mT
        errors = torch.linalg.solve(blocks, alpha[0].reshape(-1, self.block, 1))
        return float(errors.square().sum() / len(rows))

    def gcv(self, ridge: float) -> float:
        """Generalised cross-validation: leave-one-out with every leverage at its mean."""
        alpha = self.coefficients(ridge)
        mean = (1 / (self.values + ridge)).mean(1)
        examples = alpha.shape[1] // self.block
        return float((alpha.square().sum((1, 2)) / mean.square()).sum() / examples)


class Selection(NamedTuple):
    """What a search of the ridge found.

    Attributes:
        ridge: The best.
        ridges: All that were tried, ascending.
        errors: Of each, the mean squared error over examples, summed over outputs; infinite beyond float64's range.
    """

    ridge: float
    ridges: Tensor
    errors: Tensor


def select(op: str, gram: Gram, y: Tensor, criterion: str, ridges: Sequence[float] | None) -> tuple[Selection, Tensor]:
    """Choose the ridge.

    Args:
        op: Who asks, for warnings.
        gram: The training kernel.
        y: Targets less the offset, ``(n, d)``.
        criterion: ``"loo"`` or ``"gcv"``.
        ridges: To choose from; None for all between rounding (where the kernel interpolates) and 10 times the largest
            eigenvalue.

    Returns:
        The selection, and the coefficients at the best ridge ``(n, d)``.

    Raises:
        ValueError: If there is one example only, no ridge has a finite error, or the kernel is not positive
            semi-definite.
    """
    if len(y) < 2:
        raise ValueError(
            f"nftk.{op}: X must have at least 2 examples for ridge {criterion!r}, got n_samples = {len(y)}"
        )
    # errors are of the second power, which neither overflows nor vanishes for targets of size 1
    unit = magnitude(y)
    spectra = Spectra.of(op, gram, y / unit)
    error = spectra.leave_one_out if criterion == "loo" else spectra.gcv
    if ridges is None:
        largest = float(spectra.values.max()) or 1.0
        # below that, what separates ridges is the rounding of the kernel
        low = max(1e-12, gram.eps) * largest
        tried = _continuous(error, low, 10 * largest)
    else:
        tried = {float(ridge): error(float(ridge)) for ridge in ridges}
    found = sorted(tried.items())
    finite = [pair for pair in found if math.isfinite(pair[1])]
    if not finite:
        raise ValueError(f"nftk.{op}: ridges must hold one with a finite error, got {[ridge for ridge, _ in found]}")
    best, least = min(finite, key=lambda pair: pair[1])
    most = max(pair[1] for pair in finite)
    at_end = best == found[-1][0] or (best == found[0][0] and ridges is not None)
    if len(finite) > 1 and most - least <= SAME * most:
        best = finite[-1][0]
        warnings.warn(
            f"nftk.{op}: every ridge has the same error by {criterion!r}, as where the targets or the kernel are 0; "
            f"the largest was taken, {best:.3g}",
            KernelWarning,
            stacklevel=2,
        )
    elif len(found) > 1 and at_end:
        side = "smallest" if best == found[0][0] else "largest"
        warnings.warn(
            f"nftk.{op}: the best ridge by {criterion!r} is {best:.3g}, the {side} that was tried; "
            + ("a wider grid may hold a better one" if ridges is not None else "the kernel may not suit the targets"),
            KernelWarning,
            stacklevel=2,
        )
    if best <= -spectra.least:
        warnings.warn(
            f"nftk.{op}: the training kernel plus the best ridge {best:.3g} is not positive definite in float64; its "
            f"eigenvalues down to {spectra.least:.3g} were taken for 0",
            KernelWarning,
            stacklevel=2,
        )
    tried_ridges, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
    selection = Selection(best, tried_ridges, errors * unit * unit)
    return selection, unit * gram.gather(list(spectra.coefficients(best)), y.shape[1])


def _continuous(error: Callable[[float], float], low: float, high: float) -> dict[float, float]:
    """Errors on a logarithmic grid, and at the points of a golden section around its best."""
    grid = torch.logspace(math.log10(low), math.log10(high), GRID, dtype=torch.float64).tolist()
    tried = {ridge: error(ridge) for ridge in grid}
    best = min(range(GRID), key=lambda i: tried[grid[i]] if math.isfinite(tried[grid[i]]) else math.inf)
    a, b = math.log(grid[max(best - 1, 0)]), math.log(grid[min(best + 1, GRID - 1)])
    golden = (math.sqrt(5) - 1) / 2
    inner = [b - golden * (b - a), a + golden * (b - a)]
    errors = [error(math.exp(x)) for x in inner]
    for _ in range(REFINEMENTS):
        tried.update({math.exp(x): e for x, e in zip(inner, errors, strict=True)})
        if errors[0] <= errors[1]:
            b = inner[1]
            inner = [b - golden * (b - a), inner[0]]
            errors = [error(math.exp(inner[0])), errors[0]]
        else:
            a = inner[0]
            inner = [inner[1], a + golden * (b - a)]
            errors = [errors[1], error(math.exp(inner[1]))]
    return tried
