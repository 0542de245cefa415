"""The two losses, by name, and what counts as a right answer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the softmax of f ``(B, d)`` with the labels y ``(B,)``."""
    return functional.cross_entropy(f, y)


def mse(f: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of the squared distance to y, summed over outputs (equation 9); labels become one-hot."""
    target = functional.one_hot(y, f.shape[-1]).to(f.dtype) if is_labels(y) else y.reshape(f.shape)
    return (f - target).square().sum(-1).mean()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


def is_labels(y: Tensor) -> bool:
    """Whether y holds class labels and not regression targets."""
    return y.dtype is torch.int64 and y.ndim == 1


def count_correct(f: Tensor, y: Tensor) -> Tensor:
    """How many rows of f have their maximum at the label, a 0-d tensor."""
    return (f.argmax(-1) == y).sum()
