"""Tangent kernels, kept apart by layer."""

from nftk.tangent.choose_k import choose_k
from nftk.tangent.diagnostics import Drift, Spectrum, alignment, drift, effective_rank, spectrum
from nftk.tangent.empirical_ntk import empirical_ntk, self_kernels
from nftk.tangent.infinite_ntk import arguments_for, infinite_ntk, series_error
from nftk.tangent.layer_kernels import LayerKernels
from nftk.tangent.modules.table import ModulePlan, plan
from nftk.tangent.named_kernels import conjugate_kernel, embedding_kernel, loss_gradient_kernel, pntk, trntk, trntk0
from nftk.tangent.project_tangents import project_tangents
from nftk.tangent.projected_tangents import ProjectedTangents

__all__ = [
    "Drift",
    "LayerKernels",
    "ModulePlan",
    "ProjectedTangents",
    "Spectrum",
    "alignment",
    "arguments_for",
    "choose_k",
    "conjugate_kernel",
    "drift",
    "effective_rank",
    "embedding_kernel",
    "empirical_ntk",
    "infinite_ntk",
    "loss_gradient_kernel",
    "plan",
    "pntk",
    "project_tangents",
    "self_kernels",
    "series_error",
    "spectrum",
    "trntk",
    "trntk0",
]
