"""Definition of an NFT-K network: equations 1 to 3, 7 and 8 of the paper."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def hidden_states_reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], phi: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    r"""Hidden states of every layer, equations 1 to 3.

    .. math:: g_1 = W_1 x + b_1, \quad g_l = W_l h_{l-1} + b_l, \quad h_l = \phi(g_l)

    The paper gives W_1 the shape (m, n); it is (n, m) (docs/errata.md, 4).

    Args:
        x: Inputs, shape ``(B, m)``.
        weights: W_l, shape ``(n_l, n_{l-1})`` with ``n_0 = m``, one for each of the L layers.
        biases: b_l, shape ``(n_l,)``.
        phi: Activation, elementwise.

    Returns:
        The L tensors h_l, shape ``(B, n_l)``.
    """
    states = []
    h = x
    for weight, bias in zip(weights, biases, strict=True):
        g = torch.einsum("oi,bi->bo", weight, h) + bias
        h = phi(g)
        states.append(h)
    return states


def readouts_reference(hidden_states: Sequence[Tensor], readout_weights: Sequence[Tensor]) -> Tensor:
    r"""Readout of every layer, unweighted, equation 7.

    .. math:: f_l(x) = V_l h_l(x)

    Args:
        hidden_states: h_l, shape ``(B, n_l)``, L of them.
        readout_weights: V_l, shape ``(d, n_l)``.

    Returns:
        All f_l, shape ``(B, L, d)``.
    """
    pairs = zip(hidden_states, readout_weights, strict=True)
    return torch.stack([torch.einsum("dn,bn->bd", v, h) for h, v in pairs], dim=1)


def weighted_sum_reference(readouts: Tensor, omega: Tensor) -> Tensor:
    r"""Omega-weighted sum of the readouts, equation 8.

    .. math:: f_i(x) = \sum_l \omega_{l,i} f_{l,i}(x)

    Args:
        readouts: All f_l, shape ``(B, L, d)``.
        omega: Weights, shape ``(d, L)``: a row a class, a column a layer.

    Returns:
        f, shape ``(B, d)``.
    """
    return torch.einsum("bld,dl->bd", readouts, omega)


def network_reference(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    readout_weights: Sequence[Tensor],
    omega: Tensor,
    phi: Callable[[Tensor], Tensor],
) -> Tensor:
    """The whole network, x to f: equations 1 to 3, 7 and 8 in turn.

    Args:
        x: Inputs, shape ``(B, m)``.
        weights: W_l, shape ``(n_l, n_{l-1})``.
        biases: b_l, shape ``(n_l,)``.
        readout_weights: V_l, shape ``(d, n_l)``.
        omega: Weights, shape ``(d, L)``.
        phi: Activation, elementwise.

    Returns:
        f, shape ``(B, d)``.

    Example:
        >>> one = torch.ones(1, 1)
        >>> weights, biases, readouts = [one, 2 * one], [one[0], one[0]], [one, one]
        >>> network_reference(3 * one, weights, biases, readouts, torch.tensor([[10.0, 1.0]]), torch.relu)
        tensor([[49.]])
    """
    states = hidden_states_reference(x, weights, biases, phi)
    return weighted_sum_reference(readouts_reference(states, readout_weights), omega)
