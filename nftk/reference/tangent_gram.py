"""Definition of tangent_gram: one sum over terms, slices and channels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def tangent_gram_reference(
    s: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor], outputs: Sequence[Sequence[int]], size: int
) -> Tensor:
    r"""Sums of Gram matrices of tangents, each term weighted by a factor per pair of examples.

    .. math:: out_o[x, x', i, j] = \sum_{t, q \to o} S_t[x, x'] \, \langle A_{t,q}[x, i], B_{t,q}[x', j] \rangle

    Args:
        s: S_t, shape ``(n1, n2)``, one a term.
        a: A_t, shape ``(p_t, n1, d, c_t)``: p_t slices.
        b: B_t, shape ``(p_t, n2, d, c_t)``.
        outputs: For each term the p_t outputs that its slices are added to.
        size: Number of outputs.

    Returns:
        All outputs, shape ``(size, n1, n2, d, d)``.
    """
    n1, n2, d = a[0].shape[1], b[0].shape[1], a[0].shape[2]
    out = a[0].new_zeros(size, n1, n2, d, d)
    for s_t, a_t, b_t, places in zip(s, a, b, outputs, strict=True):
        for q, place in enumerate(places):
            out[place] += torch.einsum("xy,xic,yjc->xyij", s_t, a_t[q], b_t[q])
    return out
