"""What each layer adds to each logit, in batches: what every measure of importance is computed from."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nftk._checks import check_tensor, is_finite

# entries of a batch's parts, which some functions hold a dozen times in float64
ENTRIES = 1 << 20


class LogitParts(NamedTuple):
    """Some rows of the data: f (B, d), omega_l f_l for every l (B, L, d), both float64, and labels (B,)."""

    logits: Tensor
    parts: Tensor
    labels: Tensor


def logit_parts(op: str, model: Any, x: Tensor, y: Tensor | None = None) -> Iterator[LogitParts]:
    """Yield the rows of x in order, the model in eval mode meanwhile; labels are empty without y.

    Logits and parts are the caller's to write into.

    Raises:
        ValueError: In the name of op, at the first row with a logit that is not finite.
    """
    rows = max(1, ENTRIES // model.omega.numel())
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            omega = model.omega.double()
            for start in range(0, len(x), rows):
                batch = slice(start, start + rows)
                parts = model.readouts(x[batch]).double() * omega.T
                f = parts.sum(1)
                if model.output_bias is not None:
                    f = f + model.output_bias.double()
                # a part that is not finite makes its logit so too
                if not is_finite(f):
                    row = start + int((~f.isfinite().all(1)).nonzero()[0])
                    raise ValueError(
                        f"nftk.{op}: model must give finite readouts and logits, got a NaN or an infinity in row {row}"
                    )
                yield LogitParts(f, parts, y[batch] if y is not None else x.new_zeros(0))
    finally:
        model.train(was_training)


def check_network(op: str, model: Any, x: Any) -> None:
    """Raise unless model is an NFT-K network and x (n, m) is data for it."""
    if not (isinstance(getattr(model, "omega", None), Tensor) and callable(getattr(model, "readouts", None))):
        raise TypeError(f"nftk.{op}: model must be an NFTKMLP, got {type(model).__name__}")
    check_tensor(op, "x", x)
    if x.ndim != 2 or x.shape[1] != model.in_features or not len(x):
        got = list(x.shape)
        raise ValueError(f"nftk.{op}: x must have shape [n, {model.in_features}] with n at least 1, got {got}")
    weight = model.readout_weight
    if x.dtype != weight.dtype or x.device != weight.device:
        raise TypeError(
            f"nftk.{op}: x must be {weight.dtype} on {weight.device}, as the model is, got {x.dtype} on {x.device}"
        )
    if not is_finite(x):
        raise ValueError(f"nftk.{op}: x must be finite, got a NaN or an infinity")
    if not is_finite(model.omega):
        raise ValueError(f"nftk.{op}: model must have a finite Omega, got a NaN or an infinity in it")


def check_labels(op: str, y: Any, rows: int, classes: int) -> Tensor:
    """Return labels (rows,) in 0..classes-1, or raise."""
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        got = f"dtype {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"nftk.{op}: y must be an int64 tensor of labels, got {got}")
    if y.shape != (rows,):
        raise ValueError(f"nftk.{op}: y must have shape [{rows}], one label a row of x, got {list(y.shape)}")
    outside = y[(y < 0) | (y >= classes)]
    if len(outside):
        raise ValueError(f"nftk.{op}: y must be in 0..{classes - 1}, got {int(outside[0])}")
    return y
