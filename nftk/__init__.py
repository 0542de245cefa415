"""Layerwise tangent kernels for PyTorch: networks that say which layer decides which class."""

from nftk import constraints, data, ops, reference
from nftk.interpret import plot_omega
from nftk.modules import NFTKMLP
from nftk.training import History, evaluate, fit

__version__ = "0.1.0.dev0"
__all__ = ["NFTKMLP", "History", "constraints", "data", "evaluate", "fit", "ops", "plot_omega", "reference"]
