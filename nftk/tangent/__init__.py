"""Tangent kernels, kept apart by layer."""

from nftk.tangent.empirical_ntk import empirical_ntk, self_kernels
from nftk.tangent.layer_kernels import LayerKernels

__all__ = ["LayerKernels", "empirical_ntk", "self_kernels"]
