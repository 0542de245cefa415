"""Tangent kernels, kept apart by layer."""

from nftk.tangent.diagnostics import Drift, Spectrum, alignment, drift, effective_rank, spectrum
from nftk.tangent.empirical_ntk import empirical_ntk, self_kernels
from nftk.tangent.layer_kernels import LayerKernels

__all__ = [
    "Drift",
    "LayerKernels",
    "Spectrum",
    "alignment",
    "drift",
    "effective_rank",
    "empirical_ntk",
    "self_kernels",
    "spectrum",
]
