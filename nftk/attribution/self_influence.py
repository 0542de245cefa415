"""Self-influence: how much a training example rests on itself."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nftk._checks import check_shape
from nftk.attribution.ranking import check_finite
from nftk.surrogate import KernelSurrogate
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.targets import as_array


def self_influence(surrogate: KernelSurrogate, own: Tensor | LayerKernels | npt.NDArray[Any], y: Any) -> Tensor:
    r"""Score of each training example for its own label, by layer.

    .. math:: A_l(x_i, x_i)_{y_i} = \alpha_{i y_i} \, w_l \, K_l(x_i, x_i)

    Large where nothing else supports the label: wrong labels and rare examples come first, unless they resemble one
    another, as poisoned examples do (docs/surrogates.md).

    Args:
        surrogate: A fitted one.
        own: Kernels of the training examples with themselves: LayerKernels as fit was given them, or a tensor or an
            array, ``(n, n)`` or ``(L, n, n)``, of which the diagonals are read; or these alone, ``(L, n)``, as
            :func:`nftk.tangent.self_kernels` gives them.
        y: The labels, ``(n,)``.

    Returns:
        ``(L, n)``, float64; sum over layers for the whole.

    Raises:
        TypeError: If surrogate or own is of a wrong type.
        ValueError: If layers or shapes do not fit, a kernel is not finite, or a label is none of the surrogate's.

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
    if isinstance(own, LayerKernels):
        kind = own.names, own.reduction, own.normalization
        if kind != surrogate._kind:
            raise ValueError(
                f"nftk.{op}: own must have the layers, reduction and normalization that fit was given, "
                f"{surrogate._kind}, got {kind}"
            )
        blocks = own.blocks
    elif isinstance(own, Tensor | np.ndarray):
        blocks = torch.as_tensor(own)
    else:
        raise TypeError(f"nftk.{op}: own must be LayerKernels, a tensor or an array, got {type(own).__name__}")
    if blocks.shape in ((n, n), (layers, n, n)) and (layers, n) != tuple(blocks.shape):
        blocks = blocks.diagonal(dim1=-2, dim2=-1).reshape(layers, n)
    check_shape(op, "own", blocks, (layers, n))
    check_finite(op, "own", blocks)
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
