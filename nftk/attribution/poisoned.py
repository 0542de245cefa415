"""Poisoned training examples: those that speak for predictions that should not be."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from nftk._checks import check_integer, check_shape, check_tensor
from nftk.attribution.ranking import check_finite, top_k


@dataclasses.dataclass(frozen=True, eq=False)
class Suspicion:
    """Training examples in the order in which they are suspected.

    Attributes:
        order: Their numbers, the most suspected first, int64 ``(n_train,)``.
        scores: What each is suspected by, by its number, ``(n_train,)``.
    """

    order: Tensor
    scores: Tensor

    def precision_recall(self, poisoned: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """How many of the first examples are poisoned, and how many of the poisoned are among them.

        Args:
            poisoned: True where an example is, boolean ``(n_train,)``.
            k: For the first k alone; None: for every k from 1.

        Returns:
            Precision and recall, ``()`` for one k, else ``(n_train,)``.

        Raises:
            TypeError: If poisoned is not boolean.
            ValueError: If shapes do not fit, none is poisoned, or k is out of range.
        """
        op = "attribution.Suspicion.precision_recall"
        if not isinstance(poisoned, Tensor) or poisoned.dtype is not torch.bool:
            got: Any = getattr(poisoned, "dtype", type(poisoned).__name__)
            raise TypeError(f"nftk.{op}: poisoned must be a boolean tensor [n_train], got {got}")
        check_shape(op, "poisoned", poisoned, tuple(self.order.shape))
        if not bool(poisoned.any()):
            raise ValueError(f"nftk.{op}: poisoned must have an example that is, got none of {len(poisoned)}")
        hits = poisoned.to(self.order.device)[self.order].double().cumsum(0)
        precision = hits / torch.arange(1, len(hits) + 1, dtype=torch.float64, device=hits.device)
        recall = hits / hits[-1]
        if k is None:
            return precision, recall
        if check_integer(op, "k", k, 1) > len(hits):
            raise ValueError(f"nftk.{op}: k must be at most {len(hits)}, got {k}")
        return precision[k - 1], recall[k - 1]


def find_poisoned(suspects: Tensor, clean: Tensor | None = None) -> Suspicion:
    """Rank training examples by how much they speak for suspect predictions, and not for clean ones.

    Each test example's scores are divided by the sum of their sizes, so that none counts more than another; then
    averaged over the test examples. What size a score has depends on the ``intercept=`` of :func:`attribute`; leave it
    apart. On one layer's scores (``Attribution.by_layer``) the ranking is that layer's.

    Args:
        suspects: Scores of suspect test examples for the class that they were (wrongly) given,
            ``(n_suspect, n_train)``: ``attribution.scores(attribution.predicted)`` of stamped images, or of errors.
        clean: Scores of test examples beyond suspicion for the same class, ``(n_clean, n_train)``, whose mean is taken
            away: what speaks for the class as such. None, or no example: nothing is.

    Returns:
        All training examples, the most suspected first.

    Raises:
        TypeError: If scores are no floating tensors.
        ValueError: If there is no suspect, shapes do not fit, or scores are not finite.

    References:
        Engel et al., Faithful and Efficient Explanations for Neural Networks via Neural Tangent Kernel Surrogate
        Models, ICLR 2024, arXiv 2305.14585, which looks at single attributions; the ranking over many
        suspects is ours.

    Example:
        >>> import torch
        >>> from nftk.attribution import find_poisoned
        >>> find_poisoned(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[4.0, 0.0, 0.0]])).order
        tensor([1, 2, 0])
    """
    op = "attribution.find_poisoned"
    check_tensor(op, "suspects", suspects)
    check_shape(op, "suspects", suspects, ("n_suspect", "n_train"))
    if not suspects.numel():
        raise ValueError(f"nftk.{op}: suspects must hold at least one example, got shape {list(suspects.shape)}")
    check_finite(op, "suspects", suspects)
    found = _mean(suspects)
    if clean is not None:
        check_tensor(op, "clean", clean)
        check_shape(op, "clean", clean, ("n_clean", suspects.shape[1]))
        check_finite(op, "clean", clean)
        found = found - _mean(clean) if len(clean) else found
    return Suspicion(top_k(found, len(found)).examples, found)


def _mean(scores: Tensor) -> Tensor:
    scores = scores.detach().double()
    sizes = scores.abs().sum(1, keepdim=True)
    return (scores / torch.where(sizes > 0, sizes, 1.0)).mean(0)
