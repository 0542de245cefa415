"""What the solvers of a surrogate share: what they return, their unit, and what they refuse."""

import math
from typing import NamedTuple

from torch import Tensor

from nftk.regression.solve import MOST_JITTER


class Solution(NamedTuple):
    """Coefficients of a surrogate and what is known of how they were found.

    Attributes:
        alpha: ``(n, C)``.
        intercept: ``(C,)``.
        objective: Mean loss plus penalty.
        energy: What tr(alpha^T K alpha) is multiplied by to be the squared norm that the objective penalises.
        residual: Norm of the preconditioned gradient there, of solvers that iterate.
        iterations: Of such a solver.
        stopped: The bound at which a solver stopped short of its own rule, in words; empty where none did.
    """

    alpha: Tensor
    intercept: Tensor
    objective: float
    energy: float = 1.0
    residual: float = 0.0
    iterations: int = 0
    stopped: str = ""


def unit_of(k: Tensor) -> float:
    """The power of two next below the mean of a kernel's diagonal, a division by which rounds nothing."""
    # K / u, lambda / u and u alpha are the same problem as K, lambda and alpha, in numbers near 1
    mean = float(k.diagonal().mean())
    return 2.0 ** (math.frexp(mean)[1] - 1) if mean > 0 else 1.0


def check_definite(op: str, eigenvalues: Tensor) -> None:
    """Raise ValueError where the least of ascending eigenvalues is below 0 by more than rounding."""
    least, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    # a kernel in float32 has rounding of some 1e-7 of its largest eigenvalue
    if least < -MOST_JITTER * largest:
        raise ValueError(
            f"nftk.{op}: the training kernel must be positive semi-definite, got the eigenvalue {least:.3g} where the "
            f"largest is {largest:.3g}"
        )
