"""Which path a network takes, and why, without running it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from nftk.ops import activations
from nftk.ops.network_formula import Plan
from nftk.ops.network_triton import unserved_shape


class Served(NamedTuple):
    """A path of :func:`nftk.ops.network`, and one sentence of why."""

    path: str
    why: str


def explain(
    in_features: int,
    hidden_features: Sequence[int],
    out_features: int,
    activation: Any = "relu",
    dtype: torch.dtype = torch.float32,
    device: str = "cuda",
) -> Served:
    """Return the path that an ordinary call of a network with backend="auto" takes, and why.

    Speaks of the network alone: that the kernels run on the machine at hand is taken for granted.

    Args:
        in_features: m.
        hidden_features: n_1 .. n_L.
        out_features: d.
        activation: A name or callable, or L of them.
        dtype: Of all tensors.
        device: ``"cuda"`` or ``"cpu"``: where they are.

    Returns:
        The path's name, as in the rule of :func:`nftk.ops.network`, and the reason.

    Example:
        >>> import nftk
        >>> nftk.ops.explain(784, [2048] * 4, 10).path
        'layers'
    """
    widths = tuple(hidden_features)
    listed = isinstance(activation, Sequence) and not isinstance(activation, str)
    names = list(activation) if listed else [activation] * len(widths)
    phis = tuple(activations.resolve(activations.canonical("ops.explain", name)) for name in names)
    ones = (1.0,) * len(widths)
    plan = Plan(widths, phis, ones, ones, ones)
    one_node = dtype in (torch.float32, torch.float64) and all(phi.gradient for phi in phis)
    torch_path = "node" if one_node else "formula"
    how = "torch operations as one autograd node" if one_node else "plain torch operations"
    if device != "cuda":
        return Served(torch_path, f"{how}: the kernels are for a CUDA GPU")
    if dtype is torch.float64:
        return Served(torch_path, f"{how}: the kernels sum in float32")
    lack = unserved_shape(plan, in_features, out_features)
    if lack is None:
        return Served("triton", "one launch forward, two backward")
    if len(widths) > 100:
        return Served(torch_path, f"{how}: the kernels do not serve {lack}")
    return Served("layers", f"torch operations layer by layer, then all readouts in one launch: not served is {lack}")
