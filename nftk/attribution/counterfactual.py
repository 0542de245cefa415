"""Whether scores foretell what happens without the examples: subsets, retraining, linear datamodeling score."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nftk._checks import check_integer, check_number, check_shape, check_tensor, is_finite
from nftk._optional import require
from nftk.surrogate.bootstrap import Array, Measured, bootstrap
from nftk.tangent.progress import Line


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """Rank correlations, one a test example.

    Attributes:
        mean: Over test examples, with a bootstrap interval over them.
        correlations: Spearman's, ``(n_test,)``, NaN where one side is constant.
        constant: How many are.
    """

    mean: Measured
    correlations: Tensor
    constant: int

    def __str__(self) -> str:
        """The mean with its interval, and how many test examples are left out."""
        left_out = f"; {self.constant} test examples left out, constant" if self.constant else ""
        return f"{self.mean}{left_out}"


def draw_subsets(n: int, count: int, *, alpha: float = 0.5, seed: int = 0) -> Tensor:
    """Draw random subsets of the training examples, all of one size.

    Args:
        n: Training examples.
        count: Subsets.
        alpha: Share of the examples in each, in (0, 1); round(alpha n) of them.
        seed: Of the draw; the first subsets are the same for any count.

    Returns:
        True where an example is in, boolean ``(count, n)``.

    Raises:
        ValueError: If a number is out of range, or a subset would be empty or whole.

    Example:
        >>> from nftk.attribution import draw_subsets
        >>> draw_subsets(10, 3).sum(1)
        tensor([5, 5, 5])
    """
    op = "attribution.draw_subsets"
    check_integer(op, "n", n, 2)
    check_integer(op, "count", count, 1)
    check_integer(op, "seed", seed, 0)
    size = round(check_number(op, "alpha", alpha) * n)
    if not 0 < size < n:
        raise ValueError(f"nftk.{op}: alpha must leave some of {n} examples in and some out, got {alpha}")
    generator = torch.Generator().manual_seed(seed)
    subsets = torch.zeros(count, n, dtype=torch.bool)
    for subset in subsets:
        subset[torch.randperm(n, generator=generator)[:size]] = True
    return subsets


def retrain(train: Callable[[Tensor], Tensor], subsets: Tensor, *, progress: bool = False) -> Tensor:
    """Train on each subset, and keep what comes out.

    Args:
        train: From the numbers of the training examples, int64 ascending, to the outputs for the test examples after
            training on these alone, ``(n_test,)`` or ``(n_test, C)``.
        subsets: Boolean ``(m, n_train)``.
        progress: Whether to tell on standard error how far it is.

    Returns:
        ``(m, n_test)`` or ``(m, n_test, C)``, in the dtype of the outputs.

    Raises:
        TypeError: If subsets are not boolean, or train returns no floating tensor.
        ValueError: If an output is not finite, or shapes differ.
    """
    op = "attribution.retrain"
    _check_subsets(op, subsets, None)
    line = Line("retrained") if progress else None
    found: list[Tensor] = []
    for done, subset in enumerate(subsets, 1):
        outputs = train(subset.nonzero().flatten())
        check_tensor(op, "what train returns", outputs)
        if not is_finite(outputs):
            raise ValueError(f"nftk.{op}: what train returns must be finite, got NaN or infinity for subset {done - 1}")
        if found and outputs.shape != found[0].shape:
            raise ValueError(
                f"nftk.{op}: what train returns must have one shape, got {list(outputs.shape)} for subset {done - 1} "
                f"after {list(found[0].shape)}"
            )
        found.append(outputs.detach())
        if line is not None:
            line(done, len(subsets))
    return torch.stack(found)


def linear_datamodeling_score(
    scores: Tensor,
    subsets: Tensor,
    outputs: Tensor,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    r"""Linear datamodeling score (LDS): do summed scores rank subsets as training on them does?

    .. math:: \frac1{n} \sum_x \rho \Big( \big( \textstyle\sum_{i \in S_j} A(x, x_i) \big)_j, \;
        \big( f(x; S_j) \big)_j \Big)

    Args:
        scores: A, ``(n_test, n_train)``.
        subsets: S_j, boolean ``(m, n_train)``.
        outputs: f(x; S_j), ``(m, n_test)``: what a network trained on S_j says, the same quantity as the scores
            explain (a class's logit, the margin, the loss of the other sign).
        resamples: Of the bootstrap, over test examples; 0 for no interval.
        confidence: Of the interval.
        seed: Of the resamples.

    Returns:
        Spearman's correlation for each test example, and the mean of those that are defined.

    Raises:
        TypeError: If dtypes do not fit.
        ValueError: If shapes do not fit, entries are not finite, or there are fewer than two subsets.
        ImportError: If scipy is missing; the message has the command that installs it.

    References:
        Park et al., TRAK: Attributing Model Behavior at Scale, ICML 2023, arXiv 2303.14186, definition 2.4.

    Example:
        >>> import torch
        >>> from nftk.attribution import linear_datamodeling_score
        >>> scores, subsets = torch.tensor([[1.0, 2.0, 4.0]]), torch.eye(3).bool()
        >>> linear_datamodeling_score(scores, subsets, torch.tensor([[0.1], [0.3], [0.2]])).mean.value
        0.5
    """
    op = "attribution.linear_datamodeling_score"
    check_tensor(op, "scores", scores)
    check_shape(op, "scores", scores, ("n_test", "n_train"))
    _check_subsets(op, subsets, scores.shape[1])
    check_tensor(op, "outputs", outputs)
    check_shape(op, "outputs", outputs, (len(subsets), len(scores)))
    foretold = scores.detach().double() @ subsets.to(scores.device, torch.float64).T
    return _agreement(op, foretold, outputs.mT, resamples, confidence, seed)


def rank_agreement(
    a: Tensor, b: Tensor, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Agreement:
    """Spearman's correlation of each row of two matrices, as of scores and leave-one-out effects.

    Args:
        a: ``(n_test, n)``.
        b: Alike.
        resamples: Of the bootstrap, over rows; 0 for no interval.
        confidence: Of the interval.
        seed: Of the resamples.

    Returns:
        The correlations and the mean of those that are defined.

    Raises:
        TypeError: If they are no floating tensors.
        ValueError: If shapes do not fit, or entries are not finite.
        ImportError: If scipy is missing; the message has the command that installs it.
    """
    op = "attribution.rank_agreement"
    check_tensor(op, "a", a)
    check_tensor(op, "b", b)
    check_shape(op, "a", a, ("n_test", "n"))
    check_shape(op, "b", b, tuple(a.shape))
    return _agreement(op, a, b, resamples, confidence, seed)


def _agreement(op: str, a: Tensor, b: Tensor, resamples: int, confidence: float, seed: int) -> Agreement:
    for name, x in (("a", a), ("b", b)):
        if not is_finite(x):
            raise ValueError(f"nftk.{op}: {name} must be finite, got NaN or infinity")
    if a.shape[1] < 2 or not len(a):
        raise ValueError(f"nftk.{op}: rows must have at least two entries, got shape {list(a.shape)}")
    require("scipy", purpose=op, extra="app")
    from scipy.stats import rankdata

    ranks = [rankdata(x.detach().double().cpu().numpy(), axis=1) for x in (a, b)]
    left, right = (r - r.mean(1, keepdims=True) for r in ranks)
    sizes = np.sqrt((left**2).sum(1) * (right**2).sum(1))
    found: Any = np.divide((left * right).sum(1), sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    found = np.clip(found, -1, 1)
    defined = np.isfinite(found)
    values = np.where(defined, found, 0.0)

    def mean(counts: Array) -> Array:
        weight = counts @ defined.astype(np.float64)
        means: Array = np.divide(counts @ values, weight, out=np.full(len(counts), np.nan), where=weight > 0)
        return means

    measured = bootstrap(op, mean, len(found), resamples=resamples, confidence=confidence, seed=seed)
    return Agreement(measured, torch.from_numpy(found), int((~defined).sum()))


def _check_subsets(op: str, subsets: Any, n: int | None) -> None:
    if not isinstance(subsets, Tensor) or subsets.dtype is not torch.bool:
        got = f"dtype {subsets.dtype}" if isinstance(subsets, Tensor) else type(subsets).__name__
        raise TypeError(f"nftk.{op}: subsets must be a boolean tensor [m, n_train], got {got}")
    check_shape(op, "subsets", subsets, ("m", "n_train" if n is None else n))
