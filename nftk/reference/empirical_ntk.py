"""Definition of the empirical tangent kernel: products of Jacobians over parameters."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def empirical_ntk_reference(
    function: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    parameters: Mapping[str, Tensor],
    x1: Tensor,
    x2: Tensor,
) -> Tensor:
    r"""Tangent kernel of a function of parameters and inputs.

    .. math:: \Theta[i,j](x, x') = \langle \partial f_i(x) / \partial \theta, \partial f_j(x') / \partial \theta \rangle

    Args:
        function: Takes the parameters by name and inputs ``(n, m)``, and returns ``(n, d)``, each row from its own
            input alone.
        parameters: Those to be differentiated in.
        x1: First inputs, ``(n1, m)``.
        x2: Second inputs, ``(n2, m)``.

    Returns:
        The kernel, ``(n1, n2, d, d)``.

    Example:
        >>> def linear(p, x):
        ...     return x @ p["w"].mT
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> empirical_ntk_reference(linear, {"w": torch.zeros(2, 2)}, x, x).reshape(2, 2)
        tensor([[5., 0.],
                [0., 5.]])
    """
    jacobians = []
    for x in (x1, x2):
        by_name = torch.func.jacrev(function)(dict(parameters), x)
        jacobians.append(torch.cat([j.flatten(2) for j in by_name.values()], dim=2))  # [n, d, parameters]
    return torch.einsum("xip,yjp->xyij", *jacobians)
