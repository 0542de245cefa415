"""How near a surrogate is to the network it stands for: rank correlation, accuracy, common errors, R^2."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nftk._checks import check_choice, check_number
from nftk.surrogate.bootstrap import Array, Measured, bootstrap
from nftk.tangent.targets import as_array

Labels = npt.NDArray[np.int64]
# rows of the matrix of signs at a time
TILE = 1024


def kendall_tau(
    network: Any,
    surrogate: Any,
    y: Any,
    *,
    classes: Literal["correct", "all"] = "correct",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Measured:
    r"""Kendall's tau-b between a network's probabilities and its surrogate's, over test examples.

    .. math:: \tau_b = \frac{\sum_{i<j} \mathrm{sgn}(p_i - p_j) \, \mathrm{sgn}(q_i - q_j)}
        {\sqrt{(\text{pairs with } p_i \ne p_j) \, (\text{pairs with } q_i \ne q_j)}}

    Args:
        network: Probabilities ``(n, C)``, or of two classes that of the second ``(n,)``.
        surrogate: The surrogate's, alike.
        y: True classes ``(n,)``, 0 to C - 1.
        classes: ``"correct"``: of the probability of each example's own class, as in the trNTK paper's tables of many
            classes. ``"all"``: of each class over all examples, averaged over classes (pooled, they would measure
            which class is large).
        resamples: Of the bootstrap, over examples; 0 for no interval. Each costs 2 n^2 operations a class.
        confidence: Of the interval.
        seed: Of the resamples.

    Returns:
        From -1 to 1; NaN where either is constant.

    Raises:
        ValueError: If shapes do not fit, or entries are no probabilities or classes.
        TypeError: If they are no numbers.

    References:
        Engel et al., Faithful and Efficient Explanations for Neural Networks via Neural Tangent Kernel Surrogate
        Models, ICLR 2024, arXiv 2305.14585; Kendall, The treatment of ties in ranking problems,
        Biometrika 1945.

    Example:
        >>> from nftk.surrogate import kendall_tau
        >>> kendall_tau([0.1, 0.4, 0.8], [0.2, 0.6, 0.5], [1, 1, 1], resamples=0).value  # two pairs of three agree
        0.3333333333333333
    """
    op = "surrogate.kendall_tau"
    p, q, truth = checked(op, network, surrogate, y)
    check_choice(op, "classes", classes, ("correct", "all"))
    rows = np.arange(len(truth))
    pairs = [(p[rows, truth], q[rows, truth])] if classes == "correct" else list(zip(p.T, q.T, strict=True))

    def statistic(counts: Array) -> Array:
        found: Array = np.mean([_tau(a, b, counts) for a, b in pairs], axis=0)
        return found

    return bootstrap(op, statistic, len(truth), resamples=resamples, confidence=confidence, seed=seed)


def accuracy_difference(
    network: Any, surrogate: Any, y: Any, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Measured:
    """Test accuracy difference (TAD): the surrogate's accuracy less the network's.

    Args:
        network: As for :func:`kendall_tau`.
        surrogate: As there.
        y: As there.
        resamples: As there.
        confidence: As there.
        seed: As there.

    Returns:
        From -1 to 1; 0 is best.

    Raises:
        ValueError: As there.
        TypeError: As there.

    References:
        As there.
    """
    op = "surrogate.accuracy_difference"
    p, q, truth = checked(op, network, surrogate, y)
    gain = (q.argmax(1) == truth).astype(np.float64) - (p.argmax(1) == truth)

    def statistic(counts: Array) -> Array:
        found: Array = counts @ gain / len(gain)
        return found

    return bootstrap(op, statistic, len(truth), resamples=resamples, confidence=confidence, seed=seed)


def r_miss(
    network: Any, surrogate: Any, y: Any, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Measured:
    """R_Miss: examples that both misclassify, over examples that either does.

    Args:
        network: As for :func:`kendall_tau`.
        surrogate: As there.
        y: As there.
        resamples: As there.
        confidence: As there.
        seed: As there.

    Returns:
        From 0 to 1; NaN where neither misclassifies any example, and such resamples are left out of the interval and
        counted.

    Raises:
        ValueError: As there.
        TypeError: As there.

    References:
        As there.
    """
    op = "surrogate.r_miss"
    p, q, truth = checked(op, network, surrogate, y)
    missed = p.argmax(1) != truth, q.argmax(1) != truth
    both, either = (missed[0] & missed[1]).astype(np.float64), (missed[0] | missed[1]).astype(np.float64)

    def statistic(counts: Array) -> Array:
        return _ratio(counts @ both, counts @ either)

    return bootstrap(op, statistic, len(truth), resamples=resamples, confidence=confidence, seed=seed)


def r2_after_link(
    network: Any,
    surrogate: Any,
    y: Any,
    *,
    clip: float = 1e-6,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Measured:
    """R^2 of the best line from the surrogate's logit of the correct class to the network's.

    The link is logit(p) = log p - log(1 - p), which takes probabilities to the whole line. Saturated ones, below clip
    or above 1 - clip, are set to these bounds; :func:`nftk.surrogate.faithfulness` counts them.

    Args:
        network: As for :func:`kendall_tau`.
        surrogate: As there.
        y: As there.
        clip: Least distance of a probability from 0 and 1, below 0.5 and above float64's rounding of 1.
        resamples: As there.
        confidence: As there.
        seed: As there.

    Returns:
        The squared correlation of the two logits, from 0 to 1; NaN where either is constant.

    Raises:
        ValueError: As there, or if clip is out of range.
        TypeError: As there.

    References:
        As there, where the link is any that can be inverted.
    """
    op = "surrogate.r2_after_link"
    p, q, truth = checked(op, network, surrogate, y)
    check_clip(op, clip)
    rows = np.arange(len(truth))
    a, b = (np.clip(each[rows, truth], clip, 1 - clip) for each in (p, q))
    a, b = (np.log(each) - np.log1p(-each) for each in (a, b))
    # about their means, so that no variance is a difference of large squares
    a, b = a - a.mean(), b - b.mean()

    def statistic(counts: Array) -> Array:
        n = len(a)
        mean_a, mean_b = counts @ a / n, counts @ b / n
        cross = counts @ (a * b) / n - mean_a * mean_b
        spread_a, spread_b = counts @ (a * a) / n - mean_a**2, counts @ (b * b) / n - mean_b**2
        rounding = 1e-12 * max(float(a @ a), float(b @ b)) / n
        constant = (spread_a <= rounding) | (spread_b <= rounding)
        return np.minimum(_ratio(cross**2, np.where(constant, 0.0, spread_a * spread_b)), 1.0)

    return bootstrap(op, statistic, len(truth), resamples=resamples, confidence=confidence, seed=seed)


def checked(op: str, network: Any, surrogate: Any, y: Any) -> tuple[Array, Array, Labels]:
    """Probabilities of both ``(n, C)`` in float64 and true classes, or an error."""
    p, q = probabilities(op, "network", network), probabilities(op, "surrogate", surrogate)
    if p.shape != q.shape:
        raise ValueError(f"nftk.{op}: surrogate must have the shape of network, {list(p.shape)}, got {list(q.shape)}")
    truth = as_array(op, y)
    if truth.dtype.kind not in "iub":
        raise TypeError(f"nftk.{op}: y must be classes, integers from 0 to {p.shape[1] - 1}, got {truth.dtype}")
    if truth.shape != (len(p),):
        raise ValueError(f"nftk.{op}: y must have shape [{len(p)}], an entry an example, got {list(truth.shape)}")
    truth = truth.astype(np.int64)
    if truth.min() < 0 or truth.max() >= p.shape[1]:
        wrong = truth.min() if truth.min() < 0 else truth.max()
        raise ValueError(f"nftk.{op}: y must be classes from 0 to {p.shape[1] - 1}, got {wrong}")
    return p, q, truth


def probabilities(op: str, name: str, given: Any) -> Array:
    """Probabilities ``(n, C)`` in float64; of two classes that of the second will do."""
    try:
        values = as_array(op, given)
        # of which numpy would drop a part
        if values.dtype.kind == "c":
            raise TypeError
        found: Array = values.astype(np.float64)
    except (TypeError, ValueError):
        got = getattr(given, "dtype", type(given).__name__)
        raise TypeError(f"nftk.{op}: {name} must be real numbers, got {got}") from None
    if not np.isfinite(found).all():
        raise ValueError(f"nftk.{op}: {name} must be finite, got NaN or infinity")
    if found.ndim == 1:
        found = np.stack((1 - found, found), 1)
    if found.ndim != 2 or not found.size or found.shape[1] < 2:
        raise ValueError(f"nftk.{op}: {name} must have shape [n, C], or [n] for two classes, got {list(found.shape)}")
    sums = found.sum(1)
    if found.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        row = int(np.argmax(np.maximum(np.abs(sums - 1), -found.min(1))))
        raise ValueError(
            f"nftk.{op}: {name} must be probabilities, at least 0 with rows that sum to 1, got "
            f"{found[row].tolist()} in row {row}"
        )
    return found


def check_clip(op: str, clip: float) -> None:
    """Raise unless a probability can be kept that far from 0 and 1."""
    if check_number(op, "clip", clip, above=True) >= 0.5:
        raise ValueError(f"nftk.{op}: clip must be below 0.5, got {clip}")
    if 1 - clip == 1:
        raise ValueError(f"nftk.{op}: clip must be so large that 1 - clip is below 1, got {clip}")


def _tau(a: Array, b: Array, counts: Array) -> Array:
    """tau-b of a and b where examples count as often as counts ``(B, n)`` say."""
    agree = np.zeros(len(counts))
    for start in range(0, len(a), TILE):
        rows = slice(start, start + TILE)
        # small integers, which float32 multiplies exactly; their sums may round
        signs = np.sign(a[rows, None] - a[None]) * np.sign(b[rows, None] - b[None])
        if len(counts) > 1:
            products = counts.astype(np.float32) @ signs.T.astype(np.float32)
        else:
            products = counts @ signs.T
        agree += (products * counts[:, rows]).sum(1)
    return _ratio(agree, np.sqrt(_untied(a, counts) * _untied(b, counts)))


def _untied(a: Array, counts: Array) -> Array:
    """Ordered pairs of examples that differ in a."""
    _, place = np.unique(a, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(place[order]) > 0])
    groups = np.add.reduceat(counts[:, order], starts, axis=1)
    found: Array = counts.sum(1) ** 2 - (groups**2).sum(1)
    return found


def _ratio(above: Array, below: Array) -> Array:
    found: Array = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return found
