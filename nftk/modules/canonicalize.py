"""Omega's scale freedoms taken away: every readout with unit deviation over given data, the function unchanged."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nftk._checks import check_tensor, is_finite

if TYPE_CHECKING:
    from nftk.modules.nftk_mlp import NFTKMLP

# entries of a batch's readouts
ENTRIES = 1 << 20


def canonicalize(model: "NFTKMLP", data: Tensor) -> "NFTKMLP":
    """Do the work of ``NFTKMLP.canonicalize``."""
    op = "NFTKMLP.canonicalize"
    check_tensor(op, "data", data)
    if data.ndim != 2 or data.shape[1] != model.in_features or len(data) < 2:
        want = f"[n, {model.in_features}] with n at least 2"
        raise ValueError(f"nftk.{op}: data must have shape {want}, got {list(data.shape)}")
    weight = model.readout_weight
    if data.dtype != weight.dtype or data.device != weight.device:
        want, got = f"{weight.dtype} on {weight.device}", f"{data.dtype} on {data.device}"
        raise TypeError(f"nftk.{op}: data must be {want}, as the model is, got {got}")
    if not is_finite(data):
        raise ValueError(f"nftk.{op}: data must be finite, got a NaN or an infinity")
    result = copy.deepcopy(model)
    deviation = _deviation(result, data)  # [d, L]
    # a readout that says the same of everything has no size to be measured by, and stays as it is
    scale = torch.where(deviation > 0, deviation, 1.0)
    with torch.no_grad():
        result.omega.copy_(result.omega.double() * scale)
        for v, column in zip(result.readout_weights(), scale.T, strict=True):
            v.copy_(v.double() / column[:, None])
    return result


@torch.no_grad()
def _deviation(model: Any, data: Tensor) -> Tensor:
    """Standard deviation of every f_l over the data, in eval mode, (d, L) in float64."""
    was_training = model.training
    model.eval()
    rows = max(1, ENTRIES // model.omega.numel())
    count = 0
    mean, squares = (torch.zeros((), dtype=torch.float64, device=data.device) for _ in range(2))
    for start in range(0, len(data), rows):
        said = model.readouts(data[start : start + rows]).double()
        new, share = said.mean(0) - mean, len(said) / (count + len(said))
        squares = squares + (said - said.mean(0)).square().sum(0) + share * count * new.square()
        mean, count = mean + share * new, count + len(said)
    model.train(was_training)
    deviation = (squares / count).sqrt()
    # rounding of a constant is no deviation
    return torch.where(deviation > 1e-6 * mean.abs(), deviation, 0.0).T
