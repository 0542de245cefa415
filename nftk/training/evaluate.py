"""Loss and accuracy of a model on held-out data."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nftk.training.losses import LOSSES, Loss, count_correct, is_labels


class Evaluation(NamedTuple):
    """Mean loss, and the share of examples classified right (None for regression)."""

    loss: float
    accuracy: float | None


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: str | Loss = "cross_entropy"
) -> Evaluation:
    """Return the mean loss and the accuracy of a model, in eval mode.

    Args:
        model: Any module from ``(B, m)`` to ``(B, d)``; its mode is put back afterwards.
        batches: Pairs ``(x, y)`` on the model's device: a DataLoader, or ``[(x, y)]`` for one pair of tensors.
        loss: ``"cross_entropy"``, ``"mse"``, or a callable that averages over its batch.

    Returns:
        ``(loss, accuracy)``, sums in float64; accuracy is None where y are no labels.

    Raises:
        ValueError: If ``loss`` is an unknown name, or there is no example.

    Example:
        >>> import torch
        >>> from nftk.training import evaluate
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
        >>> evaluate(torch.nn.Identity(), [(x, y)]).accuracy
        0.6666666666666666
    """
    function = resolve_loss("evaluate", loss)
    was_training = model.training
    model.eval()
    total, correct, seen, labels = 0.0, 0, 0, True
    try:
        for x, y in batches:
            f = model(x)
            total += float(function(f, y)) * len(x)
            seen += len(x)
            labels = labels and is_labels(y)
            if labels:
                correct += int(count_correct(f, y))
    finally:
        model.train(was_training)
    if seen == 0:
        raise ValueError("nftk.evaluate: batches must hold at least one example, got none")
    return Evaluation(total / seen, correct / seen if labels else None)


def resolve_loss(op: str, loss: str | Loss) -> Loss:
    """Turn a loss's name into the function; callables pass through."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        names = ", ".join(map(repr, LOSSES))
        raise ValueError(f"nftk.{op}: loss must be one of {names} or a callable, got {loss!r}")
    return LOSSES[loss]
