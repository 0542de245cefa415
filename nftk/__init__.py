"""Layerwise tangent kernels for PyTorch: networks that say which layer decides which class."""

from nftk import constraints, data, ops, reference, regression, tangent
from nftk.interpret import plot_omega
from nftk.modules import NFTKMLP
from nftk.regression import KernelRidge, MultipleKernelRidge, kernel_prediction
from nftk.tangent import LayerKernels, empirical_ntk, infinite_ntk
from nftk.training import History, evaluate, fit

__version__ = "0.1.0.dev0"
__all__ = [
    "History",
    "KernelRidge",
    "LayerKernels",
    "MultipleKernelRidge",
    "NFTKMLP",
    "constraints",
    "data",
    "empirical_ntk",
    "evaluate",
    "fit",
    "infinite_ntk",
    "kernel_prediction",
    "ops",
    "plot_omega",
    "reference",
    "regression",
    "tangent",
]
