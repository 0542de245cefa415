"""choose_k: how many numbers a random projection needs for a wanted error."""

import math

from nftk._checks import check_choice, check_integer, check_number

_OP = "tangent.choose_k"
KINDS = ("rademacher", "gaussian", "sjlt", "kronecker")


def choose_k(error: float, *, probability: float | None = None, n: int | None = None, kind: str = "rademacher") -> int:
    r"""Size K of a projection whose inner products have a wanted error, relative to the lengths |a| |b|.

    .. math:: |\langle P a, P b \rangle - \langle a, b \rangle| \le \epsilon |a| |b|

    Without ``probability`` the error is the root of the mean square: the variance is at most 2 |a|^2 |b|^2 / K, so
    K = 2 / epsilon^2. With it, the bound holds for one pair, or for all n^2 pairs of n vectors at once, with at least
    that probability delta' = 1 - delta. For signs and normal numbers by the Johnson-Lindenstrauss lemma,

    .. math:: P(||P v|^2 - |v|^2| > \epsilon |v|^2) \le 2 \exp(-K (\epsilon^2 / 4 - \epsilon^3 / 6)),

    for the sum and difference of each pair and for each vector, n^2 in all:
    K = log(2 n^2 / delta) / (epsilon^2 / 4 - epsilon^3 / 6), for one pair log(4 / delta). For ``"sjlt"`` and
    ``"kronecker"``, where no such constants are known, by Chebyshev's inequality over n (n + 1) / 2 pairs, which asks
    for far more.

    Args:
        error: Epsilon, above 0; with ``probability`` below 1.
        probability: Between 0 and 1; None for the rms rule.
        n: Number of vectors: examples, times outputs where each output has a bound of its own. A trace keeps the
            bound of its outputs, relative to the roots of the self-kernels. None: one pair.
        kind: What the projection is made of. ``"sjlt"``: where its nonzeros divide K. ``"kronecker"``: K is a square
            m^2 whose variance is at most 2 (2 m + 2) / m^2 |a|^2 |b|^2.

    Returns:
        K, the smallest that the bound allows.

    Raises:
        ValueError: If a number is out of range, or n is given without probability.
        TypeError: If one is no number.

    References:
        Achlioptas, Database-friendly random projections, JCSS 2003, theorem 1.1 and section 5; Dasgupta and Gupta, An
        elementary proof of a theorem of Johnson and Lindenstrauss, 2003.

    Example:
        >>> choose_k(0.1), choose_k(0.1, probability=0.99, n=1000)
        (200, 8192)
    """
    epsilon = check_number(_OP, "error", error, above=True)
    check_choice(_OP, "kind", kind, KINDS)
    if n is not None:
        n = check_integer(_OP, "n", n, 1)
    if probability is None:
        if n is not None:
            raise ValueError(f"nftk.{_OP}: n must go with probability, got n={n} alone")
        variance = epsilon**2
    else:
        share = check_number(_OP, "probability", probability, above=True)
        if share >= 1:
            raise ValueError(f"nftk.{_OP}: probability must be below 1, got {probability}")
        if kind in ("rademacher", "gaussian"):
            if epsilon >= 1:
                raise ValueError(f"nftk.{_OP}: error must be below 1 where probability is given, got {error}")
            events = 2 if n is None else n**2
            return math.ceil(math.log(2 * events / (1 - share)) / (epsilon**2 / 4 - epsilon**3 / 6))
        variance = epsilon**2 * (1 - share) / (1 if n is None else n * (n + 1) / 2)
    if kind == "kronecker":
        # 2 (2 m + 2) / m^2 <= variance
        m = math.ceil((2 + math.sqrt(4 + 4 * variance)) / variance)
        return m**2
    # the division may leave a rounding above a whole number
    return math.ceil(2 / variance * (1 - 1e-12))
