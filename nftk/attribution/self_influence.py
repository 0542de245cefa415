"""Self-influence: how much a training example rests on itself."""

from typing import Any

import torch
from torch import Tensor

from nftk._checks import check_shape
from nftk.surrogate import KernelSurrogate
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.targets import as_array


def self_influence(surrogate: KernelSurrogate, own: Tensor | LayerKernels, y: Any) -> Tensor:
    r"""Score of each training example for its own label, by layer.

    .. math:: A_l(x_i, x_i)_{y_i} = \alpha_{i y_i} \, w_l \, K_l(x_i, x_i)

    Large where nothing else supports the label: wrong labels and rare examples come first.

    Args:
        surrogate: A fitted one.
        own: Kernels of the training examples with themselves: LayerKernels or a tensor, ``(n, n)`` or ``(L, n, n)``, of
            which the diagonals are read; or these alone, ``(L, n)``, as :func:`nftk.tangent.self_kernels` gives them.
        y: The labels, ``(n,)``.

    Returns:
        ``(L, n)``, float64; sum over layers for the whole.

    Raises:
        TypeError: If surrogate is none.
        ValueError: If shapes do not fit, or a label is none of the surrogate's.

    References:
        Koh and Liang, Understanding black-box predictions via influence functions, ICML 2017; Yeh et al., Representer
        point selection for explaining deep neural networks, NeurIPS 2018.
    """
    op = "attribution.self_influence"
    if not isinstance(surrogate, KernelSurrogate):
        raise TypeError(f"nftk.{op}: surrogate must be a KernelSurrogate, got {type(surrogate).__name__}")
    surrogate._check_is_fitted()
    alpha, layers = surrogate.dual_coef_, len(surrogate.weights_)
    n = len(alpha)
    blocks = own.blocks if isinstance(own, LayerKernels) else own
    if blocks.shape in ((n, n), (layers, n, n)) and (layers, n) != tuple(blocks.shape):
        blocks = blocks.diagonal(dim1=-2, dim2=-1).reshape(layers, n)
    check_shape(op, "own", blocks, (layers, n))
    labels = as_array(op, y)
    if labels.shape != (n,):
        raise ValueError(f"nftk.{op}: y must have shape [{n}], an entry a training example, got {list(labels.shape)}")
    known: Any = surrogate.classes_
    places = known.searchsorted(labels).clip(max=len(known) - 1)
    for label, found in zip(labels.tolist(), known[places].tolist(), strict=True):
        if label != found:
            raise ValueError(f"nftk.{op}: y must be labels of the surrogate, {known.tolist()}, got {label!r}")
    coefficients = alpha[torch.arange(n), torch.from_numpy(places)]
    return coefficients * surrogate.weights_[:, None] * blocks.detach().cpu().double()
