"""Tangent kernels, kept apart by layer."""

from nftk.tangent.diagnostics import Drift, Spectrum, alignment, drift, effective_rank, spectrum
from nftk.tangent.empirical_ntk import empirical_ntk, self_kernels
from nftk.tangent.infinite_ntk import arguments_for, infinite_ntk, series_error
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.modules.table import ModulePlan, plan

__all__ = [
    "Drift",
    "LayerKernels",
    "ModulePlan",
    "Spectrum",
    "alignment",
    "arguments_for",
    "drift",
    "effective_rank",
    "empirical_ntk",
    "infinite_ntk",
    "plan",
    "self_kernels",
    "series_error",
    "spectrum",
]
