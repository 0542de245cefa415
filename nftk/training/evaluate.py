"""Loss and accuracy of a model on held-out data."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nftk.training.batches import EVALUATION_BATCH, Batches, make_batches
from nftk.training.losses import LOSSES, Loss, count_correct, is_labels


class Evaluation(NamedTuple):
    """Mean loss, and the share of examples classified right (None for regression)."""

    loss: float
    accuracy: float | None


def evaluate(model: nn.Module, data: Any, loss: str | Loss = "cross_entropy") -> Evaluation:
    """Return the mean loss and the accuracy of a model, in eval mode.

    Args:
        model: Any module with parameters, from ``(B, m)`` to ``(B, d)``; its mode is put back afterwards.
        data: As for :func:`nftk.fit`: a pair of tensors ``(x, y)``, a Dataset or a DataLoader of such pairs.
        loss: ``"cross_entropy"``, ``"mse"``, or a callable that averages over its batch.

    Returns:
        ``(loss, accuracy)``, sums in float64; accuracy is None where y are no labels.

    Raises:
        ValueError: If ``loss`` is an unknown name, data do not fit the model, or there is no example.
        TypeError: If data have another form or dtype.

    Example:
        >>> import torch, nftk
        >>> model = nftk.NFTKMLP(3, [3], 3, activation="identity", bias=False)
        >>> for matrix in (model.hidden[0].weight, model.readout_weight):
        ...     _ = torch.nn.init.eye_(matrix)
        >>> nftk.evaluate(model, (torch.eye(3), torch.tensor([0, 1, 1]))).accuracy
        0.6666666666666666
    """
    place = next(model.parameters()).device
    name = loss if isinstance(loss, str) else "custom"
    batches = make_batches(
        "evaluate", "data", data, model, loss=name, batch_size=EVALUATION_BATCH, device=place, shuffle=False
    )
    return evaluate_batches(model, batches, resolve_loss("evaluate", loss))


@torch.no_grad()
def evaluate_batches(model: nn.Module, batches: Batches, function: Loss) -> Evaluation:
    """Do the work of :func:`evaluate` on data that are checked already."""
    was_training = model.training
    model.eval()
    total: float | Tensor = 0.0
    correct: int | Tensor = 0
    seen, labels = 0, True
    try:
        for x, y in batches:
            f = model(x)
            value = function(f, y)
            # to read a batch's sums from a GPU would make the host wait for it
            total += (value.double() if f.is_cuda else float(value)) * len(x)
            seen += len(x)
            labels = labels and is_labels(y)
            if labels:
                count = count_correct(f, y)
                correct += count if f.is_cuda else int(count)
    finally:
        model.train(was_training)
    if seen == 0:
        raise ValueError("nftk.evaluate: data must hold at least one example, got none")
    return Evaluation(float(total) / seen, int(correct) / seen if labels else None)


def resolve_loss(op: str, loss: str | Loss) -> Loss:
    """Turn a loss's name into the function; callables pass through."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        names = ", ".join(map(repr, LOSSES))
        raise ValueError(f"nftk.{op}: loss must be one of {names} or a callable, got {loss!r}")
    return LOSSES[loss]
