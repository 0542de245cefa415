"""Which training examples have the largest and the smallest scores."""

from typing import NamedTuple

from torch import Tensor

from nftk._checks import check_integer, check_tensor, is_finite


class Ranked(NamedTuple):
    """Training examples in order.

    Attributes:
        examples: Their numbers, int64 ``(..., k)``.
        scores: Their scores, alike.
    """

    examples: Tensor
    scores: Tensor


def top_k(scores: Tensor, k: int) -> Ranked:
    """Training examples with the largest scores, the largest first.

    Args:
        scores: ``(..., n_train)``.
        k: How many, at most n_train.

    Returns:
        ``(..., k)``. Of equal scores the example with the lower number goes first.

    Raises:
        ValueError: If k is out of range, or scores are not finite.
        TypeError: If scores are no floating tensor, or k no integer.

    Example:
        >>> import torch
        >>> from nftk.attribution import top_k
        >>> top_k(torch.tensor([[0.5, 2.0, -1.0]]), 2).examples
        tensor([[1, 0]])
    """
    return _first("attribution.top_k", scores, k, descending=True)


def bottom_k(scores: Tensor, k: int) -> Ranked:
    """Training examples with the smallest scores, those that speak most against; the smallest first.

    Args:
        scores: ``(..., n_train)``.
        k: How many, at most n_train.

    Returns:
        As for :func:`top_k`.

    Raises:
        ValueError: As there.
        TypeError: As there.
    """
    return _first("attribution.bottom_k", scores, k, descending=False)


def check_finite(op: str, name: str, x: Tensor) -> None:
    """Raise ValueError where an entry is NaN or infinite."""
    if not is_finite(x):
        raise ValueError(f"nftk.{op}: {name} must be finite, got NaN or infinity")


def _first(op: str, scores: Tensor, k: int, *, descending: bool) -> Ranked:
    check_tensor(op, "scores", scores)
    check_integer(op, "k", k, 1)
    if scores.ndim < 1 or k > scores.shape[-1]:
        most = scores.shape[-1] if scores.ndim else 0
        raise ValueError(f"nftk.{op}: k must be at most the number of training examples, {most}, got {k}")
    check_finite(op, "scores", scores)
    found = scores.sort(dim=-1, descending=descending, stable=True)
    return Ranked(found.indices[..., :k], found.values[..., :k])
