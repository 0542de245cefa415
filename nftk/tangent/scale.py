"""By which power of two to divide, so that squares neither overflow nor vanish."""

import math

from torch import Tensor


def magnitude(x: Tensor) -> float:
    """Largest power of two that no entry of x needs to be enlarged to reach: x divided by it is exact; 1 for zeros."""
    if not x.numel():
        return 1.0
    largest = max(abs(float(bound)) for bound in x.detach().aminmax())
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0
