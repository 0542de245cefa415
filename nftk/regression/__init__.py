"""Ridge regression and multiple-kernel learning on tangent kernels."""

from nftk.regression.kernel_prediction import KernelPrediction, kernel_prediction
from nftk.regression.kernel_ridge import KernelRidge
from nftk.regression.multiple_kernel_ridge import MultipleKernelRidge
from nftk.regression.proximal import ridge_from_proximal
from nftk.regression.solve import KernelWarning

__all__ = [
    "KernelPrediction",
    "KernelRidge",
    "KernelWarning",
    "MultipleKernelRidge",
    "kernel_prediction",
    "ridge_from_proximal",
]
