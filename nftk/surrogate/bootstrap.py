"""Bootstrap intervals of statistics of examples."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nftk._checks import check_integer, check_number

Array = npt.NDArray[np.float64]


class Measured(NamedTuple):
    """A statistic and its bootstrap interval.

    Attributes:
        value: On the examples as they are; NaN where it is not defined.
        low: Lower end of the interval; NaN where no resample had a value.
        high: Upper end.
        undefined: Resamples without a value, which the interval leaves out.
    """

    value: float
    low: float
    high: float
    undefined: int = 0

    def __str__(self) -> str:
        """The value, with its interval in brackets where one was asked for."""
        if self.low != self.low and not self.undefined:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    op: str,
    statistic: Callable[[Array], Array],
    n: int,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Measured:
    """Percentile interval of a statistic, over examples drawn with replacement.

    Args:
        op: Who asks, for errors.
        statistic: From how often each example counts, ``(B, n)``, to B values; NaN where there is none.
        n: Number of examples.
        resamples: B; 0 for no interval.
        confidence: Of the interval, in (0, 1).
        seed: Of the resamples.

    Returns:
        The statistic with every example counted once, and its interval.

    Raises:
        ValueError: If a setting is out of range.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    check_integer(op, "resamples", resamples, 0)
    check_integer(op, "seed", seed, 0)
    if check_number(op, "confidence", confidence, above=True) >= 1:
        raise ValueError(f"nftk.{op}: confidence must be below 1, got {confidence}")
    value = float(statistic(np.ones((1, n)))[0])
    if not resamples:
        return Measured(value, float("nan"), float("nan"))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)
    values = statistic(counts)
    defined = values[np.isfinite(values)]
    if not len(defined):
        return Measured(value, float("nan"), float("nan"), resamples)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Measured(value, float(low), float(high), resamples - len(defined))
